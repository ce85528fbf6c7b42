"""Question answering as in SQuAD, by the code of others.

Makes in `values/squad/`

* `v1.1.json`, `v2.0.json`: questions on made-up articles, in SQuAD's layout;
* `windows.json`: what the functions of transformers' `run_qa.py` make of them, with two tokenizers;
* `answers.json`: logits, and the answers that transformers' `postprocess_qa_predictions` finds in them;
* `scores.json`: exact match and F1 by the official script of v1.1 and by transformers' copy of the one of v2.0;
* `real.json`, if SQuAD's own files are at hand: hashes of their windows, and scores of made-up answers.

  python squad.py --official FOLDER --bert-tiny FOLDER --squad-eval FILE [--squad FOLDER]

`--official` is the authors' checkout: their `NLG_QA/examples/question-answering` has `run_qa.py` and `utils_qa.py` of transformers 4.21, whose
functions are cut out of the file and run. `--squad-eval` is `allennlp/tools/squad_eval.py` of the PyPI package allennlp 0.9.0: the official
script of v1.1. `--squad` has `dev-v1.1.json`, `dev-v2.0.half.json` (half of the official file, with ids of its own) and `xquad.en.json`.
Needs the versions of `requirements-tokens.txt`.
"""

import argparse
import ast
import hashlib
import importlib.util
import json
import struct
import tempfile
from pathlib import Path
from types import SimpleNamespace

from layout import layout

import numpy as np
import tokenizers
import transformers
from transformers import DebertaV2TokenizerFast, PreTrainedTokenizerFast
from transformers.data.metrics import squad_metrics

FOLDER = Path(__file__).parent / "values" / "squad"
FOX = "The quick brown fox, which nobody had fed, jumped over the lazy dog. "
RIVER = (
    "The river Ilm rises in the hills near Ilmenau (at 780 metres), flows through Weimar and joins the Saale at Großheringen. "
    "Its name is older than the towns: it may come from a word for \u201cbubbling\u201d water. In 1828 the poet wrote to "
    "Zelter that the water\u2019s murmur was the only noise of that summer; the letter is lost, but a copy survives. "
)
STREETS = (
    "Das Café Österreich\u00a0\u2014 \u00abthe old one\u00bb \u2014 stands on the Ring in Wien; naïve visitors e\u0301 look for it in "
    "the Praterstraße. It opened in 1873, closed in 1914, and serves 東京 tea (£3.50) and a Sachertorte\U0001f370 to "
    "12,000 guests a year. "
)
LONG = " ".join(
    f"In year {1700 + year} the town of {place} counted {17 * year + 250} souls and {year % 7} mills, and its mayor "
    f"was {name} the {'Younger' if year % 2 else 'Elder'}."
    for year, (place, name) in enumerate(
        (place, name)
        for place in ("Aldin", "Borrow", "Carse", "Dunmere", "Ely")
        for name in ("Ann", "Bertram", "Cecily", "Duncan")
    )
)
WORDY = (
    "   Considering all that has been said about the animals of this story, the tame ones as well as the wild ones, and "
    "leaving aside what they had eaten, or not eaten, on the day before, which one of them was it that in the end did jump?"
)
LAST = "Her name was Ann"


def question(context, asked, *answers):
    """`answers` are texts, or (text, which occurrence)."""
    found = []
    for answer in answers:
        text, number = answer if isinstance(answer, tuple) else (answer, 0)
        at = -1
        for _ in range(number + 1):
            at = context.index(text, at + 1)
        found.append({"text": text, "answer_start": at})
    return {"question": asked, "answers": found}


def articles(version):
    unanswerable = version == "v2.0"
    paragraphs = [
        (FOX, [("Who jumped?", "The quick brown fox"), ("Over whom?", "the lazy dog", "lazy dog"), (WORDY, "fox"),
               ("\n\t What had nobody done?", "fed")]),
        (RIVER, [("Where does the Ilm join the Saale?", "Großheringen"), ("What may its name mean?", "\u201cbubbling\u201d water"),
                 ("How high is its source?", "780 metres", "780"), ("When was the letter written?", "1828")]),
        (STREETS, [("Where is the Café?", ("Ring", 0), "on the Ring in Wien"), ("What does it serve?", "東京 tea (£3.50)"),
                   ("What else?", "Sachertorte\U0001f370"), ("Whose look?", "e\u0301"), ("How many guests?", "12,000")]),
        (LAST, [("What was her name?", "Ann"), ("Whose name?", "Her")]),
    ]  # fmt: skip
    if unanswerable:
        paragraphs[0][1].append(("Who sold the fox?",))
        paragraphs[2][1].append(("Who built the Café?",))
        paragraphs.append((" ", [("What is here?",)]))
    else:
        paragraphs.append((LONG, [("Who was mayor of Ely in 1719?", "Duncan the Younger"), ("Which year had 318 souls?", "1704"),
                                  ("How many mills in 1710?", ("3 mills", 1))]))  # fmt: skip
    made = []
    for number, (context, asked) in enumerate(paragraphs):
        qas = [question(context, *own) for own in asked]
        for count, own in enumerate(qas):
            own["id"] = f"{version}-{number}-{count}"
            if unanswerable:
                own["is_impossible"] = not own["answers"]
        made.append({"title": f"Article {number}", "paragraphs": [{"context": context, "qas": qas}]})
    return {"version": version, "data": made}


