"""Single layers of PEFT: LoRA and AdaLoRA forward, backward and merge; orthogonality; how LoRA's A starts.

Makes `values/layers.{json,safetensors}` and `values/orthogonality.{json,safetensors}`.
"""

from types import SimpleNamespace

from common import generator, made_with, normal, save_json, save_tensors

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model

# name: form, d_in, d_out, r, alpha, pattern (which triplets stay when the adapter is compacted; None: not compacted)
LAYERS = {
    "lora-r3": ("lora", 6, 4, 3, 5, None),
    "lora-r1": ("lora", 5, 8, 1, 3, None),
    "adalora-r3": ("adalora", 6, 4, 3, 5, None),
    "adalora-r1": ("adalora", 5, 8, 1, 3, None),
    "adalora-wide": ("adalora", 7, 2, 5, 16, None),
    "adalora-compact": ("adalora", 6, 4, 4, 5, [True, False, False, True]),
    "adalora-compact-r1": ("adalora", 6, 4, 4, 5, [False, False, True, False]),
    "adalora-compact-r0": ("adalora", 6, 4, 4, 5, [False, False, False, False]),
}


class One(torch.nn.Module):
    def __init__(self, weight, bias):
        super().__init__()
        self.layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        self.layer.weight.data.copy_(weight)
        self.layer.bias.data.copy_(bias)

    def forward(self, x):
        return self.layer(x)


def run_layer(form, d_in, d_out, r, alpha, pattern, gen):
    tensors = {
        "weight": normal((d_out, d_in), 0.5, gen),
        "bias": normal((d_out,), 0.5, gen),
        "x": normal((2, 5, d_in), 1.0, gen),
        "cotangent": normal((2, 5, d_out), 1.0, gen),
        "a": normal((r, d_in), 0.7, gen),
        "e": normal((r, 1), 0.7, gen),
        "b": normal((d_out, r), 0.7, gen),
    }
    if form == "lora":
        del tensors["e"]
        config = LoraConfig(r=r, lora_alpha=alpha, target_modules=["layer"])
    else:
        config = AdaLoraConfig(init_r=r, target_r=1, lora_alpha=alpha, target_modules=["layer"], total_step=10)
    model = get_peft_model(One(tensors["weight"], tensors["bias"]), config)
    layer = model.base_model.model.layer

    def adapters():
        if form == "lora":
            return {"a": layer.lora_A["default"].weight, "b": layer.lora_B["default"].weight}
        return {"a": layer.lora_A["default"], "e": layer.lora_E["default"], "b": layer.lora_B["default"]}

    for name, parameter in adapters().items():
        parameter.data.copy_(tensors[name])
    if pattern is not None:
        model.base_model.resize_modules_by_rank_pattern({"layer.lora_E": pattern}, "default")
        tensors |= {f"compact.{name}": parameter for name, parameter in adapters().items()}
    x = tensors["x"].clone().requires_grad_()
    output = model(x)
    (output * tensors["cotangent"]).sum().backward()
    tensors |= {"output": output, "grad.x": x.grad}
    tensors |= {f"grad.{name}": parameter.grad for name, parameter in adapters().items()}
    layer.merge()
    tensors["merged"] = layer.get_base_layer().weight
    tensors["merged_output"] = model(tensors["x"])
    base = torch.nn.functional.linear(tensors["x"], tensors["weight"], tensors["bias"])
    assert torch.equal(output, base) == (pattern is not None and not any(pattern))
    return tensors


def layers():
    gen = generator(7)
    tensors, cases = {}, {}
    for name, (form, d_in, d_out, r, alpha, pattern) in LAYERS.items():
        for key, value in run_layer(form, d_in, d_out, r, alpha, pattern, gen).items():
            tensors[f"{name}.{key}"] = value
        # What is left at rank 0 is PEFT's: 0 + 1e-5 in the divisor, with nothing to divide.
        scale = alpha / r if form == "lora" else alpha / (r + 1e-5)
        cases[name] = {"form": form, "d_in": d_in, "d_out": d_out, "init_r": r, "alpha": alpha, "scale": scale}
        if pattern is not None:
            cases[name]["pattern"] = pattern
    save_tensors("layers", tensors)
    save_json("layers", {"made_with": made_with("lora_layer.py"), "cases": cases, "start": start()})


