"""Peak memory of PEFT's training step, LoRA of rank 8 and 12 and AdaLoRA from 12 to 8 while it allocates.

    python memory.py --shape minilm --batch 16x128

Each runs four steps alone in a process of its own, with random weights and tokens.
"""

import argparse
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from shared import CLASSIFIER, encoder

ADAPTERS = {
    "LoRA r=8": LoraConfig(r=8, **CLASSIFIER),
    "LoRA r=12": LoraConfig(r=12, **CLASSIFIER),
    "AdaLoRA": AdaLoraConfig(
        init_r=12, target_r=8, tinit=0, tfinal=1, deltaT=1, total_step=1000, orth_reg_weight=0.1, **CLASSIFIER
    ),
}


def resident():
    """The largest part of this process that was in memory so far, in MiB."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def peak(adapter, shape, rows, width, threads):
    """Memory once the model is built, and at most; values that are trained."""
    torch.set_num_threads(threads)
    base = AutoModelForSequenceClassification.from_config(encoder(shape))
    model = get_peft_model(base, ADAPTERS[adapter]).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    built = resident()
    ids = torch.randint(5, 30000, (rows, width))
    for step in range(1, 5):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.arange(rows) % 2).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if adapter == "AdaLoRA":
            model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    return built, resident(), sum(p.numel() for p in trained)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["minilm", "deberta-small", "deberta-base"], default="minilm")
    parser.add_argument("--batch", default="16x128", metavar="ROWSxTOKENS")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    rows, width = map(int, options.batch.split("x"))
    print(f"{options.shape}, {options.batch}, {options.threads} threads, MiB")
    print(f"{'':12}{'built':>8}{'peak':>8}{'trained values':>18}")
    for adapter in ADAPTERS:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            built, most, trained = alone.submit(peak, adapter, options.shape, rows, width, options.threads).result()
        print(f"{adapter:12}{built:8.0f}{most:8.0f}{trained:18,}")


if __name__ == "__main__":
    main()
