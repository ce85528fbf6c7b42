"""Loads an exported adapter with the real PEFT and prints what the adapted model makes of given token ids, as JSON.

  python export_check.py --adapter RUN/adapter --base CHECKPOINT --ids '[[101, 2009, 102], [101, 102]]'

`--base` is a folder with `config.json` and `model.safetensors`. Rows may differ in length; `--types` gives token
types in the same form. Prints `logits` (for a classifier) and `last_hidden_state` (one list of vectors for each row,
padding left out), in f32. Every tensor of the adapter file must have found its place, and every parameter of the
model must come from the base or from the adapter.
"""

import argparse
import json
from pathlib import Path

import common  # noqa: F401

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification


def padded(rows):
    width = max(len(row) for row in rows)
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", required=True, type=Path)
    parser.add_argument("--base", required=True, type=Path)
    parser.add_argument("--ids", required=True, type=json.loads)
    parser.add_argument("--types", type=json.loads)
    arguments = parser.parse_args()

    config = json.loads((arguments.adapter / "adapter_config.json").read_text())
    saved = load_file(arguments.adapter / "adapter_model.safetensors")
    if config["task_type"] == "SEQ_CLS":
        labels = len(saved["base_model.model.classifier.bias"])
        kind, options = AutoModelForSequenceClassification, {"num_labels": labels, "ignore_mismatched_sizes": True}
    else:
        kind, options = AutoModel, {}
    base, info = kind.from_pretrained(arguments.base, output_loading_info=True, **options)
    drawn = {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}
    model = PeftModel.from_pretrained(base, arguments.adapter).eval()
    loaded = get_peft_model_state_dict(model)
    assert loaded.keys() == saved.keys(), sorted(loaded.keys() ^ saved.keys())
    assert all(torch.equal(loaded[key], saved[key]) for key in saved)
    absent = [key for key in drawn if f"base_model.model.{key}" not in saved]
    assert not absent, f"neither in the base nor in the adapter: {absent}"

    rows = arguments.ids
    batch = {
        "input_ids": padded(rows),
        "attention_mask": padded([[1] * len(row) for row in rows]),
        "token_type_ids": padded(arguments.types or [[0] * len(row) for row in rows]),
    }
    with torch.no_grad():
        out = model(**batch, output_hidden_states=True)
    result = {} if config["task_type"] != "SEQ_CLS" else {"logits": out.logits.tolist()}
    result["last_hidden_state"] = [hidden[: len(row)].tolist() for hidden, row in zip(out.hidden_states[-1], rows)]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
