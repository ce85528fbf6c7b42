"""An epoch of real sentences in PEFT, batches padded to their longest row: LoRA of rank 2, AdaLoRA from 4 to 2.

    python epoch.py --glue FOLDER --checkpoint FOLDER --data CoLA --rows 32

`--glue` has `CoLA/train.tsv` and `MRPC/train.tsv` as GLUE ships them, `--checkpoint` a BERT with its tokenizer. All variants take
each batch in turn, so that they see the same machine. AdaLoRA goes through all its phases in the epoch: an eighth before
the budget moves, two fifths with the final pattern. Each batch is padded inside the time that is taken; texts are tokenized
before.

In `bf16` the frozen weights are bf16, and PEFT keeps the adapters in f32. In `autocast` all weights are f32, and torch casts
them for each product.
"""

import argparse
import random
import statistics
import time
from pathlib import Path

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

from shared import CLASSIFIER

DATA = {
    "CoLA": {"header": 0, "texts": [3], "label": 1, "max_length": 64, "delta_t": 10},
    "MRPC": {"header": 1, "texts": [3, 4], "label": 0, "max_length": 128, "delta_t": 1},
}


def read(glue, name, tokenizer):
    """Token ids and label of each training example."""
    layout = DATA[name]
    lines = Path(glue, name, "train.tsv").read_text(encoding="utf-8-sig").split("\n")[layout["header"] :]
    examples = []
    for line in lines:
        if line:
            fields = line.split("\t")
            texts = [fields[column] for column in layout["texts"]]
            example = tokenizer(*texts, truncation=True, max_length=layout["max_length"])
            examples.append({**example, "labels": int(fields[layout["label"]])})
    return examples


def cut(examples, rows, by_length):
    """Batches of one epoch: shuffled, or sorted by length inside windows of 32 batches and then shuffled."""
    chance = random.Random(0)
    order = chance.sample(examples, len(examples))
    if by_length:
        window = 32 * rows
        sort = lambda part: sorted(part, key=lambda example: len(example["input_ids"]))  # noqa: E731
        order = [example for at in range(0, len(order), window) for example in sort(order[at : at + window])]
    batches = [order[at : at + rows] for at in range(0, len(order), rows)]
    chance.shuffle(batches)
    return batches


class Run:
    """A model that trains for one epoch of `steps` steps."""

    def __init__(self, method, dtype, checkpoint, steps, delta_t):
        torch.manual_seed(0)
        base = AutoModelForSequenceClassification.from_pretrained(
            checkpoint, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32
        )
        if method == "AdaLoRA":
            phases = {"tinit": steps // 8, "tfinal": 2 * steps // 5, "deltaT": delta_t, "total_step": steps}
            adapter = AdaLoraConfig(init_r=4, target_r=2, orth_reg_weight=0.1, **phases, **CLASSIFIER)
        else:
            adapter = LoraConfig(r=2, **CLASSIFIER)
        self.model = get_peft_model(base, adapter).train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-3)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, steps // 20, steps)
        self.allocates = method == "AdaLoRA"
        self.autocast = dtype == "autocast"
        self.wall = self.cpu = 0.0
        self.losses = []

    def step(self, number, batch, tokenizer):
        wall, cpu = time.perf_counter(), time.process_time()
        batch = tokenizer.pad(batch, return_tensors="pt")
        with torch.autocast("cpu", enabled=self.autocast):
            loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.schedule.step()
        if self.allocates:
            self.model.base_model.update_and_allocate(number)
        self.optimizer.zero_grad()
        self.losses.append(loss.item())
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", choices=DATA, default="CoLA")
    parser.add_argument("--rows", type=int, default=32, help="rows of a batch")
    parser.add_argument("--by-length", action="store_true", help="batches of sentences of like length")
    parser.add_argument("--dtypes", nargs="+", choices=["f32", "bf16", "autocast"], default=["f32", "bf16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--examples", type=int, help="take only so many, as a quick look")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
    examples = read(options.glue, options.data, tokenizer)[: options.examples]
    batches = cut(examples, options.rows, options.by_length)
    runs = {
        (dtype, method): Run(method, dtype, options.checkpoint, len(batches), DATA[options.data]["delta_t"])
        for dtype in options.dtypes
        for method in ("LoRA", "AdaLoRA")
    }

    chance = random.Random(0)
    for number, batch in enumerate(batches):
        for variant in chance.sample(list(runs), len(runs)):
            runs[variant].step(number, batch, tokenizer)

    tokens = sum(len(example["input_ids"]) for example in examples)
    padded = sum(len(batch) * max(len(example["input_ids"]) for example in batch) for batch in batches)
    print(
        f"{options.data}, {len(examples)} examples, {len(batches)} steps of {options.rows}, {tokens:,} tokens, "
        f"{padded:,} with padding, {options.threads} threads"
    )
    print(f"{'':20}{'s/epoch':>10}{'CPU s':>10}{'loss of the last fifth':>26}")
    for (dtype, method), run in runs.items():
        loss = statistics.mean(run.losses[-len(batches) // 5 :])
        print(f"{dtype:10}{method:10}{run.wall:10.1f}{run.cpu:10.1f}{loss:26.3f}")


if __name__ == "__main__":
    main()
