"""Tensor operations that PEFT's AdaLoRA issues in a step, each of which is a kernel launch on a GPU.

    python op_count.py

72 adapters of DeBERTaV3-base. Views and allocations are not counted. Counted beside the operations: where a GPU would
make the host wait (`item`, `tolist`), and copies from the host (`to`).
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from shared import adalora_model

NO_KERNEL = {"empty", "empty_like", "_unsafe_view", "_local_scalar_dense"}


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += not operation.is_view and operation.overloadpacket.__name__ not in NO_KERNEL
        return operation(*args, **(kwargs or {}))


class HostCalls(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.waits = self.copies = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.waits += function in (torch.Tensor.item, torch.Tensor.tolist)
        self.copies += function is torch.Tensor.to
        return function(*args, **(kwargs or {}))


def report(name, call):
    with HostCalls() as host, Operations() as operations:
        result = call()
    print(f"{name:40}{operations.count:>12}{host.waits:>8}{host.copies:>8}")
    return result


def main():
    model = adalora_model("deberta-base", task_type="FEATURE_EXTRACTION")
    peft = model.base_model
    allocator = peft.rankallocator
    print(f"{'':40}{'operations':>12}{'waits':>8}{'copies':>8}")
    report("update_ipt", lambda: allocator.update_ipt(peft.model))
    pattern = report("score and mask", lambda: allocator.mask_to_budget(peft.model, 10 * 72))
    report("mask of the final phase", lambda: allocator.mask_using_rank_pattern(peft.model, pattern))
    loss = report("regularizer, forward", lambda: model().loss)
    report("regularizer, backward", loss.backward)
    report("regularizer, forward, no task type", adalora_model("deberta-base"))


if __name__ == "__main__":
    main()
