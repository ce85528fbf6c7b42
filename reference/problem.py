"""The small regression problem on which all allocators run.

Four linear layers with tanh between. The targets come from a teacher: the same network with a known low-rank update
in some of its layers. Every step has its own batch.
"""

from dataclasses import asdict, dataclass, replace

import torch

from common import generator, normal

# (d_in, d_out) of layer1 ... layer4, which is also the adapters' order.
SHAPES = [(5, 7), (7, 3), (3, 6), (6, 4)]
NAMES = [f"layer{number}" for number in range(1, len(SHAPES) + 1)]


@dataclass(frozen=True)
class Settings:
    """One run. `gamma` weighs the regularizer, `max_norm` clips the gradient, `planted` is the teacher's rank."""

    seed: int = 3
    planted: tuple = (1, 2, 0, 1)
    rows: int = 8
    total_steps: int = 30
    init_r: int = 3
    target_r: int = 1
    t_init: int = 4
    t_final: int = 8
    delta_t: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    alpha: int = 7
    gamma: float = 0.1
    init_std: float = 0.02
    lr: float = 5e-2
    warmup_steps: int = 3
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 1e-8
    weight_decay: float = 0.01
    max_norm: float = 0.5

    def change(self, **values):
        return replace(self, **values)

    def to_json(self):
        return {
            **asdict(self),
            "planted": list(self.planted),
            "adapters": NAMES,
            "shapes": [list(s) for s in SHAPES],
        }


@dataclass
class Problem:
    """Frozen layers, adapters at their start (lambda 0), inputs `(steps, rows, 5)` and targets `(steps, rows, 4)`."""

    weight: list
    bias: list
    a: list
    e: list
    b: list
    inputs: torch.Tensor
    targets: torch.Tensor

    def tensors(self):
        """By the names used in the saved files."""
        out = {"inputs": self.inputs, "targets": self.targets}
        for index, name in enumerate(NAMES):
            for field in ("weight", "bias", "a", "e", "b"):
                out[f"initial.{name}.{field}"] = getattr(self, field)[index]
        return out


def make_problem(settings):
    gen = generator(settings.seed)
    r = settings.init_r
    weight = [normal((d_out, d_in), d_in**-0.5, gen) for d_in, d_out in SHAPES]
    bias = [normal((d_out,), 0.1, gen) for _, d_out in SHAPES]
    a = [normal((r, d_in), settings.init_std, gen) for d_in, _ in SHAPES]
    e = [torch.zeros(r, 1) for _ in SHAPES]
    b = [normal((d_out, r), settings.init_std, gen) for _, d_out in SHAPES]
    teacher = [
        w + normal((d_out, rank), 1.0, gen) @ normal((rank, d_in), d_in**-0.5, gen)
        for w, (d_in, d_out), rank in zip(weight, SHAPES, settings.planted)
    ]
    inputs = normal((settings.total_steps, settings.rows, SHAPES[0][0]), 1.0, gen)
    return Problem(weight, bias, a, e, b, inputs, network(inputs, teacher, bias))


def network(x, weight, bias):
    for index in range(len(SHAPES)):
        x = x @ weight[index].T + bias[index]
        if index + 1 < len(SHAPES):
            x = torch.tanh(x)
    return x
