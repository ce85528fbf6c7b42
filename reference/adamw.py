"""PyTorch's AdamW over 50 steps, with clipping and transformers' schedules with warm-up.

Makes `values/adamw.{json,safetensors}`. Two groups, weight decay 0.1 and 0. The gradients of `c` are near AdamW's
eps, those of `d` are exactly 0 in the first ten steps.
"""

from common import generator, made_with, normal, save_json, save_tensors

import torch
from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup

STEPS, WARMUP, EVERY = 50, 7, 10
LR, BETAS, EPS, MAX_NORM = 1e-2, (0.9, 0.999), 1e-8, 1.0
SHAPES = {"a": (4, 3), "b": (2, 3, 2), "c": (5,), "d": (3, 1)}
DECAY = {"a": 0.1, "b": 0.1, "c": 0.0, "d": 0.0}


def problem():
    gen = generator(5)
    initial = {name: normal(shape, 1.0, gen) for name, shape in SHAPES.items()}
    size = torch.linspace(-1.5, 0.2, STEPS).exp()  # from well below to well above the norm that clips
    gradients = {}
    for name, shape in SHAPES.items():
        each = size if name != "c" else torch.full((STEPS,), 3e-8)
        noise = normal((STEPS, *shape), 0.2, gen) + normal(shape, 0.1, gen)
        gradients[name] = noise * each.view(-1, *[1] * len(shape))
    gradients["d"][:10] = 0
    return initial, gradients


def run(schedule, initial, gradients, dtype):
    parameters = {name: torch.nn.Parameter(value.to(dtype, copy=True)) for name, value in initial.items()}
    groups = [
        {"params": [p for name, p in parameters.items() if DECAY[name] == decay], "weight_decay": decay}
        for decay in (0.1, 0.0)
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)
    scheduler = schedule(optimizer)
    lrs, norms, after = [], [], {name: [] for name in parameters}
    for step in range(STEPS):
        for name, parameter in parameters.items():
            parameter.grad = gradients[name][step].to(dtype, copy=True)
        norms.append(torch.nn.utils.clip_grad_norm_(list(parameters.values()), MAX_NORM).item())
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        if (step + 1) % EVERY == 0:
            for name, parameter in parameters.items():
                after[name].append(parameter.detach().clone())
    tensors = {f"after.{name}": torch.stack(values) for name, values in after.items()}
    for name, parameter in parameters.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    return lrs, norms, tensors


def main():
    initial, gradients = problem()
    tensors = {f"initial.{k}": v for k, v in initial.items()} | {f"grad.{k}": v for k, v in gradients.items()}
    info = {
        "made_with": made_with("adamw.py"),
        "settings": {
            "steps": STEPS,
            "warmup_steps": WARMUP,
            "saved_every": EVERY,
            "lr": LR,
            "betas": list(BETAS),
            "eps": EPS,
            "max_norm": MAX_NORM,
            "weight_decay": DECAY,
        },
    }
    for name, schedule in (
        ("linear", lambda optimizer: get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)),
        ("constant", lambda optimizer: get_constant_schedule_with_warmup(optimizer, WARMUP)),
    ):
        lrs, norms, values = run(schedule, initial, gradients, torch.float32)
        _, _, exact = run(schedule, initial, gradients, torch.float64)
        assert 10 < sum(norm > MAX_NORM for norm in norms) < 40
        tensors |= {f"{name}.{key}": value for key, value in values.items()}
        info[name] = {
            "lr": lrs,
            "grad_norm": norms,
            "deviation_from_float64": max((values[key] - exact[key]).abs().max().item() for key in values),
        }
    save_tensors("adamw", tensors)
    save_json("adamw", info)
    print("adamw", {name: info[name]["deviation_from_float64"] for name in ("linear", "constant")})


if __name__ == "__main__":
    main()
