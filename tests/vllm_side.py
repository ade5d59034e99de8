"""Runs in an environment with vLLM: samples of a model folder by the backend vllm, as JSON on the last line."""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    """`vllm_side.py FOLDER JSON`; a list of {numbers, repeats, wishes}, one engine for each."""
    from evaluations import END, facts, requests_for
    from rsd.backends import VllmLM

    found = []
    for wanted in json.loads(sys.argv[2]):
        options: dict[str, Any] = {"dtype": "float32", "device": "cpu", "batch_size": 4, "max_length": 64}
        lm = VllmLM(sys.argv[1], **options, end_of_turn=END, seed=0)
        requests = requests_for(wanted["numbers"], wanted["repeats"], **wanted["wishes"])
        found.append(facts(lm.generate_until(requests)))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
