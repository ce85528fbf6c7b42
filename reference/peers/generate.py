"""Time of transformers' `generate` on a BART with random weights, and the same for ours to be timed on.

  python generate.py FOLDER [--threads 1] [--repeats 3] [--width 256] [--rows 8] [--beams 4] [--max-length 64]
  cargo run --release -p adalora-models --example generate FOLDER 3 1      # repeats, threads

The first writes the checkpoint, the inputs and what it found into FOLDER. BART-base's sizes; rows of a batch differ in
length, from half the width to all of it. Weights have a deviation of 0.05, so that logits differ by more than rounding.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from safetensors.torch import save_file
from transformers import BartConfig, BartForConditionalGeneration

BOS, PAD, EOS = 0, 1, 2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, value in dict(threads=1, repeats=3, width=256, rows=8, beams=4, max_length=64).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(1)
    config = BartConfig(
        d_model=768, encoder_layers=6, decoder_layers=6, encoder_ffn_dim=3072, decoder_ffn_dim=3072,
        encoder_attention_heads=12, decoder_attention_heads=12, init_std=0.05,
    )  # fmt: skip
    model = BartForConditionalGeneration(config).eval()
    model.save_pretrained(asked.folder)

    ids = torch.randint(3, config.vocab_size, (asked.rows, asked.width))
    for row, tokens in enumerate(ids):
        length = asked.width - row * asked.width // (2 * asked.rows)
        tokens[0], tokens[length - 1], tokens[length:] = BOS, EOS, PAD
    inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    save_file(inputs, asked.folder / "inputs.safetensors")
    settings = dict(
        num_beams=asked.beams, max_length=asked.max_length, min_length=10, length_penalty=1.0, no_repeat_ngram_size=3,
        early_stopping=True, forced_bos_token_id=BOS, forced_eos_token_id=EOS,
    )  # fmt: skip
    for _ in range(asked.repeats):
        start = time.perf_counter()
        with torch.inference_mode():
            found = model.generate(**inputs, **settings, do_sample=False)
        print(f"{time.perf_counter() - start:.3f} s")
    rows = [row[1 : row.index(EOS, 1) + 1] if EOS in row[1:] else row[1:] for row in found.tolist()]
    generation = {
        "beams": asked.beams, "max_length": asked.max_length, "min_length": 10, "length_penalty": 1.0,
        "no_repeat_ngram": 3, "early_stopping": True, "forced_bos": True, "forced_eos": True,
    }  # fmt: skip
    (asked.folder / "generation.json").write_text(json.dumps({"generation": generation, "tokens": rows}))


if __name__ == "__main__":
    main()
