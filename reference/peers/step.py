"""Our training step beside PEFT's: same encoder shape, batch, dropout and threads, one step of each in turn.

    python step.py --shape minilm --threads 2 --rounds 12

Each round runs one step of every variant of both sides in random order, so that both see the same machine; a ratio is
the median of the ratios of the rounds. Ours runs in a process of its own, `peer_step` of the benches, which is given one
line for each step. Weights are random: only time is compared here. The phases of AdaLoRA are those of a run whose budget
moves from 12 to 8: before the reduction, an allocation, and with the final pattern.
"""

import argparse
import os
import random
import statistics
import subprocess
import time

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from shared import CLASSIFIER, encoder

# Three phases of a million steps; the step number that PEFT is given puts one model into any of them.
TOTAL, T_INIT, T_FINAL = 3_000_000, 1_000_000, 1_000_000
AT = {"ada_warm": 10, "ada_alloc": 1_500_000, "ada_final": 2_500_000}
VARIANTS = ["lora8", "lora12", *AT]

# What `peer_step` calls each shape, and its batches.
SHAPES = {"minilm": ("MiniLM 16x128", 16, 128), "deberta-small": ("DeBERTa-small 16x64", 16, 64)}
# BERT's vocabulary for both: the embedding is frozen, and only looked up.
VOCABULARY = 30522


class Peft:
    """LoRA of rank 8 and 12 and one AdaLoRA model, each with an AdamW of its own."""

    def __init__(self, shape, dropout):
        self.models = {}
        for name in ["lora8", "lora12", "ada"]:
            torch.manual_seed(0)
            config = encoder(
                shape, vocab_size=VOCABULARY, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
            )
            base = AutoModelForSequenceClassification.from_config(config)
            if name == "ada":
                adapter = AdaLoraConfig(
                    init_r=12,
                    target_r=8,
                    tinit=T_INIT,
                    tfinal=T_FINAL,
                    deltaT=1,
                    total_step=TOTAL,
                    orth_reg_weight=0.1,
                    **CLASSIFIER,
                )
            else:
                adapter = LoraConfig(r=int(name[4:]), **CLASSIFIER)
            model = get_peft_model(base, adapter).train()
            trained = [p for p in model.parameters() if p.requires_grad]
            self.models[name] = model, trained, torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01)
        _, rows, width = SHAPES[shape]
        ids = torch.randint(5, 30000, (rows, width), generator=torch.Generator().manual_seed(0))
        self.batch = dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.arange(rows) % 2)
        # The final phase needs a pattern, which an allocation makes.
        self.step("ada_alloc")

    def step(self, variant):
        """Wall and CPU time of one step, in milliseconds."""
        model, trained, optimizer = self.models[variant if variant.startswith("lora") else "ada"]
        wall, cpu = time.perf_counter(), time.process_time()
        model(**self.batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if variant in AT:
            model.base_model.update_and_allocate(AT[variant])
        optimizer.zero_grad()
        return (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3


class Ours:
    """The program `peer_step`."""

    def __init__(self, program, shape, dropout, threads):
        self.process = subprocess.Popen(
            [program, SHAPES[shape][0], str(dropout), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # As `adalora run` starts its workers.
            env={"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} | os.environ,
        )

    def step(self, variant):
        """Wall and CPU time of one step, in milliseconds."""
        self.process.stdin.write(variant + "\n")
        self.process.stdin.flush()
        wall, cpu = self.process.stdout.readline().split()
        return float(wall), float(cpu)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="minilm")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--program", default="target/release/peer_step")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sides = {
        "ours": Ours(options.program, options.shape, options.dropout, options.threads),
        "peft": Peft(options.shape, options.dropout),
    }
    turns = [(side, variant) for side in sides for variant in VARIANTS]
    times = {turn: [] for turn in turns}
    chance = random.Random(0)
    warm_up = 2
    for round in range(warm_up + options.rounds):
        chance.shuffle(turns)
        for side, variant in turns:
            took = sides[side].step(variant)
            if round >= warm_up:
                times[side, variant].append(took)

    def ratio(a, b, clock):
        return statistics.median(x[clock] / y[clock] for x, y in zip(times[a], times[b]))

    print(f"{options.shape}, {options.threads} threads, dropout {options.dropout}, {options.rounds} rounds")
    print(f"{'':12}{'ours ms':>10}{'PEFT ms':>10}{'ours / PEFT':>14}{'the same in CPU time':>22}")
    for variant in VARIANTS:
        ours, peft = ("ours", variant), ("peft", variant)
        medians = [statistics.median(wall for wall, _ in times[side]) for side in (ours, peft)]
        print(
            f"{variant:12}{medians[0]:10.1f}{medians[1]:10.1f}{ratio(ours, peft, 0):14.3f}{ratio(ours, peft, 1):22.3f}"
        )
    print("\nAdaLoRA over the same side's LoRA of rank 8, wall and CPU time")
    for variant in AT:
        for side in sides:
            print(
                f"{variant:12}{side:6}"
                f"{ratio((side, variant), (side, 'lora8'), 0):10.3f}{ratio((side, variant), (side, 'lora8'), 1):10.3f}"
            )


if __name__ == "__main__":
    main()
