"""Full fine-tuning, BitFit and bottleneck adapters by transformers and AdapterHub's `adapters`; cosines by the authors.

Makes

* `values/methods-{bert,deberta}.{json,safetensors}`: on the checkpoints `bert-random` and `deberta-odd`, gradients of all
  tensors of the encoder; bottlenecks of Houlsby and Pfeiffer with their logits and gradients;
* `values/cosines.{json,safetensors}`: the regularizer that the authors' code has for LoRA.

  python methods.py --official CHECKOUT       # a checkout of QingruZhang/AdaLoRA at d10f5eb

Needs the versions of `requirements-adapters.txt`, and the values of `bert.py` and `deberta.py`, whose batches it takes.
Everything in evaluation mode (no dropout).
"""

import argparse
import ast
from pathlib import Path

from common import VALUES, generator, normal, save_json, save_tensors

import adapters
import torch
import transformers
from safetensors.torch import load_file

WIDTH = 5
CASES = {"bert": ("bert-random", ""), "deberta": ("deberta-odd", "long.")}
# AdapterHub's names of the two; the defaults are the papers' places and the nonlinearities of the authors' code.
BOTTLENECKS = {"houlsby": adapters.DoubleSeqBnConfig, "pfeiffer": adapters.SeqBnConfig}


def made_with():
    return {
        "script": "methods.py",
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "adapters": adapters.__version__,
    }


def batch(name, prefix):
    """The recorded batch without rows that have no token, whose logits mean nothing."""
    recorded = load_file(VALUES / f"{name}.safetensors")
    keys = ("input_ids", "attention_mask", "token_type_ids", "labels")
    rows = recorded[f"{prefix}attention_mask"].sum(dim=1) > 0
    return {key: recorded[prefix + key][rows] for key in keys if prefix + key in recorded}


def model_of(folder):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    return model.eval()


def full(folder, inputs):
    model = model_of(folder)
    out = model(**inputs)
    out.loss.backward()
    gradients = {f"full.grad.{name}": p.grad for name, p in model.base_model.named_parameters(model.base_model_prefix)}
    gradients = {name: grad for name, grad in gradients.items() if "pooler" not in name}
    assert all(grad is not None for grad in gradients.values())
    return {"full.logits": out.logits, **gradients}


def bottlenecks(folder, inputs, method, seed):
    model = model_of(folder)
    adapters.init(model)
    hidden = model.config.hidden_size
    config = BOTTLENECKS[method](reduction_factor=hidden / WIDTH)
    model.add_adapter("default", config=config)
    model.train_adapter("default")
    model.eval()
    own = {name: p for name, p in model.named_parameters() if ".adapters." in name}
    gen = generator(seed)
    with torch.no_grad():
        for name, parameter in sorted(own.items()):
            parameter.copy_(normal(parameter.shape, 0.3, gen))
    out = model(**inputs)
    out.loss.backward()
    blocks = model.config.num_hidden_layers
    assert len(own) == blocks * 4 * (2 if method == "houlsby" else 1), sorted(own)
    values = {f"{method}.{name}": parameter for name, parameter in own.items()}
    gradients = {f"{method}.grad.{name}": parameter.grad for name, parameter in own.items()}
    return {f"{method}.logits": out.logits, **values, **gradients}


def methods():
    for case, (name, prefix) in CASES.items():
        folder, inputs = VALUES / name, batch(name, prefix)
        values = full(folder, inputs)
        for seed, method in enumerate(BOTTLENECKS, 51):
            values |= bottlenecks(folder, inputs, method, seed)
        save_tensors(f"methods-{case}", inputs | values)
        info = {"made_with": made_with(), "checkpoint": name, "width": WIDTH}
        save_json(f"methods-{case}", info)
        print(case, info, {key: list(value.shape) for key, value in values.items() if "logits" in key})


def cosines(official):
    """The method of the authors' Trainer, taken out of it: the class needs the whole of their fork."""
    source = (official / "NLU/src/transformers/trainer.py").read_text()
    name = "compute_frd_orth_regu"
    [method] = [node for node in ast.walk(ast.parse(source)) if getattr(node, "name", None) == name]
    scope = {"torch": torch}
    exec(compile(ast.Module([method], []), "trainer.py", "exec"), scope)
    gen = generator(53)
    tensors, cases = {}, {}
    # What is not random is a start of LoRA: all of B is 0.
    for case, (rank, shapes, start) in {"r3": (3, [(5, 7), (3, 4)], False), "start": (4, [(6, 2)], True)}.items():
        model = torch.nn.Module()
        for number, (d_in, d_out) in enumerate(shapes, 1):
            b = torch.zeros(d_out, rank) if start else normal((d_out, rank), 0.7, gen)
            layer = torch.nn.Module()
            layer.lora_A = torch.nn.Parameter(normal((rank, d_in), 0.7, gen))
            layer.lora_B = torch.nn.Parameter(b)
            model.add_module(f"layer{number}", layer)
        value = scope[name](None, model)
        value.backward()
        for path, parameter in model.named_parameters():
            tensors |= {f"{case}.{path}": parameter, f"{case}.grad.{path}": parameter.grad}
        cases[case] = {"r": rank, "shapes": [list(shape) for shape in shapes], "value": value.item()}
    save_tensors("cosines", tensors)
    save_json("cosines", {"made_with": made_with() | {"official": "d10f5eb"}, "cases": cases})
    print("cosines", cases)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--official", required=True, type=Path, help="a checkout of QingruZhang/AdaLoRA at d10f5eb"
    )
    official = parser.parse_args().official
    methods()
    cosines(official)


if __name__ == "__main__":
    main()
