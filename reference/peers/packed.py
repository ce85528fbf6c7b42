"""Whether packing pays once batches are cut from windows of like length: an encoder's forward and backward pass over real lengths.

    python packed.py --glue FOLDER --checkpoint FOLDER --data CoLA --rows 32

`padded` runs every layer over rows x longest tokens. `packed` keeps only real tokens for the linear layers, and pads before each
attention and removes the padding after it. Both compute the same function, which is checked; the encoder is MiniLM's shape with
frozen random weights, so that only gradients of activations are computed, as under adapters. Batches are those of `epoch.py --by-length`.
"""

import argparse
import statistics

import torch
from torch.nn import functional
from transformers import AutoTokenizer

from epoch import DATA, cut, read
from shared import in_turn

LAYERS, HIDDEN, HEADS, INNER = 6, 384, 12, 1536


class Block(torch.nn.Module):
    """A block of BERT over tokens in rows (`place` is None) or over real tokens alone."""

    def __init__(self):
        super().__init__()
        self.joined = torch.nn.Linear(HIDDEN, 3 * HIDDEN)
        self.out = torch.nn.Linear(HIDDEN, HIDDEN)
        self.up, self.down = torch.nn.Linear(HIDDEN, INNER), torch.nn.Linear(INNER, HIDDEN)
        self.norms = torch.nn.ModuleList([torch.nn.LayerNorm(HIDDEN), torch.nn.LayerNorm(HIDDEN)])

    def forward(self, x, mask, place):
        rows, width = mask.shape
        joined = self.joined(x)
        if place is not None:
            joined = joined.new_zeros(rows * width, 3 * HIDDEN).index_copy(0, place, joined)
        query, key, value = joined.view(rows, width, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, mask[:, None, None, :])
        mixed = mixed.transpose(1, 2).reshape(rows * width, HIDDEN)
        if place is not None:
            mixed = mixed.index_select(0, place)
        x = self.norms[0](x + self.out(mixed))
        return self.norms[1](x + self.down(functional.gelu(self.up(x))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", required=True)
    parser.add_argument("--checkpoint", required=True, help="for its tokenizer")
    parser.add_argument("--data", choices=DATA, default="CoLA")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, default=24, help="how many batches of the epoch are timed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    examples = read(options.glue, options.data, AutoTokenizer.from_pretrained(options.checkpoint))
    blocks = torch.nn.ModuleList([Block() for _ in range(LAYERS)]).requires_grad_(False)

    walls = {"padded": [], "packed": []}
    tokens = slots = 0
    for batch in cut(examples, options.rows, by_length=True)[: options.batches]:
        lengths = torch.tensor([len(example["input_ids"]) for example in batch])
        mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        place = mask.view(-1).nonzero().squeeze(1)
        tokens, slots = tokens + len(place), slots + mask.numel()
        x = torch.randn(mask.numel(), HIDDEN)
        made = {}

        def run(name):
            packed = name == "packed"
            start = (x[place] if packed else x.clone()).requires_grad_()
            hidden = start
            for block in blocks:
                hidden = block(hidden, mask, place if packed else None)
            real = hidden if packed else hidden[place]
            real.square().sum().backward()
            made[name] = real.detach(), start.grad if packed else start.grad[place]

        times = in_turn({name: lambda name=name: run(name) for name in walls}, rounds=3, warm_up=1)
        for name in walls:
            walls[name].append(statistics.median(cpu for _, cpu in times[name]))
        for padded, packed in zip(made["padded"], made["packed"]):
            torch.testing.assert_close(packed, padded, rtol=1e-3, atol=1e-3)

    ratio = sum(walls["packed"]) / sum(walls["padded"])
    print(
        f"{options.data}, {options.rows} rows, {options.threads} threads, {len(walls['padded'])} batches: "
        f"{slots / tokens:.3f} slots for each token; packed takes {ratio:.3f} of the CPU time of padded"
    )


if __name__ == "__main__":
    main()
