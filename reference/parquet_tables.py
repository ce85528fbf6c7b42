"""Parquet files as the hub has them, by pyarrow.

Makes `values/parquet/`: data sets of a few made-up rows each, in the columns, types and compression of `nyu-mll/glue`,
and files that differ in what a writer may choose or that cannot be read.

  python parquet_tables.py

Needs the versions of `requirements-tokens.txt`.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = Path(__file__).parent / "values" / "parquet"


def features(columns, classes):
    """What the library `datasets` writes about a table beside its types."""
    of = {name: {"dtype": str(kind), "_type": "Value"} for name, kind in columns.items()}
    if classes:
        of["label"] = {"names": classes, "_type": "ClassLabel"}
    return {"huggingface": json.dumps({"info": {"features": of}})}


def glue(name, texts, label, rows, classes=None):
    columns = {**{text: pa.string() for text in texts}, "label": label, "idx": pa.int32()}
    schema = pa.schema(list(columns.items()), metadata=features(columns, classes))
    for split, values in rows.items():
        arrays = [pa.array(column, kind) for column, kind in zip(zip(*values, strict=True), columns.values(), strict=True)]
        write(f"glue/{name}/{split}-00000-of-00001", pa.table(arrays, schema=schema))


def write(name, table, **settings):
    path = FOLDER / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **{"compression": "snappy", **settings})


def main():
    cat, dog = "The cat sat.", "A dog ran, \"quickly\".\t"
    glue(
        "cola",
        ["sentence"],
        pa.int64(),
        {"train": [(cat, 1, 0), (dog, 0, 1), ("caf\xe9 \U0001f600\n", 1, 2)], "validation": [(dog, 1, 0)]},
        ["unacceptable", "acceptable"],
    )
    glue(
        "stsb",
        ["sentence1", "sentence2"],
        pa.float32(),
        {"train": [(cat, dog, 0.0, 0), (cat, cat, 5.0, 1), (dog, cat, 2.2, 2)], "validation": [(cat, dog, 4.75, 0)]},
    )
    # As two of the real ones, one pair lacks its second question.
    glue(
        "qqp",
        ["question1", "question2"],
        pa.int64(),
        {"train": [(cat, dog, 0, 0), (dog, "", 0, 137), (cat, cat, 1, 2)], "validation": [(dog, dog, 1, 0)]},
        ["not_duplicate", "duplicate"],
    )
    glue(
        "mnli",
        ["premise", "hypothesis"],
        pa.int64(),
        {
            "train": [(cat, dog, 2, 0), (cat, cat, 0, 1), (dog, cat, 1, 2)],
            "validation_matched": [(cat, dog, 1, 0), (dog, dog, 0, 1)],
            "validation_mismatched": [(dog, cat, 2, 0)],
        },
        ["entailment", "neutral", "contradiction"],
    )
    glue(
        "sst2",
        ["sentence"],
        pa.int64(),
        {"train": [(cat, 1, 0), (dog, 0, 1)], "validation": [(dog, 0, 0)]},
        ["negative", "positive"],
    )
    pairs = {
        "mrpc": ("sentence1", "sentence2", ["not_equivalent", "equivalent"]),
        "rte": ("sentence1", "sentence2", ["entailment", "not_entailment"]),
        "qnli": ("question", "sentence", ["entailment", "not_entailment"]),
        "wnli": ("sentence1", "sentence2", ["not_entailment", "entailment"]),
    }
    for name, (first, second, classes) in pairs.items():
        rows = {"train": [(dog, cat, 1, 0), (cat, cat, 0, 1)], "validation": [(cat, dog, 1, 0)]}
        glue(name, [first, second], pa.int64(), rows, classes)

    numbers = list(range(1000))
    texts = [f"text {number % 7} of {number}" for number in numbers]
    plain = pa.table({"skipped": [[number, None] for number in numbers], "label": [n % 2 for n in numbers], "text": texts})
    write("many-pages", plain, row_group_size=300, data_page_size=500, write_batch_size=10)
    write("version-2", plain, version="2.6", data_page_version="2.0", use_dictionary=False)
    write("uncompressed", plain, compression="none")
    write("zstd", plain, compression="zstd")
    kinds = {
        "large_string": pa.array(["a", "b"], pa.large_string()),
        "dictionary": pa.array(["a", "b"]).dictionary_encode(),
        "int8": pa.array([0, 1], pa.int8()),
        "uint16": pa.array([0, 1], pa.uint16()),
        "int32": pa.array([0, 1], pa.int32()),
        "int64": pa.array([0, 1], pa.int64()),
        "bool": pa.array([False, True]),
        "float32": pa.array([0.5, 1.5], pa.float32()),
        "float64": pa.array([0.5, 1.5], pa.float64()),
        "not_a_number": pa.array([0.5, float("nan")], pa.float64()),
        "null": pa.array(["a", None]),
        "blank": pa.array(["a", " \n"]),
        "binary": pa.array([b"a", b"b"]),
        "list": pa.array([[1], [2]]),
        "all_null": pa.array([None, None], pa.string()),
    }
    write("kinds", pa.table(kinds))
    write("empty", pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}))


if __name__ == "__main__":
    main()