def columns(dataset):
    """As `datasets` hands the questions to the functions of `run_qa.py`."""
    rows = [
        (qa["id"], qa["question"], paragraph["context"], qa["answers"])
        for article in dataset["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]
    return {
        "id": [row[0] for row in rows],
        "question": [row[1] for row in rows],
        "context": [row[2] for row in rows],
        "answers": [
            {"text": [a["text"] for a in row[3]], "answer_start": [a["answer_start"] for a in row[3]]} for row in rows
        ],
    }


class Windows:
    """The two functions that `run_qa.py` has inside its `main`."""

    def __init__(self, official):
        tree = ast.parse((official / "NLG_QA/examples/question-answering/run_qa.py").read_text(encoding="utf-8"))
        names = ("prepare_train_features", "prepare_validation_features")
        found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in names]
        assert len(found) == 2
        self.code = compile(ast.Module(found, type_ignores=[]), "run_qa.py", "exec")

    def make(self, dataset, tokenizer, max_length, stride):
        """Features of training and evaluation, one list of dictionaries with both."""
        names = {
            "tokenizer": tokenizer,
            "data_args": SimpleNamespace(doc_stride=stride, pad_to_max_length=False),
            "max_seq_length": max_length,
            "pad_on_right": True,
            "question_column_name": "question",
            "context_column_name": "context",
            "answer_column_name": "answers",
        }
        exec(self.code, names)
        train = names["prepare_train_features"](columns(dataset))
        dev = names["prepare_validation_features"](columns(dataset))
        assert train["input_ids"] == dev["input_ids"]
        return [
            {
                "example_id": dev["example_id"][row],
                "ids": train["input_ids"][row],
                "type_ids": train["token_type_ids"][row],
                "offset_mapping": dev["offset_mapping"][row],
                "span": [train["start_positions"][row], train["end_positions"][row]],
            }
            for row in range(len(train["input_ids"]))
        ]


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_windows(windows, tokenizers_, datasets):
    cases = []
    for name, tokenizer in tokenizers_.items():
        for version, max_length, stride in (("v1.1", 384, 128), ("v1.1", 112, 12), ("v2.0", 96, 1)):
            data = {**datasets[version], "data": [a for a in datasets[version]["data"] if a["paragraphs"][0]["context"] != " "]}
            data["data"] = [a for a in data["data"] if (a["paragraphs"][0]["context"] == LONG) == (max_length == 384)]
            rows = windows.make(data, tokenizer, max_length, stride)
            for row in rows:
                context = [at for at, offsets in enumerate(row["offset_mapping"]) if offsets is not None]
                row["context"] = [context[0], context[-1] + 1]
                row["offsets"] = [at for own in row.pop("offset_mapping")[context[0] : context[-1] + 1] for at in own]
            cases.append({"tokenizer": name, "version": version, "max_length": max_length, "stride": stride, "windows": rows})
            print(name, version, max_length, stride, len(rows))
    return cases


class Examples(list):
    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


def make_answers(windows, tokenizer, datasets, utils_qa):
    cases = []
    random = np.random.default_rng(5)
    for version in ("v1.1", "v2.0"):
        data = {"data": [a for a in datasets[version]["data"] if a["paragraphs"][0]["context"] not in (LONG, " ")]}
        features = windows.make(data, tokenizer, 72, 12)
        width = 72
        logits = random.normal(size=(2, len(features), width)).astype("f4")
        if version == "v2.0":
            # About as sure of an answer as of none.
            logits[:, :, 0] += 1.6
        lengths = [len(feature["ids"]) for feature in features]
        for row, length in enumerate(lengths):
            # As the trainer pads what a batch gives.
            logits[:, row, length:] = -100
            assert all(len(set(side[:length].tolist())) == length for side in logits[:, row])
        given = columns(data)
        examples = Examples([dict(zip(given, values)) for values in zip(*given.values())])
        for n_best, max_answer_length in ((20, 30), (20, 4), (7, 30)):
            with tempfile.TemporaryDirectory() as folder:
                found = utils_qa.postprocess_qa_predictions(
                    examples, features, (logits[0], logits[1]), version_2_with_negative=version == "v2.0",
                    n_best_size=n_best, max_answer_length=max_answer_length, output_dir=folder,
                )  # fmt: skip
                read = lambda name: json.loads((Path(folder) / f"{name}.json").read_text())  # noqa: E731
                best = read("nbest_predictions")
                odds = read("null_odds") if version == "v2.0" else {}
            cases.append(
                {
                    "version": version,
                    "n_best": n_best,
                    "max_answer_length": max_answer_length,
                    "starts": [[float(str(value)) for value in row[:length]] for row, length in zip(logits[0], lengths)],
                    "ends": [[float(str(value)) for value in row[:length]] for row, length in zip(logits[1], lengths)],
                    "answers": [
                        {
                            "id": id,
                            "answer": answer,
                            "texts": [own["text"] for own in best[id]],
                            "logits": [own[side] for own in best[id] for side in ("start_logit", "end_logit")],
                            **({"null_odds": odds[id]} if odds else {}),
                        }
                        for id, answer in found.items()
                    ],
                }
            )
            if len(cases) % 3 != 1:
                del cases[-1]["starts"], cases[-1]["ends"]
    return cases


PAIRS = [
    ("Denver Broncos", ["Denver Broncos", "The Denver Broncos"]),
    ("the Denver  Broncos.", ["Denver Broncos"]),
    ("Broncos of Denver", ["Denver Broncos", "Broncos"]),
    ("a an the", ["the"]), ("The", ["a"]), ("", ["the"]), ("the", [""]), ("", [""]), ("!", ["..."]), ("", []), ("the", []), ("x", []),
    ("a", ["A", "b"]), ("an answer", ["answer, an"]), ("theatre", ["atre"]), ("the-atre", ["the atre"]), ("the_end", ["end"]),
    ("a\u0301 b", ["b"]), ("\u00e1 b", ["b"]), ("the\u0301", [""]), ("co\u0301te the", ["co\u0301te"]), ("the\u093f x", ["x"]),
    ("\u2460the x", ["x"]), ("\u24b6 the x", ["x"]), ("\u24d0the x", ["x"]), ("\u00b2the x", ["x"]), ("the\u00a0x", ["x"]), ("the\u200bx", ["x"]),
    ("the\u200dx", ["x"]), ("a\u203fx", ["x"]), ("\u201cthe\u201d x", ["\u201c \u201d x"]), ("x\u001fy\u0085z\u3000w", ["w z y x"]), ("x\u001cy", ["x y"]),
    ("STRASSE", ["stra\u00dfe"]), ("\u0130stanbul", ["i\u0307stanbul", "istanbul"]), ("\u039f\u0394\u039f\u03a3 \u03a3", ["\u03bf\u03b4\u03bf\u03c2 \u03c3"]),
    ("\u1e9e", ["\u00df"]), ("\u01c5", ["\u01c6"]), ("\u6771\u4eac the", ["\u6771\u4eac"]), ("\u6771the\u4eac", ["\u6771\u4eac"]), ("\u00a33.50", ["\u00a3350", "3.50"]),
    ("12,000", ["12000"]), ("3.5%", ["35"]), ("U.S.A.", ["USA", "U S A"]), ("rock 'n' roll", ["rock n roll"]), ("one two two three", ["two two two", "two three four"]),
    ("b b b", ["b"]), ("x y z", ["z y x", "x"]), ("\u2014 the", ["\u2014"]), ("na\u00efve", ["naive"]), ("\ufb01ne", ["fine"]), ("\U0001f370a", ["\U0001f370 a", "a"]),
    ("\u0660the", ["x"]), ("\u2167the x", ["x"]), ("a\tb\nthe\rc", ["b c"]), ("A.n", ["n"]), ("th.e end", ["end"]),
]  # fmt: skip


def make_scores(squad_eval):
    pairs = []
    for prediction, answers in PAIRS:
        golds = [answer for answer in answers if squad_metrics.normalize_answer(answer)] or [""]
        own = {
            "prediction": prediction,
            "answers": answers,
            "v2.0": [
                max(squad_metrics.compute_exact(gold, prediction) for gold in golds),
                max(squad_metrics.compute_f1(gold, prediction) for gold in golds),
            ],
        }
        if answers:
            best = squad_eval.metric_max_over_ground_truths
            own["v1.1"] = [
                int(best(squad_eval.exact_match_score, prediction, answers)),
                best(squad_eval.f1_score, prediction, answers),
            ]
        pairs.append(own)
    thresholds = []
    random = np.random.default_rng(6)
    for count, known in ((1, 1.0), (1, 0.0), (40, 0.5), (200, 0.7), (40, 1.0), (40, 0.0)):
        answerable = (random.random(count) < known).tolist()
        scores = [round(float(value), 2) if has else 0.0 for has, value in zip(answerable, random.random(count))]
        # With ties.
        odds = (np.round(random.normal(size=count) * 4) / 4).tolist()
        answered = (random.random(count) < 0.9).tolist()
        ids = [str(number) for number in range(count)]
        has = dict(zip(ids, answerable))
        predictions = {id: "x" if own else "" for id, own in zip(ids, answered)}
        for id in ids:
            # A question without an answer is scored by whether it got none.
            if not has[id]:
                scores[int(id)] = float(not predictions[id])
        best, threshold = squad_metrics.find_best_thresh(predictions, dict(zip(ids, scores)), dict(zip(ids, odds)), has)
        thresholds.append(
            {"answerable": answerable, "answered": answered, "scores": scores, "odds": odds, "best": best, "threshold": threshold}
        )
    return {"pairs": pairs, "thresholds": thresholds}


def altered(number, context, answers):
    """An answer that is a bit too long or too short, by a rule that is written down twice; no answer is one in three."""
    if not answers:
        return context[: 10 + number % 5]
    start, end = answers[0]["answer_start"], answers[0]["answer_start"] + len(answers[0]["text"])
    return context[max(0, start - number % 7) : max(start, end - number % 3) + number % 5]


def make_real(folder, windows, tokenizers_, squad_eval):
    real = {}
    for file, version in (("dev-v1.1.json", "v1.1"), ("dev-v2.0.half.json", "v2.0")):
        data = json.loads((folder / file).read_text(encoding="utf-8"))
        rows = list(zip(*columns(data).values()))
        flat = [qa["answers"] for a in data["data"] for p in a["paragraphs"] for qa in p["qas"]]
        predictions = {row[0]: altered(number, row[2], flat[number]) for number, row in enumerate(rows)}
        if version == "v1.1":
            scores = squad_eval.evaluate(data["data"], predictions)
            real[file] = {"questions": len(rows), "exact": scores["exact_match"], "f1": scores["f1"]}
        else:
            odds = {row[0]: ((number * 7919) % 1000) / 500 - 1 for number, row in enumerate(rows)}
            examples = [SimpleNamespace(qas_id=row[0], answers=flat[number]) for number, row in enumerate(rows)]
            at_zero = squad_metrics.squad_evaluate(examples, predictions, odds, 0.0)
            real[file] = {"questions": len(rows), **at_zero}
    data = json.loads((folder / "xquad.en.json").read_text(encoding="utf-8"))
    for name, tokenizer in tokenizers_.items():
        hasher, count, misplaced = hashlib.sha256(), 0, 0
        for row in windows.make(data, tokenizer, 384, 128):
            last = max(at for at, offsets in enumerate(row["offset_mapping"]) if offsets is not None)
            misplaced += row["span"][0] > last
            numbers = [len(row["ids"]), *row["ids"], *row["span"]]
            hasher.update(struct.pack(f"<{len(numbers)}I", *numbers))
            count += 1
        real[f"xquad.en.json by {name}"] = {"windows": count, "starts_after_context": misplaced, "sha256": hasher.hexdigest()}
    return real


def save(name, value):
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(layout(value) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--official", required=True, type=Path)
    parser.add_argument("--bert-tiny", required=True, type=Path)
    parser.add_argument("--squad-eval", required=True, type=Path)
    parser.add_argument("--squad", type=Path)
    given = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")}
    tokenizers_ = {
        "bert-tiny": PreTrainedTokenizerFast(tokenizer_file=str(given.bert_tiny / "tokenizer.json"), **special),
        "nmt-nfkc": DebertaV2TokenizerFast.from_pretrained(FOLDER.parent / "sentencepiece" / "nmt-nfkc"),
    }
    windows = Windows(given.official)
    utils_qa = load("utils_qa", given.official / "NLG_QA/examples/question-answering/utils_qa.py")
    squad_eval = load("squad_eval", given.squad_eval)
    datasets = {version: articles(version) for version in ("v1.1", "v2.0")}
    made_with = {
        "script": "squad.py",
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "numpy": np.__version__,
    }
    for version, dataset in datasets.items():
        save(version, dataset)
    save("windows", {"made_with": made_with, "cases": make_windows(windows, tokenizers_, datasets)})
    save("answers", {"made_with": made_with, "cases": make_answers(windows, tokenizers_["bert-tiny"], datasets, utils_qa)})
    save("scores", {"made_with": made_with, **make_scores(squad_eval)})
    if given.squad:
        save("real", {"made_with": made_with, **make_real(given.squad, windows, tokenizers_, squad_eval)})


if __name__ == "__main__":
    main()
