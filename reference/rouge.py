"""ROUGE by the package rouge-score, with the stemmer of nltk.

Makes `values/rouge.json`: stems of words, scores of made-up pairs, and means and a hash of the scores of real ones, whose
text is not committed.

  python rouge.py --summaries FOLDER    # with `XSum/*.jsonl` and `CNNDM/*.jsonl`: an object with document and summary a line

Needs `requirements-rouge.txt`. The real files are the first 1,000 rows of XSum's test split, 200 rows of CNN/DailyMail's
train split and 250 of its test split.
"""

import argparse
import hashlib
import importlib.metadata
import json
import random
import struct
from pathlib import Path

import numpy as np
from layout import layout
from nltk.stem.porter import PorterStemmer
from rouge_score import rouge_scorer, scoring

VALUES = Path(__file__).parent / "values"
KINDS = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
REAL = [
    "XSum/test.0001-0500.jsonl",
    "XSum/test.0501-1000.jsonl",
    "CNNDM/train.first200.jsonl",
    "CNNDM/test.frank250.jsonl",
]

# Every suffix that a rule is about, and some that look like one.
SUFFIXES = """s es ies sses ss ed ied eed ing y ly ational tional enci ency anci ancy izer bli bly alli ally entli ently eli ely ousli ously
ization ation ator alism iveness fulness ousness aliti ality iviti ivity biliti bility fulli fully logi logy icate ative alize iciti icity ical
ful ness al ance ence er ic able ible ant ement ment ent ion sion tion ou ism ate iti ity ous ive ize e le ll lled yed eying""".split()
BEGINNINGS = ["", "a", "fl", "hop", "relat", "general", "act", "sk", "geo", "troubl", "enjo", "syzyg", "fizz", "b2"]
IRREGULAR = """sky skies dying lying tying news innings inning outings outing cannings canning howe proceed exceed succeed skying newly dies died tie
yyyy yy y by say toy happy enjoy spy fly tries controll roll rolls agreed feed plastered bled motoring sing conflated sized hopping tanned falling
hissing fizzed failing filing 1990s 2nd 3d a1b2 feudalism probate rate cease""".split()

MADE = [
    ("", ""),
    ("", "a word"),
    ("a word", ""),
    ("...", "!?"),
    ("one", "one"),
    ("One, two; three!", "three two one"),
    ("the the the", "the"),
    ("the", "the the the the"),
    ("a\nb\n\nc", "c\nb\na"),
    ("\n\n", "\n"),
    ("first line here\nsecond line there", "second line here\nfirst line there"),
    ("it's John's e-mail_address", "its johns email address"),
    ("caf\xe9 na\xefve \u0130stanbul", "cafe naive istanbul"),
    ("\u212aelvin stra\xdfe \u03a3\u03a3", "kelvin strasse"),
    ("1,000 people (2019) -- 50%", "1000 people 2019 50"),
    ("tab\tnew\r\nline\x0bfeed", "tab new\nline feed"),
    ("\u65e5\u672c\u8a9e only", "only"),
    ("relational conditional rational", "relate condition ration"),
]  # fmt: skip


def made_pairs():
    """Texts of few words, so that they have much in common."""
    draw = random.Random(3)
    words = "the a of police policing storm storms stormed city cities council councils killed killing 12 two report reported".split()

    def text():
        return "\n".join(
            " ".join(draw.choice(words) for _ in range(draw.randint(1, 14))) for _ in range(draw.randint(1, 4))
        )

    return MADE + [(text(), text()) for _ in range(60)]


def lines(text):
    return text.replace("\n", " ").replace(". ", ".\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--summaries", required=True, type=Path)
    folder = parser.parse_args().summaries
    scorer = rouge_scorer.RougeScorer(KINDS, use_stemmer=True)

    def scores(reference, summary):
        found = scorer.score(reference, summary)
        return [[float(part) for part in found[kind]] for kind in KINDS]

    stemmer = PorterStemmer()
    words = dict.fromkeys([*IRREGULAR, *(start + end for start in BEGINNINGS for end in SUFFIXES)])
    pairs = [
        {"reference": reference, "summary": summary, "scores": scores(reference, summary)}
        for reference, summary in made_pairs()
    ]
    np.random.seed(5)
    aggregator = scoring.BootstrapAggregator()
    for pair in pairs:
        aggregator.add_scores(
            {kind: scoring.Score(*own) for kind, own in zip(KINDS, pair["scores"], strict=True)}
        )
    interval = aggregator.aggregate()
    real = []
    for file in REAL:
        rows = [json.loads(line) for line in (folder / file).read_text(encoding="utf-8").splitlines()]
        found = np.array([scores(lines(row["summary"]), lines(row["document"][:400])) for row in rows])
        digest = hashlib.sha256(b"".join(struct.pack("<12d", *own.flatten()) for own in found)).hexdigest()
        real.append({"file": file, "pairs": len(rows), "means": found.mean(axis=0).tolist(), "sha256": digest})
        print(file, len(rows), found.mean(axis=0)[:, 2].round(4))
    value = {
        "made_with": {"script": "rouge.py"}
        | {name: importlib.metadata.version(name) for name in ("rouge-score", "nltk", "numpy")},
        "stems": [[word, stemmer.stem(word)] for word in words],
        "pairs": pairs,
        "interval": [[interval[kind].low.fmeasure, interval[kind].mid.fmeasure, interval[kind].high.fmeasure] for kind in KINDS],
        "real": real,
    }
    (VALUES / "rouge.json").write_text(layout(value) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
