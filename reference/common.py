"""What all scripts share: one thread, fixed code paths, saving to `values/`."""

import os
from pathlib import Path

# Before torch is imported: the same kernels on every x86 processor, hence the same bytes.
os.environ["ATEN_CPU_CAPABILITY"] = "default"
os.environ["MKL_CBWR"] = "COMPATIBLE"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import peft  # noqa: E402
import safetensors.torch  # noqa: E402
import tokenizers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from layout import layout  # noqa: E402

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
torch.backends.mkldnn.enabled = False
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

VALUES = Path(__file__).parent / "values"


def made_with(script):
    """The script and the versions that made a file."""
    return {
        "script": script,
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "tokenizers": tokenizers.__version__,
    }


def save_tensors(name, tensors):
    """`values/NAME.safetensors`, in the dtypes given."""
    path = VALUES / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().contiguous().clone() for key, value in tensors.items()}
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def save_json(name, value):
    """`values/NAME.json`: whatever fits into a line, and every list of numbers, on one line."""
    path = VALUES / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(layout(value) + "\n", encoding="utf-8")


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(shape, std, gen):
    """f32 normal numbers."""
    return torch.randn(shape, generator=gen) * std
