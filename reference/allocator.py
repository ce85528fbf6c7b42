"""Runs the real PEFT AdaLoRA code and the authors' `loralib` for 30 steps on a small network, and saves every step.

Makes `values/allocator-{peft-dt1,peft-dt3,official-dt1,official-dt3,ends-at-rank-0}.{json,safetensors}`,
`values/selection.json` (ties) and `values/budget.json`. The preset `paper` has its own script, `paper.py`.

  python allocator.py --official CHECKOUT       # a checkout of QingruZhang/AdaLoRA at d10f5eb

Order in a step, in both codes: backward, clip, AdamW, learning-rate step, importance, mask, zero.
"""

import argparse
import copy
import math
import random
import sys
from pathlib import Path
from types import SimpleNamespace

from common import made_with, save_json, save_tensors
from problem import NAMES, SHAPES, Settings, make_problem

import torch
from peft import AdaLoraConfig, get_peft_model
from peft.tuners.adalora.layer import RankAllocator as PeftAllocator
from transformers import get_linear_schedule_with_warmup

FIELDS = ("a", "e", "b")
PEFT_NAMES = {"a": "lora_A", "e": "lora_E", "b": "lora_B"}


class Network(torch.nn.Module):
    """Four linear layers with tanh between; returns a `loss`, to which PEFT adds its regularizer in place."""

    def __init__(self, layers):
        super().__init__()
        for name, layer in zip(NAMES, layers):
            self.add_module(name, layer)

    def forward(self, x, target):
        for name in NAMES:
            x = getattr(self, name)(x)
            if name != NAMES[-1]:
                x = torch.tanh(x)
        loss = torch.nn.functional.mse_loss(x, target)
        return SimpleNamespace(loss=loss, task=loss.detach().clone())


class Peft:
    """The network adapted by PEFT. Called through `base_model`: otherwise PEFT leaves the regularizer out."""

    def __init__(self, problem, settings, dtype):
        layers = []
        for (d_in, d_out), weight, bias in zip(SHAPES, problem.weight, problem.bias):
            layer = torch.nn.Linear(d_in, d_out)
            layer.weight.data.copy_(weight)
            layer.bias.data.copy_(bias)
            layers.append(layer)
        config = AdaLoraConfig(
            target_modules=NAMES,
            init_r=settings.init_r,
            target_r=settings.target_r,
            tinit=settings.t_init,
            tfinal=settings.t_final,
            deltaT=settings.delta_t,
            beta1=settings.beta1,
            beta2=settings.beta2,
            orth_reg_weight=settings.gamma,
            total_step=settings.total_steps,
            lora_alpha=settings.alpha,
        )
        self.model = get_peft_model(Network(layers), config).base_model
        self.model.to(dtype)
        self.config = config
        self.allocator = self.model.rankallocator
        named = dict(self.model.model.named_parameters())
        self.keys = {(n, f): f"{n}.{PEFT_NAMES[f]}.default" for n in NAMES for f in FIELDS}
        self.parameters = {key: named[name] for key, name in self.keys.items()}

    def loss(self, x, target):
        out = self.model(x, target)
        return out.loss, out.task

    def allocate(self, step):
        """The pattern of this step's mask, or None; and the budget by PEFT's schedule."""
        last = self.config.total_step - self.config.tfinal
        budget, scheduled = self.allocator.budget_schedule(step)
        self.model.update_and_allocate(step)
        if not (scheduled or step == last):
            return None, budget
        pattern = self.config.rank_pattern
        return [torch.tensor(pattern[self.keys[n, "e"]]) for n in NAMES], budget

    def importance(self):
        """Triplet importance as the allocator itself combines it, on a copy so that nothing is masked."""
        seen, real = [], self.allocator._combine_ipt
        self.allocator._combine_ipt = lambda *parts: seen.append(real(*parts)) or seen[-1]
        self.allocator.mask_to_budget(copy.deepcopy(self.model.model), self.allocator.init_bgt - 1)
        self.allocator._combine_ipt = real
        return seen


