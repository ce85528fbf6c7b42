"""DeBERTaV3 by transformers, with PEFT's AdaLoRA on all linear layers, and files of torch.save.

Makes

* `values/deberta-odd/{config.json,model.safetensors}`: odd sizes, few buckets, the convolution of version 2;
* `values/deberta-small/{config.json,pytorch_model.bin}`: the blocks, heads and buckets of deberta-v3-small, narrower;
  f16 in a file of torch.save, as published;
* `values/deberta-{odd,small}.{json,safetensors}`: adapters, batches, outputs and gradients;
* `values/deberta-buckets.json`: buckets of relative positions;
* `values/torch-files/`: a file of torch.save with all kinds of views, what is in it, and files to be refused.

  python deberta.py

Everything in evaluation mode (no dropout).
"""

import zipfile
from collections import OrderedDict

from bert import padded_batch, randomise, relative, write_checkpoint
from common import VALUES, generator, made_with, normal, save_json, save_tensors

import torch
from peft import AdaLoraConfig, get_peft_model
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

TARGETS = (
    r".*encoder\.layer\.\d+\.(attention\.self\.(query|key|value)_proj|attention\.output\.dense"
    r"|intermediate\.dense|output\.dense)"
)
RANK, ALPHA = 2, 5

VERSION_3 = dict(
    relative_attention=True,
    position_biased_input=False,
    share_att_key=True,
    norm_rel_ebd="layer_norm",
    pos_att_type="p2c|c2p",
    type_vocab_size=0,
    layer_norm_eps=1e-7,
)


# ---------------------------------------------------------------------------------------------- models


def adapted(folder, dtype=torch.float32):
    """The checkpoint's model with random adapters, none of whose values is 0."""
    model = DebertaV2ForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    config = AdaLoraConfig(
        init_r=RANK,
        target_r=1,
        tinit=1,
        tfinal=1,
        total_step=10,
        lora_alpha=ALPHA,
        target_modules=TARGETS,
        lora_dropout=0.0,
    )
    model = get_peft_model(model, config)
    gen = generator(31)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if ".lora_" in name:
                parameter.copy_(normal(parameter.shape, 0.5 if "lora_E" in name else 0.15, gen))
            parameter.requires_grad_(".lora_" in name or "pooler" in name or "classifier" in name)
    # In evaluation mode, and without the regularizer that PEFT adds to a loss.
    return model.base_model.model.to(dtype).eval()


def plain(name):
    """PEFT's name of a parameter without PEFT's parts: `...query_proj.lora_A`, `pooler.dense.weight`."""
    return name.replace(".default", "").replace("base_layer.", "").removeprefix("deberta.")


