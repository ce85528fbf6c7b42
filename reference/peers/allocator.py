"""AdaLoRA's allocator and regularizer alone, PEFT's and the authors', and what memory allows.

    python allocator.py --official CHECKOUT --threads 1

72 adapters of DeBERTaV3-base at rank 12, inside the whole model, since both codes walk over all its parameters. `cold`
comes after streaming through 1 GiB. CPU time is that of all threads.

What both codes' `update_ipt` computes is also there in place on one flat buffer, and fused into one loop by `torch.compile`,
which needs a C++ compiler and Python's headers.

The limit is that of six streams, p, g and both averages read, both averages written: a triad (c = a + 3 b) counts
three, but the hardware moves four, as c is read before it is written. Hence 6 / 4 of the time of a triad.
"""

import argparse
import re
import statistics
import sys

import torch
from transformers import AutoModel

from shared import TARGETS, adalora_model, encoder, fill, in_turn


def official_model(loralib):
    """The same encoder built from the authors' `SVDLinear`."""
    model = AutoModel.from_config(encoder("deberta-base", vocab_size=1000))
    for name, linear in list(model.named_modules()):
        if re.fullmatch(TARGETS, name):
            parent, _, child = name.rpartition(".")
            layer = loralib.SVDLinear(linear.in_features, linear.out_features, r=12, lora_alpha=16)
            setattr(model.get_submodule(parent), child, layer)
    fill(model)
    return model


@torch.no_grad()
def in_place(p, g, sensitivity, uncertainty, scratch):
    torch.mul(p, g, out=scratch).abs_()
    sensitivity.lerp_(scratch, 0.15)
    uncertainty.lerp_(scratch.sub_(sensitivity).abs_(), 0.15)


@torch.no_grad()
def one_loop(p, g, sensitivity, uncertainty):
    seen = (p * g).abs()
    mean = 0.85 * sensitivity + 0.15 * seen
    uncertainty.copy_(0.85 * uncertainty + 0.15 * (seen - mean).abs())
    sensitivity.copy_(mean)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", required=True, help="a checkout of QingruZhang/AdaLoRA at d10f5eb")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sys.path.insert(0, f"{options.official}/loralib")
    import loralib

    peft = adalora_model("deberta-base").base_model
    allocator = peft.rankallocator
    authors = official_model(loralib)
    authors_allocator = loralib.RankAllocator(
        authors, lora_r=12, target_rank=8, init_warmup=1, final_warmup=1, mask_interval=1, beta1=0.85, beta2=0.85
    )
    authors_allocator.global_step = 1
    authors_allocator.update_ipt(authors)
    adapters = len(allocator.name_set)
    budget = 10 * adapters
    assert adapters == len(authors_allocator.name_set) == 72

    def flat(tensors):
        return torch.cat([tensor.flatten() for tensor in tensors])

    parameters = [(name, p) for name, p in peft.named_parameters() if "lora_" in name]
    names = [name.removeprefix("model.") for name, _ in parameters]
    p, g = flat(p.detach() for _, p in parameters), flat(p.grad for _, p in parameters)
    averages = [flat(part[name] for name in names) for part in (allocator.exp_avg_ipt, allocator.exp_avg_unc)]
    flat_averages, fused_averages = [[average.clone() for average in averages] for _ in range(2)]
    scratch = torch.empty_like(p)
    # Torch's cache of compiled code would not notice another number of threads by itself.
    fused = torch.compile(one_loop, options={"cpp.threads": options.threads})

    # One pass of each, from the same state, gives what PEFT's gives.
    allocator.update_ipt(peft.model)
    in_place(p, g, *flat_averages, scratch)
    fused(p, g, *fused_averages)
    for i, part in enumerate((allocator.exp_avg_ipt, allocator.exp_avg_unc)):
        torch.testing.assert_close(flat_averages[i], flat(part[name] for name in names))
        torch.testing.assert_close(fused_averages[i], flat_averages[i])

    def zero(model):
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()

    def regularize(loss, model):
        zero(model)
        loss().backward()

    variants = {
        "PEFT update_ipt": lambda: allocator.update_ipt(peft.model),
        "authors update_ipt": lambda: authors_allocator.update_ipt(authors),
        "in place, one flat buffer": lambda: in_place(p, g, *flat_averages, scratch),
        "fused, one flat buffer": lambda: fused(p, g, *fused_averages),
        "PEFT mask_to_budget": lambda: allocator.mask_to_budget(peft.model, budget),
        "authors mask_to_target_rank": lambda: authors_allocator.mask_to_target_rank(authors, budget),
        "walk over the parameters": lambda: sum("lora_" in name for name, _ in peft.model.named_parameters()),
        "PEFT regularizer, forward": lambda: peft().loss,
        "PEFT regularizer": lambda: regularize(lambda: peft().loss, peft),
        "authors compute_orth_regu": lambda: regularize(lambda: loralib.compute_orth_regu(authors), authors),
        "zeroing the gradients": lambda: zero(peft),
    }
    # Apart, and last: zeroing leaves `update_ipt` nothing but zeros to multiply.
    regularizers = {name: variants.pop(name) for name in list(variants)[-4:]}

    stream = torch.zeros(2**28)
    warm, cold = {}, {}
    for part in (variants, regularizers):
        warm |= in_turn(part, options.rounds)
        cold |= in_turn(part, options.rounds // 3, before=lambda: stream.add_(1.0))

    print(f"{len(parameters)} tensors, {p.numel():,} values, {options.threads} threads, {options.rounds} rounds, ms")
    print(f"{'':30}{'CPU warm':>10}{'cold':>8}{'wall warm':>12}{'cold':>8}{'best':>8}")
    for name in warm:
        (wall, cpu), (cold_wall, cold_cpu) = ([statistics.median(t) for t in zip(*x[name])] for x in (warm, cold))
        best = min(wall for wall, _ in warm[name])
        print(f"{name:30}{cpu:10.2f}{cold_cpu:8.2f}{wall:12.2f}{cold_wall:8.2f}{best:8.2f}")
    for label, size, rounds in (("these values", p.numel(), 40), ("1 GiB", 2**28, 5)):
        a, b, c = torch.ones(size), torch.ones(size), torch.zeros(size)
        triad = in_turn({"": lambda: torch.add(a, b, alpha=3.0, out=c)}, rounds)[""]
        best = min(wall for wall, _ in triad) / size
        limit = best * 6 / 4 * p.numel()
        print(f"best triad, arrays of {label}: {12e-6 / best:.1f} GB/s, limit of the pass {limit:.2f} ms")


if __name__ == "__main__":
    main()
