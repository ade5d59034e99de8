"""A stand-in for the `rsd` command: parses its arguments as the real one does, then makes small files.

It notes every call in calls.jsonl of the working folder. RSD_STUB_SLEEP: seconds that generate-traces takes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from rsd.cli import build_parser
from rsd.manifest import MANIFEST, write_manifest

# Command -> what it writes, by flag; a folder stands for the files named here.
FILES = {
    "prefetch-model": ["output/manifest.json"],
    "prefetch-dataset": ["output/manifest.json"],
    "make-pocket-model": ["output/manifest.json"],
    "make-pocket-dataset": ["output/manifest.json"],
    "prepare-problems": ["output", "report"],
    "prepare-benchmark": ["output"],
    "measure-overlap": ["output"],
    "generate-traces": ["output"],
    "convert-traces": ["output"],
    "select-traces": ["verdicts", "rows", "summary"],
    "derive-traces": ["rows", "summary"],
    "train": ["output/training.json", "output/manifest.json"],
    "evaluate": ["samples"],
    "analyse-tokens": ["tokens", "summary"],
    "judge-samples": ["output"],
    "collect-scores": ["samples", "scores"],
    "compare": ["output", "summary"],
    "report": ["html", "markdown", "figures/accuracy.svg", "figures/lengths.svg", "tables/accuracy.csv"],
    "write-config": ["output"],
}


def main() -> None:
    arguments = build_parser().parse_args()
    with open("calls.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(sys.argv[1:]) + "\n")
    if sys.argv[1] == "generate-traces":
        time.sleep(float(os.environ.get("RSD_STUB_SLEEP", "0")))
    for name in FILES[sys.argv[1]]:
        flag, _, inner = name.partition("/")
        path = Path(getattr(arguments, flag), inner)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name == MANIFEST:
            # Snakemake looks at it when it starts.
            (path.parent / "weights").write_text(f"{path.parent}\n")
            write_manifest(path.parent, kind="model", source="stub", revision=None, licence=None, provenance={})
            continue
        path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>" if path.suffix == ".svg" else f"{path}\n")


if __name__ == "__main__":
    main()