class Official:
    """The network built from `loralib`'s SVDLinear."""

    def __init__(self, problem, settings, dtype, loralib):
        layers = []
        for (d_in, d_out), weight, bias in zip(SHAPES, problem.weight, problem.bias):
            layer = loralib.SVDLinear(
                d_in, d_out, r=settings.init_r, lora_alpha=settings.alpha, merge_weights=False
            )
            layer.weight.data.copy_(weight)
            layer.bias.data.copy_(bias)
            layer.bias.requires_grad_(False)
            layers.append(layer)
        self.model = Network(layers).to(dtype)
        self.gamma = settings.gamma
        self.regularizer = loralib.compute_orth_regu
        self.allocator = loralib.RankAllocator(
            self.model,
            lora_r=settings.init_r,
            target_rank=settings.target_r,
            init_warmup=settings.t_init,
            final_warmup=settings.t_final,
            mask_interval=settings.delta_t,
            beta1=settings.beta1,
            beta2=settings.beta2,
            total_step=settings.total_steps,
        )
        named = dict(self.model.named_parameters())
        self.keys = {(n, f): f"{n}.{PEFT_NAMES[f]}" for n in NAMES for f in FIELDS}
        self.parameters = {key: named[name] for key, name in self.keys.items()}

    def loss(self, x, target):
        out = self.model(x, target)
        return out.loss + self.regularizer(self.model, regu_weight=self.gamma), out.task

    def allocate(self, step):
        budget, threshold = self.allocator.update_and_mask(self.model, step)
        if threshold is None:
            return None, budget
        return [importance > threshold for importance in self.importance()], budget

    def importance(self):
        seen, real = [], self.allocator._combine_ipt
        self.allocator._combine_ipt = lambda *parts: seen.append(real(*parts)) or seen[-1]
        self.allocator.mask_to_target_rank(copy.deepcopy(self.model), self.allocator.total_rank - 1)
        self.allocator._combine_ipt = real
        return seen


def run(make, settings, dtype=torch.float32):
    """Trains and records. Returns (scalars of each step, tensors)."""
    problem = make_problem(settings)
    adapted = make(problem, settings, dtype)
    for index, name in enumerate(NAMES):
        for field in FIELDS:
            adapted.parameters[name, field].data.copy_(getattr(problem, field)[index])
    parameters = list(adapted.parameters.values())
    optimizer = torch.optim.AdamW(
        parameters,
        lr=settings.lr,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_eps,
        weight_decay=settings.weight_decay,
    )
    scheduler = get_linear_schedule_with_warmup(optimizer, settings.warmup_steps, settings.total_steps)
    scalars = {key: [] for key in ("loss", "task", "regularizer", "grad_norm", "lr", "budget", "masked", "live")}
    rows = {}

    def record(name, value):
        rows.setdefault(name, []).append(value.detach().clone())

    for step in range(settings.total_steps):
        loss, task = adapted.loss(problem.inputs[step].to(dtype), problem.targets[step].to(dtype))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_norm)
        scalars["lr"].append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        for (name, field), parameter in adapted.parameters.items():
            record(f"{name}.{field}.grad", parameter.grad)
            record(f"{name}.{field}.stepped", parameter)
        last = settings.total_steps - settings.t_final
        pattern, budget = adapted.allocate(step)
        if step < last:
            for key, name in adapted.keys.items():
                record(f"{'.'.join(key)}.sensitivity", adapted.allocator.exp_avg_ipt[name])
                record(f"{'.'.join(key)}.uncertainty", adapted.allocator.exp_avg_unc[name])
            importance = adapted.importance()
            for name, value in zip(NAMES, importance):
                record(f"{name}.importance", value)
        live = pattern or [torch.ones(settings.init_r, dtype=torch.bool) for _ in NAMES]
        for name, flags in zip(NAMES, live):
            record(f"{name}.live", flags)
            record(f"{name}.e.masked", adapted.parameters[name, "e"])
            # Nothing moves at step 0, where the warm-up's learning rate is 0.
            assert step == 0 or torch.equal(adapted.parameters[name, "e"].view(-1) != 0, flags), (step, name)
        if pattern is not None:
            assert sum(int(flags.sum()) for flags in live) == budget, "a tie"
        scalars["loss"].append(loss.item())
        scalars["task"].append(task.item())
        scalars["regularizer"].append((loss.detach() - task).item())
        scalars["grad_norm"].append(norm.item())
        scalars["budget"].append(budget)
        scalars["masked"].append(pattern is not None)
        scalars["live"].append([int(flags.sum()) for flags in live])
        optimizer.zero_grad()
    return scalars, {**problem.tensors(), **{name: torch.stack(values) for name, values in rows.items()}}