def start():
    """LoRA's A in PEFT: kaiming_uniform_(a=sqrt(5)), that is uniform within 1 / sqrt(d_in)."""
    rows = []
    for d_in, r in ((768, 64), (128, 64), (5, 2048)):
        torch.manual_seed(0)
        model = get_peft_model(
            One(torch.zeros(4, d_in), torch.zeros(4)), LoraConfig(r=r, target_modules=["layer"])
        )
        layer = model.base_model.model.layer
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        rows.append(
            {
                "d_in": d_in,
                "r": r,
                "bound": d_in**-0.5,
                "largest": a.abs().max().item(),
                "mean": a.mean().item(),
                "std": a.std().item(),
                "std_of_uniform": (3 * d_in) ** -0.5,
                "b_is_zero": bool((b == 0).all()),
            }
        )
        assert 0.99 * d_in**-0.5 < rows[-1]["largest"] <= d_in**-0.5 * (1 + 1e-6)
    return rows


# ---------------------------------------------------------------------------------------------- orthogonality

GAMMA = 0.3
# name: r, (d_in, d_out) of each layer, and the layer whose Gram matrices are exactly the identity.
FACTORS = {
    "r3": (3, [(5, 7), (3, 4), (6, 3)], None),
    "r1": (1, [(4, 2), (1, 5)], None),
    "r4-wide": (4, [(2, 9), (8, 3)], None),
    "r3-exact": (3, [(5, 7), (3, 4)], 1),
    "all-exact": (2, [(5, 7)], 0),
}


class Layers(torch.nn.Module):
    def __init__(self, shapes):
        super().__init__()
        self.names = [f"layer{number}" for number in range(1, len(shapes) + 1)]
        for name, (d_in, d_out) in zip(self.names, shapes):
            self.add_module(name, torch.nn.Linear(d_in, d_out))

    def forward(self):
        return SimpleNamespace(loss=torch.zeros(()))


def sum_of_squares(pairs):
    total = 0.0
    for a, b in pairs:
        identity = torch.eye(len(a))
        total = total + ((a @ a.T - identity) ** 2).sum() + ((b.T @ b - identity) ** 2).sum()
    return total


def orthogonality():
    gen = generator(9)
    tensors, cases = {}, {}
    for case, (r, shapes, exact) in FACTORS.items():
        inner = Layers(shapes)
        config = AdaLoraConfig(
            init_r=r, target_r=1, target_modules=inner.names, orth_reg_weight=GAMMA, total_step=10
        )
        model = get_peft_model(inner, config).base_model
        pairs = []
        for index, name in enumerate(inner.names):
            d_in, d_out = shapes[index]
            layer = getattr(model.model, name)
            a, b = layer.lora_A["default"], layer.lora_B["default"]
            a.data.copy_(torch.eye(r, d_in) if index == exact else normal((r, d_in), 0.5, gen))
            b.data.copy_(torch.eye(d_out, r) if index == exact else normal((d_out, r), 0.5, gen))
            tensors |= {f"{case}.{name}.a": a, f"{case}.{name}.b": b}
            pairs.append((a, b))
        factors = [factor for pair in pairs for factor in pair]
        values = {"mean-of-norms": model().loss, "sum-of-squares": GAMMA * sum_of_squares(pairs)}
        for form, value in values.items():
            gradients = torch.autograd.grad(value, factors)
            assert all(torch.isfinite(gradient).all() for gradient in gradients)
            for index, name in enumerate(inner.names):
                tensors[f"{case}.{form}.{name}.a"] = gradients[2 * index]
                tensors[f"{case}.{form}.{name}.b"] = gradients[2 * index + 1]
        if exact is not None:
            zero = [tensors[f"{case}.mean-of-norms.layer{exact + 1}.{field}"] for field in "ab"]
            assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in zero)
        cases[case] = {
            "r": r,
            "shapes": [list(shape) for shape in shapes],
            "exact_layer": None if exact is None else f"layer{exact + 1}",
            **{form: value.item() for form, value in values.items()},
        }
    save_tensors("orthogonality", tensors)
    save_json("orthogonality", {"made_with": made_with("lora_layer.py"), "gamma": GAMMA, "cases": cases})
    print("orthogonality", cases)


def main():
    layers()
    orthogonality()


if __name__ == "__main__":
    main()
