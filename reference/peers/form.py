"""One adapted linear layer, its product written in equivalent ways: forward and backward, weight and bias frozen.

    python form.py --tokens 2048 --layers 384x384 384x1536 1536x384

Prints the CPU time that the adapter adds to the frozen layer. Every way of writing AdaLoRA's product gives the same output
and the same gradients; LoRA has the same rank, without lambda.
"""

import argparse
import statistics

import torch
from torch.nn.functional import linear

from shared import in_turn

ALPHA, R = 16.0, 12


def lora(x, base, a, e, b, ranknum):
    return base(x) + linear(linear(x, a), b) * (ALPHA / R)


def both_codes(x, base, a, e, b, ranknum):
    result = base(x)
    result += (x @ (a * e).T @ b.T) * ALPHA / (ranknum + 1e-5)
    return result


def one_factor(x, base, a, e, b, ranknum):
    return base(x) + (x @ (a * e).T @ b.T) * (ALPHA / (R + 1e-5))


def scaled_factor(x, base, a, e, b, ranknum):
    return base(x) + x @ (a * (e * (ALPHA / (R + 1e-5)))).T @ b.T


def scaled_linear(x, base, a, e, b, ranknum):
    return base(x) + linear(linear(x, a * (e * (ALPHA / (R + 1e-5)))), b)


def addmm(x, base, a, e, b, ranknum):
    rows = x.flatten(0, -2)
    hidden = linear(rows, a * (e * (ALPHA / (R + 1e-5))))
    return base(rows).addmm_(hidden, b.T).view(*x.shape[:-1], -1)


def addmm_transposed(x, base, a, e, b, ranknum):
    rows = x.flatten(0, -2)
    hidden = (a * (e * (ALPHA / (R + 1e-5)))) @ rows.T
    return base(rows).addmm_(hidden.T, b.T).view(*x.shape[:-1], -1)


FORMS = {
    "PEFT's LoRA": lora,
    "AdaLoRA as in PEFT and the authors' code": both_codes,
    "one factor on the output": one_factor,
    "factor on the matrix of r rows": scaled_factor,
    "the same with F.linear": scaled_linear,
    "accumulated by addmm": addmm,
    "the same, (r, tokens) inside": addmm_transposed,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--layers", nargs="+", default=["384x384", "384x1536", "1536x384"], metavar="INxOUT")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    columns = []
    for layer in options.layers:
        d_in, d_out = map(int, layer.split("x"))
        torch.manual_seed(0)
        weight, bias = torch.randn(d_out, d_in) / d_in**0.5, torch.randn(d_out)
        a, e, b = (torch.randn(shape).mul_(0.02).requires_grad_() for shape in ((R, d_in), (R, 1), (d_out, R)))
        x = torch.randn(16, options.tokens // 16, d_in, requires_grad=True)
        cotangent = torch.randn(16, options.tokens // 16, d_out)
        ranknum = torch.tensor([float(R)])

        def run(form):
            x.grad = a.grad = e.grad = b.grad = None
            output = form(x, lambda x: linear(x, weight, bias), a, e, b, ranknum)
            output.backward(cotangent)
            return output.detach(), x.grad, a.grad, e.grad, b.grad

        expected = run(both_codes)
        for form in list(FORMS.values())[2:]:
            torch.testing.assert_close(run(form), expected, rtol=1e-4, atol=1e-4)
        variants = {name: lambda form=form: run(form) for name, form in FORMS.items()}
        variants["frozen layer"] = lambda: run(lambda x, base, *_: base(x))
        columns.append(in_turn(variants, options.rounds))

    print(f"{options.tokens} tokens, r = {R}, {options.threads} threads, {options.rounds} rounds, ms of CPU time")
    print(f"{'':42}" + "".join(f"{layer:>12}" for layer in options.layers))
    medians = [{name: statistics.median(cpu for _, cpu in column[name]) for name in column} for column in columns]
    for name in ["frozen layer", *FORMS]:
        added = (column[name] - (column["frozen layer"] if name in FORMS else 0) for column in medians)
        print(f"{name:42}" + "".join(f"{ms:12.1f}" for ms in added))


if __name__ == "__main__":
    main()
