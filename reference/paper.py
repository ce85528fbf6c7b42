"""AdaLoRA as the paper prints it, in f64, on the same problem as `allocator.py`. No released code does this.

Makes `values/allocator-paper.{json,safetensors}` (all tensors f64; the start and the batches are f32 values).

Where it departs from the authors' code and PEFT:

* importance sees the weights before the step and the gradient before clipping (algorithm 1);
* the regularizer is the sum of squares, gamma * sum_k (||P^T P - I||^2 + ||Q Q^T - I||^2) (equations 4 and 5);
* the scale is alpha / r, without 1e-5;
* exactly b(t) triplets live, ties to the earlier triplet;
* the last allocation falls on T - t_final whatever delta_t is, by the importance of the step before, and holds.

Where it follows the code: b(t), since equation 14 as printed starts above b(0); clipping, AdamW and its schedule, of
which the paper says nothing.
"""

import torch

from common import made_with, save_json, save_tensors
from problem import NAMES, SHAPES, Settings, make_problem, network

FIELDS = ("a", "e", "b")


def regularizer(adapters):
    total = 0.0
    for a, _, b in adapters:
        identity = torch.eye(len(a), dtype=a.dtype)
        total = total + ((a @ a.T - identity) ** 2).sum() + ((b.T @ b - identity) ** 2).sum()
    return total


def budget(step, settings):
    initial, target = settings.init_r * len(SHAPES), settings.target_r * len(SHAPES)
    if step <= settings.t_init:
        return initial
    if step > settings.total_steps - settings.t_final:
        return target
    window = settings.total_steps - settings.t_init - settings.t_final
    return int((initial - target) * (1 - (step - settings.t_init) / window) ** 3 + target)


def learning_rate(step, settings):
    """Linear warm-up from 0, then linear decay to 0 at the end."""
    if step < settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    return settings.lr * (settings.total_steps - step) / (settings.total_steps - settings.warmup_steps)


def importance(sensitivity, uncertainty):
    """`(adapters, r)`: equation 7, s(lambda) + mean of s over a column of P + mean of s over a row of Q."""
    rows = []
    for adapter in range(len(SHAPES)):
        a, e, b = (sensitivity[adapter, field] * uncertainty[adapter, field] for field in FIELDS)
        rows.append(e.flatten() + b.mean(dim=0) + a.mean(dim=1))
    return torch.stack(rows)


def choose(scores, count):
    """The `count` largest of all scores, as flags in the shape of `scores`."""
    flat = scores.flatten().tolist()
    ranking = sorted(range(len(flat)), key=lambda at: (-flat[at], at))
    live = torch.zeros(len(flat), dtype=torch.bool)
    live[ranking[:count]] = True
    return live.view(scores.shape)


