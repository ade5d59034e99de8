#!/usr/bin/env bash
# Snakemake runs this inside the new conda environment, from a copy, in the folder that snakemake works in. That is the
# repository's root unless `--directory` says otherwise; then set RSD_ROOT to the root.
set -euo pipefail

# Digest of the lock files, kept up to date by `make lock`: a new lock changes this file, and so Snakemake makes a new
# environment.
lock=4abea0ab8670b572

root=${RSD_ROOT:-$PWD}
if [ ! -f "$root/envs/install.sh" ]; then
    echo "error: $root is not the root of the RSD repository; start snakemake there, or set RSD_ROOT to it" >&2
    exit 1
fi
found=$(cd "$root/envs" && cat requirements.txt requirements-cpu.txt requirements-cuda.txt | sha256sum | cut -c 1-16)
if [ "$found" != "$lock" ]; then
    echo "error: the lock files ($found) are not those that this script belongs to ($lock); run make lock" >&2
    exit 1
fi
bash "$root/envs/install.sh" "$CONDA_PREFIX/bin/python"
