#!/usr/bin/env python3
"""Makes a fresh clone ready: libtorch in `.libtorch`, checkpoint and data of the quickstart in `.materials`.

    python3 scripts/setup.py

Every recipe of the justfile runs it first. It is quick when nothing is missing, may be interrupted at any time, and
says in one line what went wrong.

    ADALORA_CUDA=1       install the libtorch that can use a GPU, also where none is found
    ADALORA_CUDA=0       stay with the small libtorch for the CPU, also where a GPU is found
    ADALORA_MATERIALS    the folder of checkpoints and data, if not `.materials`
"""

import errno
import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBTORCH = ROOT / ".libtorch"
# Kind and pins of the set in `.libtorch`; written last, so it also says that all is there.
MARKER = LIBTORCH / ".adalora-installed"
# Where a new set is made, beside its final place, since a rename does not cross file systems.
NEW = LIBTORCH / ".new"

QUICKSTART = ["bert-tiny", "rotten-tomatoes"]

# Megabytes to download; megabytes that must be free: the wheels and their content, later the builds.
SIZES = {"cpu": (633, 4_900), "cuda": (2_512, 9_000)}

# The wheels' tags. Named rather than asked of the running Python, whose version does not matter.
PLATFORMS = ["manylinux2014", "manylinux_2_5", "manylinux_2_12", "manylinux_2_17", "manylinux_2_18"]
PLATFORMS += ["manylinux_2_25", "manylinux_2_27", "manylinux_2_28"]

# Of torch the headers and libraries are used. Without the CUDA libraries some of these cannot be loaded; of NVRTC, which
# compiles our kernels in the tests, there is a second build that nobody opens.
USED = ["torch/include", "torch/lib"]
USELESS_ON_CPU = ["torch/lib/libtorch_cuda.so", "torch/lib/libtorch_cuda_linalg.so", "torch/lib/libtorch_nvshmem.so"]
USELESS_ON_CPU += ["torch/lib/libtorch_python.so"]
USELESS_ON_CPU += ["nvidia/cu13/lib/libnvrtc.alt.so.13", "nvidia/cu13/lib/libnvrtc-builtins.alt.so.13.0"]

# Without one of these something went wrong.
NEEDED = ["torch/include", "torch/lib/libtorch_cpu.so", "nvidia/cu13/lib/libnvrtc.so.13"]

AGAIN = "then run the command again"


class Failure(Exception):
    """What went wrong, where, and the way out, in one line."""


