#!/bin/sh
# Tests the CUDA kernels on every GPU of this machine, then measures them.
#
#     ./run.sh LIBTORCH
#
# LIBTORCH is the folder of a libtorch 2.11 with CUDA, `lib/libtorch_cuda.so` in it: of a Python package it is
# `site-packages/torch`, which `python3 -c 'import torch; print(torch.__path__[0])'` prints.
set -eu

if [ $# -ne 1 ]; then
    echo "usage: $0 LIBTORCH, the folder of a libtorch 2.11 with CUDA (site-packages/torch)" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
if [ ! -e "$1/lib/libtorch_cuda.so" ]; then
    echo "$1/lib/libtorch_cuda.so is not there: name the folder of a libtorch 2.11 with CUDA" >&2
    exit 2
fi
LD_LIBRARY_PATH=$(cd "$1/lib" && pwd)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH

"$here/tests" --ignored --test-threads 1 cuda::on_gpu

# Where the bench keeps what it measured.
CRITERION_HOME=$(mktemp -d)
export CRITERION_HOME
trap 'rm -rf "$CRITERION_HOME"' EXIT
"$here/bench" --bench
