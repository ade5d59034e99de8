#!/usr/bin/env bash
# Installs the locked requirements and this project into the Python environment of the given interpreter.
# Used by the Makefile and by envs/*.post-deploy.sh, so that all install the same:
#   bash envs/install.sh .venv/bin/python [--dev] [--kubernetes]
#   bash envs/install.sh .venv/bin/python --vllm
# --dev adds what the tests need, --kubernetes what workflow/profiles/kubernetes needs.
# RSD_TORCH=cpu or RSD_TORCH=cuda chooses torch's build; without it, a machine with an NVIDIA driver gets cuda.
set -euo pipefail

python=$1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
lock="$root/envs/requirements"
main="$lock.txt"
if [ "${2:-}" = --vllm ]; then
    main="$lock-vllm.txt"
fi
# The lock is complete: nothing is resolved here, and `pip check` says whether that was right.
install=("$python" -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation)

# Some packages come as sources only. Their build must take the locked setuptools, not the newest of the day.
setuptools=$(mktemp)
trap 'rm -f "$setuptools"' EXIT
awk '/^setuptools==/ {on = 1} on {print} on && !/\\$/ {exit}' "$main" >"$setuptools"
"${install[@]}" --require-hashes --requirement "$setuptools"

if [ "${2:-}" = --vllm ]; then
    # It brings its own torch, and lacks what only other stages need: no `pip check`.
    "${install[@]}" --require-hashes --requirement "$main"
    "${install[@]}" --editable "$root"
    exit
fi

build=${RSD_TORCH:-$(if command -v nvidia-smi >/dev/null; then echo cuda; else echo cpu; fi)}
if [ "$build" = cpu ] && ! "${install[@]}" --require-hashes --requirement "$lock-cpu.txt"; then
    # The CPU build is not on PyPI. The other one runs without a GPU, too.
    echo "pip finds no CPU build of torch; taking the larger CUDA build, which also runs on a CPU" >&2
    build=cuda
fi
if [ "$build" != cpu ]; then
    "${install[@]}" --require-hashes --requirement "$lock-cuda.txt"
fi

"${install[@]}" --require-hashes --requirement "$lock.txt"
for extra in "${@:2}"; do
    "${install[@]}" --require-hashes --requirement "$lock-${extra#--}.txt"
done
"${install[@]}" --editable "$root"
"$python" -m pip --disable-pip-version-check check