def main():
    """Does what is missing and returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        setup()
    except Failure as failure:
        return complain(failure)
    except KeyboardInterrupt:
        return complain("interrupted; what was complete is kept: run the command again to go on")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return complain(f"the disk is full: free some space, {AGAIN}")
        return complain(error)
    return 0


def complain(what):
    print(f"setup: {what}", file=sys.stderr)
    return 1


def say(what):
    print(f"setup: {what}", file=sys.stderr, flush=True)


def setup():
    check_machine()
    kind = missing_libtorch()
    names = missing_materials()
    if not kind and not names:
        return
    check_cargo()
    if kind:
        check_pip()
        install_libtorch()
    if names:
        fetch(names)
    say("done")


# What the machine must have -----------------------------------------------------------------------------------------


def check_machine():
    """The checks that cost nothing."""
    if sys.version_info < (3, 8):
        raise Failure(f"Python is {platform.python_version()}, 3.8 or newer is needed: call a newer one python3")
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise Failure(f"this is {system} on {machine}; libtorch is set up for Linux on x86_64 only: use such a machine")
    for tool in ["cc", os.environ.get("CXX") or "c++"]:
        if not shutil.which(tool.split()[0]):
            raise Failure(
                f"no C++ compiler: `{tool}` was not found in PATH; "
                f"install one (on Debian: apt-get install g++), {AGAIN}"
            )
    if not shutil.which("cargo"):
        raise Failure(f"`cargo` was not found in PATH: install Rust with rustup, {AGAIN}")
    # Programs find libtorch by a path from where they lie, which these two would change.
    target = os.environ.get("CARGO_TARGET_DIR")
    if target and (ROOT / target).resolve().parent != ROOT:
        raise Failure(
            f"CARGO_TARGET_DIR is {target}, but programs find libtorch only from a folder directly in {ROOT}: unset it"
        )
    if ".libtorch" not in os.environ.get("RUSTFLAGS", ".libtorch"):
        raise Failure("RUSTFLAGS replaces the flags in .cargo/config.toml with which programs find libtorch: unset it")


def check_cargo():
    needed = re.search(r'^rust-version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)
    answer = subprocess.run(["cargo", "--version"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    found = re.match(r"cargo ([\d.]+)", answer.stdout)
    if not found:
        raise Failure(f"`cargo --version` does not work ({last_line(answer.stderr)}): repair Rust, {AGAIN}")
    if version(found.group(1)) < version(needed):
        raise Failure(f"cargo is {found.group(1)}, {needed} or newer is needed: rustup update, {AGAIN}")


def check_pip():
    answer = subprocess.run(
        [sys.executable, "-m", "pip", "--version"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    found = re.match(r"pip ([\d.]+)", answer.stdout)
    if answer.returncode or not found:
        raise Failure(
            f"{sys.executable} has no pip, which downloads libtorch: "
            f"install it (on Debian: apt-get install python3-pip), {AGAIN}"
        )
    if version(found.group(1)) < (20, 3):
        raise Failure(
            f"pip is {found.group(1)}, 20.3 or newer is needed: python3 -m pip install --upgrade pip, {AGAIN}"
        )


def version(text):
    return tuple(int(part) for part in text.rstrip(".").split("."))


def check_disk(kind):
    needed = SIZES[kind][1]
    free = shutil.disk_usage(LIBTORCH).free // 1_000_000
    if free < needed:
        raise Failure(
            f"{LIBTORCH} is on a disk with {free} MB free, {needed} MB are needed for libtorch and the builds: "
            f"free some, {AGAIN}"
        )


# libtorch -----------------------------------------------------------------------------------------------------------


def missing_libtorch():
    """The kind of libtorch that must be installed, or None."""
    if installed() == mark("cuda"):
        return None
    kind = "cuda" if wants_cuda() else "cpu"
    return None if installed() == mark(kind) else kind


def installed():
    there = MARKER.is_file() and (LIBTORCH / "torch/lib/libtorch_cpu.so").is_file()
    return MARKER.read_text() if there else None


def pins(kind):
    return ROOT / "scripts" / f"libtorch-{kind}.txt"


def mark(kind):
    lines = [line for line in pins(kind).read_text().splitlines() if line and not line.startswith("#")]
    return f"{kind} {hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}\n"


def wants_cuda():
    choice = os.environ.get("ADALORA_CUDA", "")
    if choice not in ("", "0", "1"):
        raise Failure(f"ADALORA_CUDA is {choice}; expected 1 (libtorch with CUDA), 0 (without) or nothing (as found)")
    return choice == "1" or (choice == "" and finds_gpu())


def finds_gpu():
    if not shutil.which("nvidia-smi"):
        return False
    try:
        answer = subprocess.run(
            ["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=30
        )
    except subprocess.TimeoutExpired:
        return False
    return answer.returncode == 0 and answer.stdout.startswith("GPU ")


def install_libtorch():
    LIBTORCH.mkdir(exist_ok=True)
    with open(LIBTORCH / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("waiting for another setup of this workspace")
            fcntl.flock(lock, fcntl.LOCK_EX)
        # Asked again: the other one may have done it.
        kind = missing_libtorch()
        if not kind:
            return
        try:
            clear(NEW)
            check_disk(kind)
            (NEW / "tmp").mkdir(parents=True)
            download_libtorch(kind)
            keep_what_is_used(kind)
            put_in_place(kind)
        finally:
            clear(NEW)


def clear(path):
    """Removes a file or folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        path.unlink()


def download_libtorch(kind):
    what = {"cpu": "the CPU", "cuda": "CPU and GPU (ADALORA_CUDA=0 keeps to the small one for the CPU)"}[kind]
    say(f"downloading {SIZES[kind][0]} MB: libtorch 2.11.0 for {what}")
    command = [sys.executable, "-m", "pip", "install", "--target", str(NEW / "set"), "--requirement", str(pins(kind))]
    command += ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--no-compile"]
    # With a cache pip keeps a second copy, and older versions hold a whole wheel in memory.
    command += ["--no-cache-dir", "--disable-pip-version-check"]
    command += ["--python-version", "3.11", "--implementation", "cp"]
    for name in PLATFORMS:
        command += ["--platform", f"{name}_x86_64"]
    # A folder for temporary files on the same disk, since it holds as much as the set itself.
    environment = {**os.environ, "TMPDIR": str(NEW / "tmp"), "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    # Its bars are for a terminal; its complaints are for us.
    bars = None if sys.stdout.isatty() else subprocess.DEVNULL
    answer = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=bars, stderr=subprocess.PIPE, text=True
    )
    if answer.returncode:
        raise Failure(why_not_downloaded(f"libtorch to {LIBTORCH}", "pip", answer.stderr))


