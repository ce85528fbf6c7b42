#!/usr/bin/env python3
"""Write a small training file in SQuAD's layout, with the whole dev set beside it.

    python3 scripts/squad_sample.py TRAIN DEV [FOLDER]

TRAIN is a list of objects with `context`, `question` and `answer`, as JSON or gzipped JSON: an answer is taken to stand where
it stands first. Or it is SQuAD's own train-v1.1.json, of which every twentieth question is taken. DEV is dev-v1.1.json.
FOLDER is .materials/squad-sample if it is not named; what is there already is left alone.
"""

import gzip
import json
import shutil
import sys
from pathlib import Path

EVERY = 20


def layout(questions):
    """SQuAD's layout of questions, those about one context together, in their order."""
    paragraphs = {}
    for number, own in enumerate(questions):
        start = own.get("start", own["context"].find(own["answer"]))
        if start < 0:
            raise ValueError(f"question {number + 1}: its answer {own['answer']!r} is not in its context")
        answers = [{"text": own["answer"], "answer_start": start}]
        question = {"id": own.get("id", f"sample-{number}"), "question": own["question"], "answers": answers}
        paragraphs.setdefault(own["context"], []).append(question)
    paragraphs = [{"context": context, "qas": questions} for context, questions in paragraphs.items()]
    return {"version": "1.1", "data": [{"title": "sample", "paragraphs": paragraphs}]}


def questions_of(squad):
    """A list of the questions of a file in SQuAD's layout."""
    questions = [
        (paragraph["context"], own)
        for article in squad["data"]
        for paragraph in article["paragraphs"]
        for own in paragraph["qas"]
    ]
    for context, own in questions[::EVERY]:
        answer = own["answers"][0]
        yield {
            "id": own["id"],
            "context": context,
            "question": own["question"],
            "answer": answer["text"],
            "start": answer["answer_start"],
        }


def read(path):
    """The JSON of a file, gzipped or not."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def main(train, dev, folder=".materials/squad-sample"):
    folder = Path(folder)
    if folder.exists():
        sys.exit(f"{folder} is there already: move it away to write it anew")
    found = read(Path(train))
    made = layout(found if isinstance(found, list) else questions_of(found))
    folder.mkdir(parents=True)
    (folder / "train.json").write_text(json.dumps(made), encoding="utf-8")
    shutil.copyfile(dev, folder / "dev.json")
    count = sum(len(paragraph["qas"]) for paragraph in made["data"][0]["paragraphs"])
    print(f"{folder}: {count} questions to train on")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__.strip())
    main(*sys.argv[1:])
