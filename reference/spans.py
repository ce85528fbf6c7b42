"""The head for question answering by transformers, on the encoders of `bert.py` and `deberta.py`.

Makes `values/spans-{bert,deberta}.{json,safetensors}`: a random head on the checkpoints `bert-random` and `deberta-odd`; logits, loss
and gradients of five rows, each on its own; the values are laid out as of a padded batch.

  python spans.py

Everything in evaluation mode (no dropout).
"""

from bert import padded_batch, relative
from common import VALUES, generator, made_with, normal, save_json, save_tensors

import torch
from transformers import BertForQuestionAnswering, DebertaV2ForQuestionAnswering

# Of each kind of layer one.
LAYERS = ("encoder.layer.0.attention.self.", "encoder.layer.1.intermediate.dense.", "encoder.layer.2.output.dense.")


def values(kind, name, batch, spans, dtype):
    model = kind.from_pretrained(VALUES / name, num_labels=2, dtype=dtype).eval()
    gen = generator(71)
    head = {name: normal(parameter.shape, 0.3, gen) for name, parameter in model.qa_outputs.named_parameters()}
    with torch.no_grad():
        for part, parameter in model.qa_outputs.named_parameters():
            parameter.copy_(head[part])
    losses, logits = [], torch.zeros(*batch["input_ids"].shape, 2, dtype=dtype)
    for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
        # Each row on its own: in a batch padding would compete with the tokens.
        own = {key: value[row : row + 1, :length] for key, value in batch.items()}
        out = model(**own, start_positions=spans[row : row + 1, 0], end_positions=spans[row : row + 1, 1])
        losses.append(out.loss)
        logits[row, :length] = torch.stack([out.start_logits[0], out.end_logits[0]], dim=1)
    loss = torch.stack(losses).mean()
    loss.backward()
    plain = {name.removeprefix("bert.").removeprefix("deberta."): p for name, p in model.named_parameters()}
    # A constant on all logits of a side changes nothing: the gradient of the bias is rounding.
    trained = {
        name: parameter
        for name, parameter in plain.items()
        if name == "qa_outputs.weight" or (name.startswith(LAYERS) and name.endswith(".weight"))
    }
    return {
        **{f"qa_outputs.{part}": value for part, value in head.items()},
        "logits": logits,
        "loss": loss,
        **{f"grad.{name}": parameter.grad for name, parameter in trained.items()},
    }


def main():
    for short, kind, name in (
        ("bert", BertForQuestionAnswering, "bert-random"),
        ("deberta", DebertaV2ForQuestionAnswering, "deberta-odd"),
    ):
        config = kind.config_class.from_pretrained(VALUES / name)
        batch = padded_batch([9, 3, 40, 4, 17], config, seed=72)
        if short == "deberta":
            del batch["token_type_ids"]
        # The third has no answer; that of the second is one token.
        spans = torch.tensor([[2, 5], [1, 1], [0, 0], [1, 3], [11, 16]])
        made = values(kind, name, batch, spans, torch.float32)
        exact = values(kind, name, batch, spans, torch.float64)
        deviation = max(relative(made[key], exact[key]) for key in made)
        assert deviation < 5e-6, deviation
        save_tensors(f"spans-{short}", batch | {"spans": spans} | made)
        info = {"made_with": made_with("spans.py"), "loss": made["loss"].item(), "deviation_from_float64": deviation}
        save_json(f"spans-{short}", info)
        print(short, info)


if __name__ == "__main__":
    main()
