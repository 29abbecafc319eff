#!/usr/bin/env bash
# Check the platform on a machine with one NVIDIA GPU and no network, in under nine minutes.
#   bash tests/gpu/check.sh                    on a GPU; Python packages that are missing come from WHEELS
#   bash tests/gpu/check.sh --tiny             the same steps on a CPU: small sizes, Triton's interpreter
# WHEELS=DIR: folder of wheels that `make gpu-wheels` gathers. OUT=DIR: where full results are written.
# One table comes last; a step that fails does not stop the others.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -n "${WHEELS:-}" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
        --target "$work/site" "$WHEELS"/*.whl || exit 1
fi
mkdir -p "$work/imports/deft"
for package in objectives workers evaluators platform sweeps; do
    ln -s "$PWD/$package" "$work/imports/deft/$package"
done
export PYTHONPATH="$work/imports:$work/site:$PWD/tests/gpu${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 OUT=${OUT:-$work}
"$python" tests/gpu/check.py "$@"
