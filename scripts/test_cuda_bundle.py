"""Tests of cuda_bundle.py and the run.sh it leaves: `python3 scripts/test_cuda_bundle.py`. Cargo is a stand-in."""

import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent

# What stands in for an executable: tells how it was called.
EXECUTABLE = """#!/bin/sh
echo "$(basename "$0") $* in $LD_LIBRARY_PATH"
exit ${TESTS_FAIL:-0}
"""


class CudaBundle(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.base = Path(folder.name).resolve()
        self.bundle = self.base / "the bundle"
        tools = self.base / "bin"
        tools.mkdir()
        targets = [("lib", "adalora_kernels"), ("lib", "adalora_benches"), ("bench", "cuda")]
        lines = [json.dumps({"reason": "build-script-executed"})]
        for kind, name in targets:
            built = self.base / f"{name}-0123"
            built.write_text(EXECUTABLE)
            target = {"kind": [kind], "name": name}
            lines.append(json.dumps({"reason": "compiler-artifact", "target": target, "executable": str(built)}))
        messages = self.base / "messages"
        messages.write_text("\n".join(lines) + "\n")
        self.tool(tools / "cargo", f'#!/bin/sh\n[ "$1" = test ] && cat "{messages}"\n')
        # A script has no symbols to lose.
        self.tool(tools / "strip", '#!/bin/sh\n[ "$1" = -o ] && cp "$3" "$2" && chmod +x "$2"\n')
        self.path = f"{tools}:{os.environ['PATH']}"

    def tool(self, path, script):
        path.write_text(script)
        path.chmod(0o755)

    def make(self):
        command = [sys.executable, str(HERE / "cuda_bundle.py"), str(self.bundle)]
        return subprocess.run(command, env={"PATH": self.path}, capture_output=True, text=True)

    def run_bundle(self, *arguments, **environment):
        command = [str(self.bundle / "run.sh"), *map(str, arguments)]
        answer = subprocess.run(command, env={"PATH": self.path, **environment}, capture_output=True, text=True)
        return answer.returncode, answer.stdout.splitlines(), answer.stderr.strip()

    def test_a_bundle_runs_its_tests_and_its_bench_with_the_libtorch_it_is_given(self):
        made = self.make()
        self.assertEqual(made.returncode, 0, made.stderr)
        self.assertEqual(sorted(os.listdir(self.bundle)), ["bench", "run.sh", "tests"])
        libtorch = self.base / "torch"
        (libtorch / "lib").mkdir(parents=True)
        code, _, why = self.run_bundle(libtorch)
        self.assertEqual(code, 2)
        self.assertIn("lib/libtorch_cuda.so is not there: name the folder of a libtorch", why)
        (libtorch / "lib/libtorch_cuda.so").write_text("")
        self.assertEqual(self.run_bundle(libtorch), (0, [
            f"tests --ignored --test-threads 1 cuda::on_gpu in {libtorch}/lib",
            f"bench --bench in {libtorch}/lib",
        ], ""))
        # What computes wrong is not measured.
        code, lines, _ = self.run_bundle(libtorch, TESTS_FAIL="101")
        self.assertEqual((code, len(lines)), (101, 1))
        self.assertEqual(self.run_bundle()[0], 2)

    def test_a_bundle_that_is_too_large_is_an_error(self):
        with open(self.base / "cuda-0123", "a") as executable:
            executable.truncate(60_000_000)
        made = self.make()
        self.assertEqual(made.returncode, 1)
        self.assertIn("60000000 are allowed", made.stderr)


if __name__ == "__main__":
    unittest.main()