def outputs(folder, batches, dtype=torch.float32):
    """Logits of all batches, and gradients of the sum of their losses."""
    model = adapted(folder, dtype)
    values, losses = {}, []
    for key, (batch, labels) in batches.items():
        hidden = model.deberta(**batch).last_hidden_state
        out = model(**batch, labels=labels)
        losses.append(out.loss)
        # The whole of a long batch would be large: its first tokens.
        values |= {f"{key}.logits": out.logits, f"{key}.hidden": hidden[:, :4]}
    torch.stack(losses).sum().backward()
    values["loss"] = torch.stack(losses).sum()
    trained = {plain(name): p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 18 * model.config.num_hidden_layers + 4, len(trained)
    values |= {f"grad.{name}": parameter.grad for name, parameter in trained.items()}
    return values, {name: p for name, p in trained.items() if ".lora_" in name}


def report(name, batches):
    folder = VALUES / name
    values, adapters = outputs(folder, batches)
    exact, _ = outputs(folder, batches, torch.float64)
    deviation = {key: relative(values[key], exact[key]) for key in values}
    half, _ = outputs(folder, batches, torch.bfloat16)
    inputs = {}
    for key, (batch, labels) in batches.items():
        inputs |= {f"{key}.input_ids": batch["input_ids"], f"{key}.labels": labels}
        inputs[f"{key}.attention_mask"] = batch["attention_mask"]
        inputs[f"{key}.logits.bf16"] = half[f"{key}.logits"].float()
    save_tensors(name, inputs | values | adapters)
    info = {
        "made_with": made_with("deberta.py"),
        "rank": RANK,
        "scale": ALPHA / (RANK + 1e-5),
        "batches": list(batches),
        "loss": values["loss"].item(),
        "deviation_from_float64": max(deviation.values()),
        "deviation_of_bf16": max(relative(half[f"{key}.logits"], exact[f"{key}.logits"]) for key in batches),
    }
    assert info["deviation_from_float64"] < 5e-6, sorted(deviation.items(), key=lambda item: -item[1])[:5]
    save_json(name, info)
    print(name, info)


def batch(lengths, config, seed):
    """Tokens, with 0 where a row is padded; a row of length 0 has no token at all."""
    tokens = padded_batch(lengths, config, seed)
    del tokens["token_type_ids"]
    return tokens


def odd():
    config = DebertaV2Config(
        vocab_size=101,
        hidden_size=30,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=37,
        max_position_embeddings=90,
        position_buckets=9,
        max_relative_positions=14,
        conv_kernel_size=3,
        conv_groups=2,
        conv_act="gelu",
        pooler_hidden_act="tanh",
        num_labels=3,
        **VERSION_3,
    )
    model = DebertaV2ForSequenceClassification(config)
    randomise(model, seed=32, weights=0.2)
    config.architectures = ["DebertaV2ForSequenceClassification"]
    write_checkpoint("deberta-odd", config, dict(model.named_parameters()))
    report(
        "deberta-odd",
        {
            # Further apart than the last bucket; one row is all padding.
            "long": (batch([9, 0, 81, 4, 40], config, 33), torch.tensor([0, 2, 1, 1, 0])),
            "short": (batch([3, 3], config, 34), torch.tensor([1, 2])),
            "one": (batch([1], config, 35), torch.tensor([0])),
        },
    )


def small():
    config = DebertaV2Config(
        vocab_size=97,
        hidden_size=36,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=144,
        max_position_embeddings=512,
        max_relative_positions=-1,
        position_buckets=256,
        pooler_dropout=0,
        pooler_hidden_act="gelu",
        pooler_hidden_size=36,
        **VERSION_3,
    )
    model = DebertaV2ForSequenceClassification(config)
    randomise(model, seed=36, weights=0.1)
    folder = VALUES / "deberta-small"
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = ["DebertaV2ForSequenceClassification"]
    config.save_pretrained(folder)
    # As published: f16, a table of absolute positions that nothing uses, a head for masked language modelling.
    state = model.half().state_dict()
    state["deberta.embeddings.position_embeddings.weight"] = torch.zeros(8, 36, dtype=torch.float16)
    state["lm_predictions.lm_head.bias"] = torch.zeros(97, dtype=torch.float16)
    save(state, folder / "pytorch_model.bin")
    report(
        "deberta-small",
        {
            # All distances in buckets of their own; many in shared ones; further apart than the last bucket.
            "near": (batch([21, 64, 5], config, 38), torch.tensor([0, 1, 1])),
            "far": (batch([200, 131], config, 39), torch.tensor([1, 0])),
            "beyond": (batch([530], config, 40), torch.tensor([1])),
        },
    )


def buckets():
    cases = []
    for size, furthest in ((256, 512), (256, 1024), (9, 14), (7, 19), (10, 81), (32, 64), (2, 5)):
        distances = torch.arange(0, 1400 if size == 256 else 700)
        found = make_log_bucket_position(distances, size, furthest).long()
        assert torch.equal(make_log_bucket_position(-distances, size, furthest).long(), -found)
        # The first distance of each bucket says all: buckets never go back.
        steps = found.diff()
        assert (steps >= 0).all()
        first = [0] + (steps.nonzero().flatten() + 1).tolist()
        cases.append(
            {
                "buckets": size,
                "furthest": furthest,
                "distances": len(distances),
                "first": first,
                "bucket": found[first].tolist(),
            }
        )
    save_json("deberta-buckets", {"made_with": made_with("deberta.py"), "cases": cases})
    print("deberta-buckets", len(cases))


# ---------------------------------------------------------------------------------------------- torch.save


class Payload:
    """What a hostile pickle does: it names a function, here a harmless one, and its arguments."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was executed')",)


def save(value, path, **how):
    """`torch.save` with an archive that does not depend on the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        torch.save(value, file, **how)
    path.chmod(0o644)


def torch_files():
    gen = generator(41)
    base = normal((5, 6), 1.0, gen)
    tied = normal((4,), 1.0, gen)
    tensors = OrderedDict(
        f32=normal((2, 3), 1.0, gen),
        f16=normal((3, 2), 1.0, gen).half(),
        bf16=normal((3,), 1.0, gen).bfloat16(),
        f64=normal((2,), 1.0, gen).double(),
        i64=torch.arange(3),
        transposed=base.t(),
        part=base[1:4, 2:5],
        every_second=base[::2, ::3],
        expanded=tied.expand(3, 4),
        tied=tied,
        tied_too=tied,
        number=torch.tensor(2.5),
        none=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(normal((2, 2), 1.0, gen)),
        **{"unicode.ä": normal((1,), 1.0, gen)},
    )
    # What state_dict() adds to the dictionary itself.
    tensors._metadata = OrderedDict({"": {"version": 1}, "part": {"version": 2, "flags": [True, None]}})
    folder = VALUES / "torch-files"
    save(tensors, folder / "views.bin")
    save_tensors("torch-files/views", {k: v for k, v in tensors.items() if k != "i64"})
    plain = {"weight": torch.arange(6.0).view(2, 3)}
    save(plain, folder / "legacy.bin", _use_new_zipfile_serialization=False)
    save(plain, folder / "protocol-4.bin", pickle_protocol=4)
    save(plain | {"payload": Payload()}, folder / "payload.bin")
    save({"model": plain, "epoch": 3}, folder / "training.bin")
    save(plain | {"complex": torch.zeros(2, dtype=torch.complex64)}, folder / "complex.bin")
    # A view whose values are those of its storage with the other sign.
    save(plain | {"negative": torch.ones(2, dtype=torch.complex64).conj().imag}, folder / "negative.bin")
    save([plain["weight"]], folder / "list.bin")
    with zipfile.ZipFile(folder / "compressed.bin", "w", zipfile.ZIP_DEFLATED) as packed:
        with zipfile.ZipFile(folder / "views.bin") as archive:
            for name in archive.namelist():
                packed.writestr(zipfile.ZipInfo(name), archive.read(name), zipfile.ZIP_DEFLATED)
    (folder / "compressed.bin").chmod(0o644)
    print("torch-files", sorted(path.name for path in folder.iterdir()))


def main():
    odd()
    small()
    buckets()
    torch_files()


if __name__ == "__main__":
    main()
