#!/usr/bin/env python3
"""Reads the event file of a run back with TensorBoard's own package: `just test-events`.

The run is stopped half-way and gone on with. The file must say what `metrics.jsonl` says, each value once.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "target/debug/adalora"
NAMES = {"lr": "train/learning_rate"}


def expected(run):
    """Values by tag and step, as `metrics.jsonl` has them."""
    values = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        kind, step = record.pop("kind"), record.pop("step")
        del record["seconds"]
        # A list has a value for each adapter, which the event file leaves out.
        record.pop("residuals", None)
        shares = {f"shares/{part}": share for part, share in record.pop("shares", {}).items()}
        prefix = "eval" if kind == "dev" else "train"
        for name, value in {**record, **record.pop("scores", {}), **shares}.items():
            if not isinstance(value, dict):
                values[NAMES.get(name, f"{prefix}/{name}"), step] = math.nan if value is None else value
    return values


class Events(unittest.TestCase):
    def test_tensorboard_reads_what_the_log_says(self):
        with tempfile.TemporaryDirectory() as folder:
            workspace = Path(folder)
            (workspace / "datasets").mkdir()
            (workspace / "experiments").mkdir()
            experiment = (ROOT / "experiments/methods.toml").read_text()
            (workspace / "experiments/methods.toml").write_text(experiment)
            command = [PROGRAM, "worker", "methods", "--variant", "adalora", "--seed", "1", "--device", "cpu"]
            run = workspace / "runs/methods/adalora/seed-1"

            child = subprocess.Popen(command, cwd=workspace, stdout=subprocess.DEVNULL)
            begun = time.monotonic()
            while not (run / "metrics.jsonl").is_file() or (run / "metrics.jsonl").stat().st_size < 1000:
                self.assertLess(time.monotonic() - begun, 120, "the run does not start")
                time.sleep(0.02)
            os.kill(child.pid, signal.SIGTERM)
            self.assertEqual(child.wait(), 75)
            stopped = self.check(run)
            subprocess.run(command, cwd=workspace, stdout=subprocess.DEVNULL, check=True)
            self.assertGreater(self.check(run), stopped)
            self.assertEqual(len(list(run.glob("*tfevents*"))), 1)

    def check(self, run):
        events = EventAccumulator(str(run), size_guidance={"scalars": 0})
        events.Reload()
        found = {}
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                self.assertNotIn((tag, event.step), found)
                found[tag, event.step] = event.value
        wanted = expected(run)
        self.assertEqual(found.keys(), wanted.keys())
        self.assertGreater(len({tag for tag, _ in found}), 5)
        for place, value in wanted.items():
            near = math.isnan(value) and math.isnan(found[place]) or math.isclose(found[place], value, rel_tol=1e-6)
            self.assertTrue(near, f"{place}: {found[place]}, the log has {value}")
        return len(found)


if __name__ == "__main__":
    if not PROGRAM.is_file():
        sys.exit(f"{PROGRAM} is missing: cargo build -p adalora-runner")
    unittest.main()
