#!/bin/sh
# Python with requirements.txt installed: `reference/python.sh SCRIPT ARGUMENTS`. Without PYTHON it makes a virtual environment once, in
# WORK (default: target/reference).
#   PYTHON=...     a Python with requirements.txt installed
set -eu
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONDONTWRITEBYTECODE=1

if [ -z "${PYTHON:-}" ]; then
    venv=${WORK:-$here/../target/reference}/venv
    PYTHON=$venv/bin/python
    # What is installed is noted last, so that an interrupted or outdated environment is completed.
    if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
        [ -x "$PYTHON" ] || python3 -m venv "$venv"
        "$PYTHON" -m pip install --quiet --requirement "$here/requirements.txt"
        cp "$here/requirements.txt" "$venv/requirements.txt"
    fi
fi
exec "$PYTHON" "$@"