def margin(scalars, tensors):
    """Smallest relative gap between the least kept and the most important removed triplet, over all allocations."""
    gaps = []
    observed = len(tensors["layer1.importance"])
    for step, masked in enumerate(scalars["masked"]):
        if masked:
            at = min(step, observed - 1)
            importance = torch.cat([tensors[f"{name}.importance"][at] for name in NAMES])
            live = torch.cat([tensors[f"{name}.live"][step] for name in NAMES])
            kept, removed = importance[live].min().item(), importance[~live].max().item()
            gaps.append((kept - removed) / kept)
    return min(gaps)


def deviation(tensors, others, suffix):
    """Largest difference, relative to the largest value of the same tensor at the same step."""
    worst = 0.0
    for name, value in tensors.items():
        if name.endswith(suffix):
            value, other = value.double().flatten(1), others[name].double().flatten(1)
            scale = other.abs().amax(1).clamp_min(1e-12)
            worst = max(worst, ((value - other).abs().amax(1) / scale).max().item())
    return worst


def save(case, make, settings):
    scalars, tensors = run(make, settings)
    clipped = sum(norm > settings.max_norm for norm in scalars["grad_norm"])
    assert 5 <= clipped <= settings.total_steps - 5, f"{case}: {clipped} steps clip"
    exact_scalars, exact = run(make, settings, torch.float64)
    assert exact_scalars["live"] == scalars["live"]
    info = {
        "made_with": made_with("allocator.py") | ({"official": "d10f5eb"} if case.startswith("official") else {}),
        "settings": settings.to_json(),
        "observed_steps": settings.total_steps - settings.t_final,
        "final_ranks": scalars["live"][-1],
        "clipped_steps": clipped,
        "smallest_gap": margin(scalars, tensors),
        "deviation_from_float64": {
            key: deviation(tensors, exact, f".{key}")
            for key in ("importance", "sensitivity", "uncertainty", "stepped", "grad")
        },
        "steps": scalars,
    }
    save_json(f"allocator-{case}", info)
    save_tensors(f"allocator-{case}", tensors)
    print(case, {k: info[k] for k in ("final_ranks", "clipped_steps", "smallest_gap", "deviation_from_float64")})
    return scalars, tensors


def compare(peft, official, settings, case):
    """The two codes: equal everywhere, or where they part."""
    last = settings.total_steps - settings.t_final
    differing = sorted(
        {
            int(step)
            for name in peft[1]
            if name.startswith("layer")
            for step in range(len(peft[1][name]))
            if not torch.equal(peft[1][name][step], official[1][name][step])
        }
    )
    print(f"{case}: PEFT and the authors' code differ at steps {differing}, T - t_final is {last}")


# ---------------------------------------------------------------------------------------------- ties


