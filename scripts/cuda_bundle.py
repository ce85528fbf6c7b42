#!/usr/bin/env python3
"""Puts what tests and measures the CUDA kernels into a folder that a GPU machine can run without Rust.

    python3 scripts/cuda_bundle.py DIR

The kernels are in the executables, as source that NVRTC compiles there. `DIR/run.sh LIBTORCH` runs both.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 60_000_000

# Name in the bundle, and kind and name of cargo's target.
EXECUTABLES = {"tests": ("lib", "adalora_kernels"), "bench": ("bench", "cuda")}


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    built = build()
    for name, target in EXECUTABLES.items():
        # Without symbols they are a third as large.
        subprocess.run(["strip", "-o", folder / name, built[target]], check=True)
    shutil.copy(ROOT / "scripts/cuda_bundle_run.sh", folder / "run.sh")
    size = sum((folder / name).stat().st_size for name in [*EXECUTABLES, "run.sh"])
    if size > LIMIT:
        sys.exit(f"{folder} has {size} bytes, {LIMIT} are allowed: see which executable has grown")
    print(f"{folder}: {size / 1e6:.1f} MB; on a GPU machine: {folder.name}/run.sh LIBTORCH")


def build():
    """Executables by kind and name of their target. Of the dev profile: our kernels are optimised in it."""
    command = ["cargo", "test", "--no-run", "-p", "adalora-kernels", "-p", "adalora-benches", "--lib"]
    command += ["--bench", "cuda", "--message-format", "json-render-diagnostics"]
    answer = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if answer.returncode:
        sys.exit("the executables could not be built: see what cargo says above")
    messages = (json.loads(line) for line in answer.stdout.splitlines())
    return {
        (message["target"]["kind"][0], message["target"]["name"]): message["executable"]
        for message in messages
        if message["reason"] == "compiler-artifact" and message["executable"]
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