def run(settings):
    problem = make_problem(settings)
    weight = [w.double() for w in problem.weight]
    bias = [c.double() for c in problem.bias]
    adapters = [
        tuple(value.double().requires_grad_() for value in triplets)
        for triplets in zip(problem.a, problem.e, problem.b)
    ]
    parameters = {(k, field): p for k, triplets in enumerate(adapters) for field, p in zip(FIELDS, triplets)}
    mean = {key: torch.zeros_like(p) for key, p in parameters.items()}  # Adam's moments
    square = {key: torch.zeros_like(p) for key, p in parameters.items()}
    sensitivity = {key: torch.zeros_like(p) for key, p in parameters.items()}
    uncertainty = {key: torch.zeros_like(p) for key, p in parameters.items()}
    scale = settings.alpha / settings.init_r
    last = settings.total_steps - settings.t_final
    live = torch.ones(len(SHAPES), settings.init_r, dtype=torch.bool)
    scalars = {key: [] for key in ("loss", "task", "regularizer", "grad_norm", "lr", "budget", "masked", "live")}
    rows = {}

    def record(adapter, name, value):
        rows.setdefault(f"{NAMES[adapter]}.{name}", []).append(value.detach().clone())

    for step in range(settings.total_steps):
        adapted = [w + scale * (b * e.T) @ a for w, (a, e, b) in zip(weight, adapters)]
        output = network(problem.inputs[step].double(), adapted, bias)
        task = ((output - problem.targets[step].double()) ** 2).mean()
        penalty = settings.gamma * regularizer(adapters)
        gradients = dict(zip(parameters, torch.autograd.grad(task + penalty, list(parameters.values()))))

        # Importance, before the step.
        if step < last:
            for key, p in parameters.items():
                now = (p.detach() * gradients[key]).abs()
                sensitivity[key] = settings.beta1 * sensitivity[key] + (1 - settings.beta1) * now
                apart = (now - sensitivity[key]).abs()
                uncertainty[key] = settings.beta2 * uncertainty[key] + (1 - settings.beta2) * apart
            scores = importance(sensitivity, uncertainty)

        # Clip and AdamW.
        norm = sum((g**2).sum() for g in gradients.values()).sqrt()
        clip = min(1.0, settings.max_norm / (norm.item() + 1e-6))
        lr = learning_rate(step, settings)
        with torch.no_grad():
            for key, p in parameters.items():
                g = gradients[key] * clip
                mean[key] = settings.adam_beta1 * mean[key] + (1 - settings.adam_beta1) * g
                square[key] = settings.adam_beta2 * square[key] + (1 - settings.adam_beta2) * g**2
                unbiased = mean[key] / (1 - settings.adam_beta1 ** (step + 1))
                size = (square[key] / (1 - settings.adam_beta2 ** (step + 1))).sqrt() + settings.adam_eps
                p.mul_(1 - lr * settings.weight_decay).sub_(lr * unbiased / size)
                record(key[0], f"{key[1]}.grad", gradients[key])
                record(key[0], f"{key[1]}.stepped", p)
                if step < last:
                    record(key[0], f"{key[1]}.sensitivity", sensitivity[key])
                    record(key[0], f"{key[1]}.uncertainty", uncertainty[key])

        # Allocate, or hold.
        count = budget(step, settings)
        allocates = step == last or settings.t_init < step < last and step % settings.delta_t == 0
        if allocates:
            live = choose(scores, count)
        masked = allocates or step > last
        flags = live if masked else torch.ones_like(live)
        with torch.no_grad():
            for adapter, (_, e, _) in enumerate(adapters):
                e.masked_fill_(~flags[adapter].view(-1, 1), 0.0)
                record(adapter, "e.masked", e)
                record(adapter, "live", flags[adapter])
                if step < last:
                    record(adapter, "importance", scores[adapter])
        assert not masked or int(flags.sum()) == count
        scalars["loss"].append((task + penalty).item())
        scalars["task"].append(task.item())
        scalars["regularizer"].append(penalty.item())
        scalars["grad_norm"].append(norm.item())
        scalars["lr"].append(lr)
        scalars["budget"].append(count)
        scalars["masked"].append(masked)
        scalars["live"].append(flags.sum(dim=1).tolist())
    tensors = {name: value.double() for name, value in problem.tensors().items()}
    return scalars, {**tensors, **{name: torch.stack(values) for name, values in rows.items()}}


def main():
    from allocator import margin

    settings = Settings(seed=2, delta_t=3, gamma=0.1, max_norm=0.6)
    scalars, tensors = run(settings)
    clipped = sum(norm > settings.max_norm for norm in scalars["grad_norm"])
    assert 5 <= clipped <= settings.total_steps - 5, f"{clipped} steps clip"
    info = {
        "made_with": made_with("paper.py"),
        "settings": settings.to_json(),
        "observed_steps": settings.total_steps - settings.t_final,
        "final_ranks": scalars["live"][-1],
        "clipped_steps": clipped,
        "smallest_gap": margin(scalars, tensors),
        "steps": scalars,
    }
    save_json("allocator-paper", info)
    save_tensors("allocator-paper", tensors)
    print(
        "paper",
        {k: info[k] for k in ("final_ranks", "clipped_steps", "smallest_gap")},
        [round(n, 3) for n in scalars["grad_norm"]],
    )


if __name__ == "__main__":
    main()
