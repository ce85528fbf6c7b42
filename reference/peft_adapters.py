"""Adapters that PEFT itself has trained and saved, on the small checkpoints here, and the logits it makes of them.

Each folder is what `save_pretrained` wrote, without its README and with target_modules, a set, in order; the logits are
those of the folder loaded again.
"""

import json
import os
import shutil

from common import VALUES, generator, made_with, normal, save_json, save_tensors

import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

OUT = "peft"
TARGETS = ["query", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
DEBERTA_TARGETS = ["query_proj", "value_proj", "output.dense"]
ALLOCATION = {"init_r": 3, "target_r": 1, "total_step": 24, "tinit": 3, "tfinal": 8, "deltaT": 4, "beta1": 0.85, "beta2": 0.85}
ADALORA = {**ALLOCATION, "lora_alpha": 7, "orth_reg_weight": 0.1}
CLASSIFIER = {"task_type": "SEQ_CLS", "lora_dropout": 0.1}


def base(name):
    # From the folder of `values`, so that no path of this machine is saved.
    return AutoModelForSequenceClassification.from_pretrained(name, dtype=torch.float32)


def batch_of(name):
    tensors = load_file(VALUES / f"{name}.safetensors")
    part = "short." if name == "deberta-odd" else ""
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {key: tensors[part + key] for key in names if part + key in tensors}


def train(model, batch, labels, steps):
    """Plain steps, after a start in which no increment is zero."""
    gen = generator(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_E" in name:
                parameter.copy_(normal(parameter.shape, 0.5, gen))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    model.train()
    for step in range(steps):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        if hasattr(model.base_model, "update_and_allocate"):
            model.base_model.update_and_allocate(step)
        optimizer.zero_grad()


def case(name, on, config, steps, dtype=None):
    batch = batch_of(on)
    torch.manual_seed(1)
    model = get_peft_model(base(on), config)
    rows, classes = len(batch["input_ids"]), model.config.num_labels
    train(model, batch, torch.arange(rows) % classes, steps)
    if dtype:
        model.to(dtype)
    folder = VALUES / OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    settings["target_modules"].sort()
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)

    with torch.no_grad():
        plain = base(on).eval()(**batch).logits
        found = PeftModel.from_pretrained(base(on), folder).eval()(**batch).logits
    ranks = [tensor.shape[0] for key, tensor in load_file(folder / "adapter_model.safetensors").items() if "lora_A" in key]
    difference = (found - plain).abs().max().item()
    assert difference > 0.1, difference
    return found, {"name": name, "checkpoint": on, "ranks": ranks, "largest_change_of_logits": difference}


def main():
    (VALUES / OUT).mkdir(exist_ok=True)
    os.chdir(VALUES)
    cases = [
        case("adalora", "bert-random", AdaLoraConfig(**ADALORA, **CLASSIFIER, target_modules=TARGETS), 24),
        # After step 6, two steps after an allocation: lambda has grown again, the file has the pattern of then.
        case("adalora-between", "bert-random", AdaLoraConfig(**ADALORA, **CLASSIFIER, target_modules=["query"]), 7),
        case("adalora-whole", "bert-random", AdaLoraConfig(**ADALORA, **CLASSIFIER, target_modules=["value"]), 2),
        case(
            "adalora-deberta",
            "deberta-odd",
            AdaLoraConfig(**ADALORA, **CLASSIFIER, target_modules=DEBERTA_TARGETS, modules_to_save=["pooler"]),
            24,
        ),
        case(
            "lora",
            "bert-random",
            LoraConfig(
                r=3,
                lora_alpha=5,
                target_modules=["query", "value", "attention.output.dense"],
                rank_pattern={"layer.0.attention.self.query": 1, "value": 2},
                alpha_pattern={r"^bert\.encoder\.layer\.[01]\..*value": 3.0, "layer.2.attention.output.dense": 9},
                **CLASSIFIER,
            ),
            6,
        ),
        case(
            "lora-bf16",
            "bert-random",
            LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=["query"], **CLASSIFIER),
            6,
            torch.bfloat16,
        ),
    ]
    save_tensors(f"{OUT}/logits", {described["name"]: logits for logits, described in cases})
    save_json(OUT + "/cases", {"made_with": made_with("peft_adapters.py"), "cases": [described for _, described in cases]})


if __name__ == "__main__":
    main()
