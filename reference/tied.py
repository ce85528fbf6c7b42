"""Makes `values/bert-tied/`: bert-legacy as a file of torch.save in which two blocks share one query weight."""

import shutil

from common import VALUES

import torch
from safetensors.torch import load_file

QUERY = "encoder.layer.{}.attention.self.query.weight"


def main():
    folder = VALUES / "bert-tied"
    folder.mkdir(exist_ok=True)
    shutil.copy(VALUES / "bert-legacy/config.json", folder)
    tensors = load_file(VALUES / "bert-legacy/model.safetensors")
    tensors[QUERY.format(1)] = tensors[QUERY.format(0)]
    torch.save(tensors, folder / "pytorch_model.bin")


if __name__ == "__main__":
    main()
