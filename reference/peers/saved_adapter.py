"""What PEFT saves of an AdaLoRA model, and what loading it needs.

    python saved_adapter.py

Trains a small BERT for 40 steps, saves it, and loads that folder in several ways, some of them broken on purpose; then
saves while the budget still moves. A difference is the largest one between the logits of the model in memory and of the one
that was loaded.
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig

from shared import CLASSIFIER


def base():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    return AutoModelForSequenceClassification.from_config(config)


def trained(steps):
    """An allocation at every fourth step from 8 to 28, at 30 the last; 48 triplets to 12."""
    config = AdaLoraConfig(
        init_r=4, target_r=1, tinit=4, tfinal=10, deltaT=4, total_step=40, orth_reg_weight=0.1, **CLASSIFIER
    )
    model = get_peft_model(base(), config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-2)
    chance = torch.Generator().manual_seed(1)
    for step in range(steps):
        ids = torch.randint(0, 100, (8, 16), generator=chance)
        model(input_ids=ids, labels=ids.sum(1) % 2).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=torch.arange(32).view(2, 16)).logits


def load(folder, **options):
    return PeftModel.from_pretrained(base(), folder, **options).eval()


def difference(model, expected):
    return f"difference {(logits(model) - expected).abs().max():.1e}"


def report(what, attempt):
    """Prints what `attempt` says, or its error."""
    try:
        result = attempt()
    except Exception as error:
        result = f"{type(error).__name__}: {' '.join(str(error).split())[:240]}"
    print(f"* {what}: {result}")


def changed(folder, change):
    """A copy of the saved adapter whose configuration went through `change`."""
    copy = Path(tempfile.mkdtemp(dir=folder.parent))
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    config = json.loads((copy / "adapter_config.json").read_text())
    change(config)
    (copy / "adapter_config.json").write_text(json.dumps(config))
    return copy


def as_lora(folder):
    """The saved adapter as one of plain LoRA: lambda multiplied into B, the scale written as alpha over rank."""
    tensors = load_file(folder / "adapter_model.safetensors")
    lora = {name: tensor for name, tensor in tensors.items() if "lora_" not in name}
    ranks = {}
    for name in [name for name in tensors if name.endswith("lora_A")]:
        layer = name.removesuffix(".lora_A")
        a, e, b = (tensors[f"{layer}.lora_{part}"] for part in "AEB")
        # LoRA has no rank 0: one triplet of zeros.
        lora[f"{layer}.lora_A.weight"] = a if len(a) else torch.zeros(1, a.shape[1])
        lora[f"{layer}.lora_B.weight"] = b * e.T if len(a) else torch.zeros(len(b), 1)
        ranks[layer.removeprefix("base_model.model.")] = max(len(a), 1)

    def to_lora(config):
        scale = config["lora_alpha"] / (config["init_r"] + 1e-5)
        kept = ("task_type", "target_modules", "modules_to_save", "lora_alpha", "base_model_name_or_path")
        kept = {key: config[key] for key in kept}
        config.clear()
        config.update(kept, peft_type="LORA", inference_mode=True, r=1, rank_pattern=ranks)
        config["alpha_pattern"] = {layer: scale * rank for layer, rank in ranks.items()}

    copy = changed(folder, to_lora)
    save_file(lora, copy / "adapter_model.safetensors", metadata={"format": "pt"})
    return copy


def main():
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "finished"
        model = trained(40)
        expected = logits(model)
        model.save_pretrained(folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        pattern = config["rank_pattern"]
        print("files:", *sorted(path.name for path in folder.iterdir()))
        print("adapter_config.json:", json.dumps({key: config[key] for key in config if key != "rank_pattern"}))
        print("rank_pattern:")
        for name, kept in pattern.items():
            print(f"  {name} {kept}")
        print("adapter_model.safetensors:")
        for name, tensor in sorted(load_file(folder / "adapter_model.safetensors").items()):
            print(f"  {name} {list(tensor.shape)} {tensor.dtype}")

        print("loading:")
        with model.disable_adapter():
            report("without the adapter", lambda: difference(model, expected))
        loaded = load(folder)
        report("on a fresh model", lambda: difference(loaded, expected))
        layers = [module for module in loaded.modules() if type(module).__name__ == "SVDLinear"]
        ranknums = sorted({(layer.r["default"], layer.ranknum["default"].item()) for layer in layers})
        report("pairs of rank and `ranknum` there", lambda: ranknums)

        def second():
            loaded.load_adapter(folder, "other")
            loaded.set_adapter("other")
            return difference(loaded, expected)

        report("as a second adapter of a model", second)

        def without_pattern(config):
            config["rank_pattern"] = None

        def with_counts(config):
            config["rank_pattern"] = {name: sum(kept) for name, kept in pattern.items()}

        def with_adapter_name(config):
            config["rank_pattern"] = {f"{name}.default": kept for name, kept in pattern.items()}

        for what, change in (
            ("without `rank_pattern`", without_pattern),
            ("with a `rank_pattern` of counts", with_counts),
            ("with `.default` after its names", with_adapter_name),
        ):
            report(what, lambda: difference(load(changed(folder, change)), expected))
        report("as plain LoRA", lambda: difference(load(as_lora(folder)), expected))

        for steps in (3, 23):
            early = Path(scratch) / f"after-{steps}"
            model = trained(steps)
            alive = sum(int(p.count_nonzero()) for name, p in model.named_parameters() if "lora_E" in name)
            model.save_pretrained(early)
            pattern = json.loads((early / "adapter_config.json").read_text())["rank_pattern"]
            kept = pattern and sum(map(sum, pattern.values()))
            report(
                f"saved after {steps} steps, {alive} lambda not 0, `rank_pattern` keeps {kept}",
                lambda: difference(load(early), logits(model)),
            )

        def resume():
            model = load(early, is_trainable=True).train()
            ids = torch.arange(128).view(8, 16) % 100
            model(input_ids=ids, labels=ids.sum(1) % 2).loss.backward()
            model.base_model.update_and_allocate(24)
            return "goes on"

        report(f"training on from {steps} steps, at the next allocation", resume)


if __name__ == "__main__":
    main()
