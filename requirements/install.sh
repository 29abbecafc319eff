#!/usr/bin/env bash
# Set up .venv in the checkout from the lock file, with `deft` installed from the checkout itself.
# Does nothing when nothing has changed since the last time.
#   bash requirements/install.sh          the CPU environment
#   bash requirements/install.sh gpu      the CUDA environment
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

device=${1:-cpu}
lock=requirements/$device.lock
[ -f "$lock" ] || { echo "no such environment: $device (there are: cpu, gpu)" >&2; exit 2; }

stamp=.venv/installed
digest=$(cat "$lock" pyproject.toml requirements/install.sh | sha256sum | cut -d' ' -f1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$digest" ]; then
    exit 0
fi

python=
for candidate in python3.11 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || { echo "Python 3.11 is needed; none was found on the PATH" >&2; exit 2; }

echo "setting up .venv from $lock (several minutes the first time)"
[ -x .venv/bin/python ] || "$python" -m venv .venv
export PIP_DISABLE_PIP_VERSION_CHECK=1
# The lock is complete. Without --no-deps pip would fetch CUDA builds for packages left out of it.
install=(.venv/bin/python -m pip install --quiet --no-deps)
if ! "${install[@]}" -r <(grep -v '^flash-attn==' "$lock"); then
    echo "If pip found no torch with the local version +cpu: PyTorch keeps its CPU builds on an" >&2
    echo "index of its own. Give its address in PIP_EXTRA_INDEX_URL and run this again." >&2
    exit 1
fi
# The source of flash-attn asks the installed torch and nvcc what to build; there is no wheel.
if grep -q '^flash-attn==' "$lock"; then
    "${install[@]}" --no-build-isolation "$(grep '^flash-attn==' "$lock")"
fi
"${install[@]}" --no-build-isolation -e .

# Type checkers do not follow setuptools' import hook; a tree of links shows them the import root.
mkdir -p .cache/typing/deft
for package in objectives workers evaluators platform sweeps; do
    ln -sfn "../../../$package" ".cache/typing/deft/$package"
done
echo "$digest" > "$stamp"
