"""Forward and backward of DeBERTaV3 with adapters on all linear layers: transformers with PEFT beside ours.

    cargo build --release -p adalora-models --example deberta_step
    python reference/peers/deberta_step.py --threads 1 --rounds 10

The shape is deberta-v3-small's unless said otherwise, with random weights: only time is compared. Every round runs one
pass of each in random order, so that all see the same machine; a ratio is the median of the ratios of the rounds. Ours
runs in a process of its own, which is given one line for each pass. Variants of theirs:

  adalora   PEFT's AdaLoRA of rank 12, without its regularizer and allocator
  addmm     the same with the adapters' product written as ours writes it, so that the rest is what is compared
  lora      PEFT's LoRA of rank 8
"""

import argparse
import random
import statistics
import subprocess
import time
import warnings

warnings.filterwarnings("ignore")
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from peft.tuners.adalora.layer import SVDLinear
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification
from transformers.utils import logging

logging.set_verbosity_error()

TARGETS = (
    r".*encoder\.layer\.\d+\.(attention\.self\.(query|key|value)_proj|attention\.output\.dense"
    r"|intermediate\.dense|output\.dense)"
)


def accumulated(self, x, *args, **kwargs):
    """AdaLoRA's forward pass with lambda and scale in the factor of r rows, and one addmm onto the base output."""
    name = self.active_adapters[0]
    rows = x.reshape(-1, x.shape[-1])
    factor = self.lora_A[name] * (self.lora_E[name] * (self.scaling[name] / (self.ranknum[name] + 1e-5)))
    base = self.base_layer(rows)
    hidden = torch.nn.functional.linear(rows, factor.to(base.dtype))
    return torch.addmm(base, hidden, self.lora_B[name].t().to(base.dtype)).view(*x.shape[:-1], -1)


class Theirs:
    def __init__(self, variant, shape, dtype):
        torch.manual_seed(0)
        config = DebertaV2Config(
            vocab_size=1000,
            num_hidden_layers=shape.layers,
            hidden_size=shape.hidden,
            num_attention_heads=shape.heads,
            intermediate_size=shape.intermediate,
            hidden_dropout_prob=shape.dropout,
            attention_probs_dropout_prob=shape.dropout,
            max_position_embeddings=512,
            relative_attention=True,
            position_buckets=256,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
            max_relative_positions=-1,
            type_vocab_size=0,
            layer_norm_eps=1e-7,
            num_labels=2,
        )
        common = dict(target_modules=TARGETS, lora_alpha=16, lora_dropout=0.0, modules_to_save=["classifier", "pooler"])
        if variant == "lora":
            adapter = LoraConfig(r=8, **common)
        else:
            adapter = AdaLoraConfig(init_r=12, target_r=8, total_step=100, **common)
        base = DebertaV2ForSequenceClassification(config).to(dtype)
        # Around PEFT's own forward pass, which adds the regularizer.
        self.model = get_peft_model(base, adapter).base_model.model.train()
        self.variant = variant
        ids = torch.randint(5, 1000, (shape.rows, shape.width))
        self.batch = dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.arange(shape.rows) % 2)
        self.plain = SVDLinear.forward

    def step(self):
        SVDLinear.forward = accumulated if self.variant == "addmm" else self.plain
        start = time.perf_counter()
        loss = self.model(**self.batch).loss
        forward = time.perf_counter()
        loss.backward()
        both = time.perf_counter()
        SVDLinear.forward = self.plain
        for parameter in self.model.parameters():
            parameter.grad = None
        return (forward - start) * 1e3, (both - start) * 1e3


class Ours:
    def __init__(self, program, shape, threads, dtype):
        arguments = [shape.layers, shape.hidden, shape.heads, shape.intermediate, shape.rows, shape.width]
        arguments += [shape.dropout, threads, dtype]
        self.process = subprocess.Popen(
            [program, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def step(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        forward, both = self.process.stdout.readline().split()
        return float(forward), float(both)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--intermediate", type=int, default=3072)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--variants", nargs="*", default=["adalora", "addmm", "lora"])
    parser.add_argument("--program", default="target/release/examples/deberta_step")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    sides = {"ours": Ours(options.program, options, options.threads, options.dtype)}
    sides |= {variant: Theirs(variant, options, dtype) for variant in options.variants}
    times = {name: [] for name in sides}
    chance, order, warm_up = random.Random(0), list(sides), 2
    for round in range(warm_up + options.rounds):
        chance.shuffle(order)
        for name in order:
            took = sides[name].step()
            if round >= warm_up:
                times[name].append(took)

    print({key: value for key, value in vars(options).items() if key not in ("variants", "program")})
    print(f"{'':10}{'forward':>10}{'backward':>10}{'both, ms':>10}{'of ours':>10}")
    for name, rounds in times.items():
        forward, both = (statistics.median(own[part] for own in rounds) for part in (0, 1))
        ratio = statistics.median(own[1] / ours[1] for own, ours in zip(rounds, times["ours"]))
        print(f"{name:10}{forward:10.1f}{both - forward:10.1f}{both:10.1f}{ratio:10.2f}")


if __name__ == "__main__":
    main()