NETWORK = re.compile(
    "new connection|connection broken|connection error|network error|resolve host|name resolution|timed out|"
    "connection refused|network is unreachable|failed to download|unable to update registry|SSLError",
    re.I,
)


def why_not_downloaded(what, tool, said):
    """A tool's complaints in one line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if "No space left on device" in said or "Disk quota exceeded" in said:
        return f"the disk is full while {tool} downloads {what}: free some space, {AGAIN}"
    if "DO NOT MATCH THE HASHES" in said:
        named = re.search(r"^ *([\w.-]+==\S+)", said, re.M)
        return (
            f"{named.group(1) if named else what} is not the file whose sha256 scripts/ names, and was not installed: "
            f"look for a mirror or proxy that alters packages, {AGAIN}"
        )
    # Without a network pip ends with "no matching distribution": the reason stands in its warnings.
    reason = next((line for line in lines if NETWORK.search(line)), None)
    if reason:
        return f"no network to download {what}: check the connection, {AGAIN} ({tool}: {reason})"
    return f"{tool} cannot download {what}: {last_line(said)}"


def last_line(said):
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["it gave no reason"])[-1]


def keep_what_is_used(kind):
    """Removes Python code and, where it cannot be loaded, half of the libraries: 1.4 GB become 0.7 GB."""
    new = NEW / "set"
    for path in [*new.iterdir(), *(new / "torch").iterdir()]:
        name = path.relative_to(new).as_posix()
        # `dist-info` has the licences.
        if name not in ["torch", "nvidia", *USED] and not name.endswith(".dist-info"):
            clear(path)
    if kind == "cpu":
        for name in USELESS_ON_CPU:
            clear(new / name)
        # It has no code of its own, but asks for `libtorch_cuda.so`, on which GNU's linker stumbles.
        libtorch = new / "torch/lib/libtorch.so"
        clear(libtorch)
        libtorch.symlink_to("libtorch_cpu.so")
    missing = [name for name in NEEDED if not (new / name).exists()]
    if missing:
        raise Failure(f"pip ended well, but {', '.join(missing)} is not in what it installed: run the command again")


def put_in_place(kind):
    clear(MARKER)
    replaced = (LIBTORCH / "torch").exists()
    for old in [*LIBTORCH.glob("*.dist-info"), LIBTORCH / "torch", LIBTORCH / "nvidia"]:
        clear(old)
    for new in (NEW / "set").iterdir():
        new.rename(LIBTORCH / new.name)
    if replaced:
        # Its build script looks which libraries there are, but not whether they have changed.
        for built in [*ROOT.glob("target/*/build/torch-sys-*"), *ROOT.glob("target/*/.fingerprint/torch-sys-*")]:
            clear(built)
    MARKER.write_text(mark(kind))


# Checkpoint and data ------------------------------------------------------------------------------------------------


def missing_materials():
    """Names of the quickstart's manifests whose files are not there; `adalora fetch` writes the markers."""
    materials = ROOT / os.environ.get("ADALORA_MATERIALS", ".materials")
    missing = []
    for name in QUICKSTART:
        manifest = (ROOT / "datasets" / f"{name}.toml").read_text()
        expected = re.search(r'^sha256 = "([0-9a-f]{64})"', manifest, re.M).group(1)
        marker = materials / name / ".adalora-fetched"
        if not marker.is_file() or marker.read_text() != expected:
            missing.append(name)
    return missing


def fetch(names):
    say("downloading the Rust packages of Cargo.lock, up to 40 MB")
    crates = ["cargo", "fetch", "--target", "x86_64-unknown-linux-gnu"]
    answer = subprocess.run(
        crates, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if answer.returncode:
        raise Failure(why_not_downloaded("the Rust packages", "cargo", answer.stderr))
    say("building adalora, which takes minutes the first time")
    if subprocess.run(["cargo", "build", "-p", "adalora-runner"], cwd=ROOT).returncode:
        raise Failure("adalora could not be built: see what cargo says above")
    say(f"downloading {' and '.join(names)}, up to 31 MB")
    if subprocess.run(["cargo", "run", "-q", "-p", "adalora-runner", "--", "fetch", *names], cwd=ROOT).returncode:
        raise Failure("checkpoint and data of the quickstart could not be fetched: see the line above")


if __name__ == "__main__":
    sys.exit(main())
