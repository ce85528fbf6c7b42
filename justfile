# Passes arguments on as they were typed, quotes and spaces included.
set positional-arguments

[private]
default:
    @{{ just_executable() }} --list --unsorted

# Install what is missing: libtorch, checkpoint and data of the quickstart; every recipe below does this first
setup:
    @python3 scripts/setup.py

# Run an experiment of experiments/ and write its report: just run quickstart
run EXPERIMENT *ARGS: setup
    @cargo run -p adalora-runner -- run "$@"

# Check an experiment and print its phases and parameter counts, without training
check EXPERIMENT *ARGS: setup
    @cargo run -q -p adalora-runner -- check "$@"

# Train a small BART on what packages are, then adapt it to news headlines by LoRA and AdaLoRA: a quarter of an hour on two cores
headlines: setup
    #!/usr/bin/env bash
    set -euo pipefail
    python3 scripts/headlines.py
    adalora() { cargo run -q -p adalora-runner -- "$@"; }
    materials=${ADALORA_MATERIALS:-.materials}
    [ -f "$materials/bart-synopses-random/model.safetensors" ] ||
        adalora init-bart "$materials/bart-synopses-random" --texts debian-synopses \
            --vocabulary 4000 --layers 2 --width 192 --heads 4 --positions 128
    adalora run small/headlines-base
    [ -f "$materials/bart-synopses/model.safetensors" ] ||
        adalora merge runs/small/headlines-base/run/seed-1 "$materials/bart-synopses"
    adalora run small/headlines

# Show importance metrics, budget curves, checkpoints, data sets and experiments
list: setup
    @cargo run -q -p adalora-runner -- list

# Write tables and pictures of the runs of an experiment
report EXPERIMENT: setup
    @cargo run -q -p adalora-runner -- report "$@"

# Show where the runs of an experiment stand
status EXPERIMENT: setup
    @cargo run -q -p adalora-runner -- status "$@"

# Write the ranks that a finished run found to a file: just export-pattern runs/quickstart/adalora/seed-1 found.toml
export-pattern RUN FILE: setup
    @cargo run -q -p adalora-runner -- export-pattern "$@"

# Write what a finished run says of texts, from a file or standard input: just predict runs/quickstart/adalora/seed-1 texts.txt
predict RUN *ARGS: setup
    @cargo run -q -p adalora-runner -- predict "$@"

# Write the adapter of a finished run for PEFT: just export RUN OUT --format adalora, or --format lora [--pad]
export RUN OUT *ARGS: setup
    @cargo run -q -p adalora-runner -- export "$@"

# Make an adapter of PEFT usable like a run's: just import ADAPTER OUT --checkpoint bert-tiny --data rotten-tomatoes
import ADAPTER OUT *ARGS: setup
    @cargo run -q -p adalora-runner -- import "$@"

# Write a finished run as a checkpoint that transformers loads
merge RUN OUT: setup
    @cargo run -q -p adalora-runner -- merge "$@"

# Write results.csv over all runs, or over those of an experiment
results *EXPERIMENT: setup
    @cargo run -q -p adalora-runner -- results "$@"

# Print the JSON schema of experiment files; experiments/schema.json is it
schema: setup
    @cargo run -q -p adalora-runner -- schema

# Download data sets and checkpoints: just fetch sst-2, just fetch model microsoft/deberta-v3-base
fetch *NAMES: setup
    @cargo run -q -p adalora-runner -- fetch "$@"

# Run every test
test: setup
    python3 scripts/test_setup.py
    python3 scripts/test_cuda_bundle.py
    python3 scripts/test_headlines.py
    cargo test --workspace --no-fail-fast

# Run an array on a real Slurm of one node, which it starts; needs Debian's slurmctld, slurmd, slurm-client and munge
test-slurm: setup
    cargo build -p adalora-runner
    python3 scripts/test_slurm.py target/debug/adalora

# Read the event file of a run back with TensorBoard's own package
test-events: setup
    cargo build -q -p adalora-runner
    cmp -s scripts/tensorboard.txt target/tensorboard/pins || { python3 -m pip install -q --disable-pip-version-check --target target/tensorboard --upgrade --requirement scripts/tensorboard.txt && cp scripts/tensorboard.txt target/tensorboard/pins; }
    PYTHONPATH=target/tensorboard python3 scripts/test_events.py

# Load exported adapters and merged checkpoints with PEFT and transformers, in a Python environment of its own (2.5 GB)
test-formats: setup test-events
    reference/python.sh reference/formats_check.py
    reference/python.sh reference/bart_check.py

# Compare the CUDA kernels with their references on the GPUs of this machine; without one it fails
test-cuda: setup
    cargo test -p adalora-kernels --lib -- --ignored --test-threads 1 cuda::on_gpu

# Put tests and benchmarks of the CUDA kernels into DIR, for a GPU machine without Rust; there: DIR/run.sh LIBTORCH
cuda-bundle DIR: setup
    @python3 scripts/cuda_bundle.py "$1"

# Give a reader inputs of a fuzzer's until one breaks it, or for SECONDS: just fuzz pickle 600; see docs/fuzzing.md
fuzz TARGET SECONDS="300": setup
    cargo build --config fuzz/coverage.toml --target x86_64-unknown-linux-gnu --target-dir target/fuzz -p adalora-fuzz --features libfuzzer
    mkdir -p target/fuzz/corpus/"$1" target/fuzz/found
    FUZZ_TARGET="$1" target/fuzz/x86_64-unknown-linux-gnu/debug/fuzz -max_total_time="$2" -timeout=10 -rss_limit_mb=2048 -artifact_prefix=target/fuzz/found/"$1"- target/fuzz/corpus/"$1" fuzz/corpus/"$1"

# Run the benchmarks, or those whose name contains the argument
bench *ARGS: setup
    cargo bench -p adalora-benches --bench '*' -- "$@"

# Time our training step beside PEFT's: just bench-peers --threads 1; see reference/peers/README.md
bench-peers *ARGS: setup
    cargo build --release -p adalora-benches --bin peer_step
    reference/python.sh reference/peers/step.py "$@"

# Check formatting, lints and documentation; a warning is an error
lint: setup
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Format the source
fmt:
    cargo fmt --all

# Make the reference values in reference/values again, in a Python environment of its own; see reference/README.md
golden: setup
    reference/remake.sh
