#!/usr/bin/env bash
# Asks PyPI's advisories (those of OSV) about every locked version, the lock of vLLM included: bash envs/audit.sh
# Needs a network and uv (requirements-dev.txt). Ends with an error where a version is known to be vulnerable, and
# where one could not be asked about: "nothing found" must not mean "nothing looked up". docs/security.md has the last
# result. torch is asked about as the CUDA lock has it; the CPU build of that version is not on PyPI.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# sqlitedict unpickles its file (CVE-2024-35515, never mended). lm-eval uses it for a cache of answers alone, which the
# pipeline never opens: tests/unit/test_untrusted.py.
known=(--ignore-vuln GHSA-g4r7-86gm-pgqc --ignore-vuln PYSEC-2026-1939)

failed=0
for lock in requirements requirements-cuda requirements-dev requirements-kubernetes requirements-vllm; do
    echo "$lock.txt"
    uv tool run pip-audit@2.10.1 --strict --disable-pip --no-deps --progress-spinner off "${known[@]}" \
        --requirement "$lock.txt" || failed=1
done
exit $failed