def selections(loralib):
    """What a threshold keeps and what "exactly b, ties to the earlier" keeps, on given scores."""
    rows = []
    for initial, scores, budgets in [
        ([3, 2], [1.0, 2.0, 2.0, 2.0, 0.0], [0, 1, 2, 3, 4, 5]),
        ([4], [1.0, 1.0, 1.0, 1.0], [0, 1, 2, 3, 4]),
        ([4], [-3.0, -1.0, -0.0, 0.0], [1, 2, 3]),
        ([2, 2, 2], [0.5, 0.25, 0.5, 0.25, 0.125, 0.5], [1, 2, 3, 4, 5]),
        ([3, 3], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0], [1, 2, 3]),
        ([3, 1, 2], [3.0, 1.0, 2.0, 9.0, -1.0, -2.0], [1, 3, 5]),
        ([2, 3], [1e-38, 1e-45, 0.0, 2e-45, 1e-38], [1, 2, 3, 4]),
    ]:
        scores = torch.tensor(scores).tolist()  # the f32 values
        for budget in budgets:
            rows.append(
                {
                    "initial": initial,
                    "scores": scores,
                    "budget": budget,
                    "peft": attempt(peft_selection, initial, scores, budget),
                    "official": attempt(official_selection, initial, scores, budget, loralib),
                    "exact": exact_selection(scores, budget),
                }
            )
    return rows


def attempt(select, *arguments):
    try:
        return select(*arguments)
    except RuntimeError as error:
        return str(error).splitlines()[0]


class Triplets(torch.nn.Module):
    """Adapters of one row and one column, lambda 1: what an allocator walks over."""

    def __init__(self, initial, suffix):
        super().__init__()
        for index, r in enumerate(initial):
            layer = torch.nn.Module()
            for name, shape in (("lora_A", (r, 1)), ("lora_E", (r, 1)), ("lora_B", (1, r))):
                value = torch.nn.Parameter(torch.ones(shape))
                if suffix:
                    value = torch.nn.ParameterDict({suffix: value})
                setattr(layer, name, value)
            self.add_module(f"layer{index}", layer)

    def score(self, allocator, scores):
        """Makes `scores` the importance: sensitivity of lambda times an uncertainty of 1, and 0 for P and Q."""
        rest = list(scores)
        for name, parameter in self.named_parameters():
            allocator.exp_avg_ipt[name] = torch.zeros_like(parameter)
            allocator.exp_avg_unc[name] = torch.ones_like(parameter)
            if "lora_E" in name:
                own, rest = rest[: len(parameter)], rest[len(parameter) :]
                allocator.exp_avg_ipt[name] = torch.tensor(own).view(-1, 1)

    def live(self):
        return [bool(x) for n, p in self.named_parameters() if "lora_E" in n for x in p.view(-1) != 0]


def peft_selection(initial, scores, budget):
    model = Triplets(initial, "default")
    allocator = PeftAllocator(model, AdaLoraConfig(total_step=10), "default")
    model.score(allocator, scores)
    allocator.mask_to_budget(model, budget)
    return model.live()


def official_selection(initial, scores, budget, loralib):
    model = Triplets(initial, None)
    allocator = loralib.RankAllocator(model, 1, 1, 1, 1, 1, 0.85, 0.85, total_step=10)
    model.score(allocator, scores)
    allocator.mask_to_target_rank(model, budget)
    return model.live()


def exact_selection(scores, budget):
    ranking = sorted(range(len(scores)), key=lambda at: (-scores[at], at))
    return [at in ranking[:budget] for at in range(len(scores))]


# ---------------------------------------------------------------------------------------------- budget

# Table of GLUE: T, t_init, delta_t, t_final.
GLUE = {
    "mnli": (85904, 8000, 100, 50000),
    "rte": (3900, 600, 1, 1800),
    "qnli": (16370, 2000, 100, 8000),
    "mrpc": (3450, 600, 1, 1800),
    "qqp": (56855, 8000, 100, 25000),
    "sst2": (50520, 6000, 100, 22000),
    "cola": (6700, 800, 10, 3500),
    "stsb": (4500, 800, 10, 2000),
}


