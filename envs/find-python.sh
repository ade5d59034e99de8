#!/usr/bin/env bash
# Prints a Python that the lock fits (3.11 first, then newer), or says what is missing. $PYTHON comes first.
set -euo pipefail

reason="no Python was found"
for name in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
    command -v "$name" >/dev/null || continue
    # A version manager's stand-in can be there without the Python behind it.
    version=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    if ! "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        reason="$name is Python $version, too old"
    elif ! "$name" -c 'import ensurepip, venv' 2>/dev/null; then
        reason="$name (Python $version) lacks its venv module (on Debian and Ubuntu: apt-get install python$version-venv)"
    else
        command -v "$name"
        exit
    fi
done
echo "error: Python 3.11 or newer is needed; $reason. Install it, or name one: make PYTHON=/path/to/python3.11 ..." >&2
exit 1