def budgets():
    rows = []
    for index, (task, (total, t_init, delta_t, t_final)) in enumerate(GLUE.items()):
        init_r, target_r = [(2, 1), (4, 2), (6, 4), (12, 8)][index % 4] if task != "cola" else (3, 1)
        near = [t + d for t in (t_init, total - t_final) for d in (-1, 0, 1, 2)]
        shrinking = [t for t in range(0, total, 37) if t_init <= t <= total - t_final]
        steps = sorted({0, *near, *shrinking, total - 1})
        rows.append(budget_row(task, init_r, target_r, 72, t_init, t_final, total, delta_t, steps))
    # Here x * x * x rounds to another budget than pow(x, 3).
    rows.append(budget_row("pow", 12, 1, 125, 0, 0, 5, 1, range(5)))
    draw = random.Random(3)
    for _ in range(60):
        init_r = draw.randint(1, 16)
        target_r = draw.randint(1, init_r)
        total = draw.randint(3, 70)
        t_init = draw.randint(0, total // 2)
        t_final = draw.randint(0, total - t_init - 1)
        delta_t = draw.choice([1, 1, 2, 3, 7, 10])
        adapters = draw.choice([1, 2, 5, 12, 36, 72, 125, 192])
        rows.append(
            budget_row("random", init_r, target_r, adapters, t_init, t_final, total, delta_t, range(total))
        )
    return rows


def budget_row(name, init_r, target_r, adapters, t_init, t_final, total, delta_t, steps):
    allocator = PeftAllocator.__new__(PeftAllocator)
    allocator.peft_config = SimpleNamespace(tinit=t_init, tfinal=t_final, total_step=total, deltaT=delta_t)
    allocator.init_bgt, allocator.target_bgt = init_r * adapters, target_r * adapters
    steps = list(steps)
    pairs = [allocator.budget_schedule(step) for step in steps]
    return {
        "name": name,
        "init_r": init_r,
        "target_r": target_r,
        "adapters": adapters,
        "t_init": t_init,
        "t_final": t_final,
        "total_steps": total,
        "delta_t": delta_t,
        "steps": steps,
        "cubic": [budget for budget, _ in pairs],
        "masked": [int(mask or step == total - t_final) for step, (_, mask) in zip(steps, pairs)],
        "masked_official": [int(mask) for _, mask in pairs],
        **{
            curve: [
                plain_budget(share, step, allocator.init_bgt, allocator.target_bgt, t_init, t_final, total)
                for step in steps
            ]
            for curve, share in (
                ("linear", lambda x: 1 - x),
                ("cosine", lambda x: 0.5 * (1 + math.cos(math.pi * x))),
            )
        },
    }


def plain_budget(share, step, initial, target, t_init, t_final, total):
    if step <= t_init:
        return initial
    if step > total - t_final:
        return target
    return int(target + (initial - target) * share((step - t_init) / (total - t_final - t_init)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--official", required=True, type=Path, help="a checkout of QingruZhang/AdaLoRA at d10f5eb"
    )
    sys.path.insert(0, str(parser.parse_args().official / "loralib"))
    from loralib import adalora as loralib

    def official(*arguments):
        return Official(*arguments, loralib)

    base = Settings()
    for delta_t in (1, 3):
        settings = base.change(delta_t=delta_t)
        by_peft = save(f"peft-dt{delta_t}", Peft, settings)
        by_official = save(f"official-dt{delta_t}", official, settings)
        compare(by_peft, by_official, settings, f"dt{delta_t}")
    uneven = Settings(
        seed=2,
        planted=(0, 3, 0, 0),
        init_std=0.1,
        delta_t=2,
        beta1=0.8,
        beta2=0.9,
        alpha=2,
        gamma=0.3,
        weight_decay=0.0,
        warmup_steps=0,
        max_norm=0.2,
    )
    scalars, _ = save("ends-at-rank-0", Peft, uneven)
    assert min(scalars["live"][-1]) == 0 and max(scalars["live"][-1]) > 1, scalars["live"][-1]
    save_json("selection", {"made_with": made_with("allocator.py"), "cases": selections(loralib)})
    save_json("budget", {"made_with": made_with("allocator.py"), "cases": budgets()})


if __name__ == "__main__":
    main()
