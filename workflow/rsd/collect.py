"""The shards of an evaluation become one: samples in the benchmark's order, and the scores over all of them.

scores/<model>/<task>/shard-NNN.parquet (SAMPLES), judge.parquet where a judge was asked -> <task>.parquet, <task>.json.
The result is that of a run in one piece, to the last digit. By hand: `rsd collect-scores --help`.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from rsd.config import NOT_DECIDING
from rsd.provenance import file_digest
from rsd.records import JUDGEMENTS, SAMPLES, read_jsonl, read_provenance, read_table, write_record, write_table
from rsd.samples import summarise

LOG = logging.getLogger(__name__)

Sample = tuple[str, int]  # problem id, repeat
# What of a run must be equal for two shards to count as made alike; the rest is time.
_MADE_BY = ("commit", "python", "packages", "machine", "gpu")


def run_collect_scores(
    *,
    benchmark: Path,
    shards: Sequence[Path],
    judge: Path | None,
    settings: Mapping[str, Any],
    samples: Path,
    scores: Path,
) -> None:
    """Joins `shards` (the files of `rsd evaluate`, by number) into `samples` (Parquet) and `scores` (JSON).

    `settings` is `config.evaluation_settings(...)`, `judge` the file of `rsd judge-samples`, if there is one. Raises
    ValueError for shards of different settings or inputs, and where not every problem is there once with its repeats.
    """
    task, again = settings["task"], f"delete {shards[0].parent} and run again"
    if len(shards) != settings["shards"]:
        raise ValueError(f"{len(shards)} shards, expected tasks.{task}.shards = {settings['shards']}; name them all")
    stamps = [read_provenance(path) for path in shards]
    check_alike(dict(zip(map(str, shards), stamps, strict=True)), file_digest(benchmark), again)
    ids = [problem["id"] for problem in read_jsonl(benchmark)]
    try:
        table = join([read_table(path, SAMPLES) for path in shards], ids, settings["repeats"])
    except ValueError as error:
        raise ValueError(f"{shards[0].parent}: {error}; {again}") from error
    provenance = {"settings": stamps[0]["settings"], **runs_of(stamps)}
    write_table(samples, table, SAMPLES, provenance)
    facts = [stamp["evaluation"] for stamp in stamps]
    metrics = summarise(table.select(["correct", "exact", "finish", "think_closed", "answer", "n_tokens"]).to_pylist())
    score: dict[str, Any] = {
        "task": task,
        "model": settings["model"]["name"],
        "profile": settings["profile"],
        "backend": settings["backend"],
        "n_problems": len(ids),
        "repeats": settings["repeats"],
        "shards": len(shards),
        "metrics": metrics,
        "tokens": sum(table["n_tokens"].to_pylist()),
        "lm_eval": {
            "version": _one(fact["lm_eval"] for fact in facts),
            "task_version": _one(fact["task_version"] for fact in facts if fact["task_version"] is not None),
        },
        # Of the last run of each shard; what an earlier, interrupted one had made is not in the seconds.
        "seconds": round(sum(fact["seconds"] for fact in facts), 3),
        "resumed_samples": sum(fact["resumed_samples"] for fact in facts),
    }
    if judge is not None:
        score["judge"] = judged(table, judge)
    write_record(scores, score | {"provenance": provenance})
    LOG.info(
        "%s: %.2f %% correct (%d problems x %d, of %d shards), %.1f %% cut, %.1f %% without an answer",
        *(task, 100 * metrics["avg"], len(ids), settings["repeats"], len(shards)),
        *(100 * metrics["cut"], 100 - 100 * metrics["answered"]),
    )


def join(tables: Sequence[pa.Table], ids: Sequence[str], repeats: int) -> pa.Table:
    """All samples in one table, problems in the order of `ids`, their repeats from 0 to `repeats` - 1.

    Raises ValueError where a sample is missing, there twice, or nobody's.
    """
    table = pa.concat_tables(tables)
    found: list[Sample] = list(zip(table["problem_id"].to_pylist(), table["repeat"].to_pylist(), strict=True))
    wanted: list[Sample] = [(problem, repeat) for problem in ids for repeat in range(repeats)]
    for complaint, samples in (
        ("there twice", [sample for sample, count in Counter(found).items() if count > 1]),
        ("missing", sorted(set(wanted) - set(found))),
        ("not of this benchmark", sorted(set(found) - set(wanted))),
    ):
        if samples:
            example = f"problem {samples[0][0]}, repeat {samples[0][1]}"
            raise ValueError(f"{len(samples)} samples are {complaint}, {example} first")
    row = {sample: index for index, sample in enumerate(found)}
    return table.take(pa.array([row[sample] for sample in wanted], type=pa.int64()))


def check_alike(stamps: Mapping[str, Mapping[str, Any]], benchmark: str, again: str) -> None:
    """ValueError where shards were made with different settings or inputs, or of another benchmark file.

    `stamps`: each file's provenance; `benchmark`: the digest of that file now.
    """

    def decisive(stamp: Mapping[str, Any]) -> str:
        settings = stamp["settings"]
        decides = {key: value for key, value in settings["settings"].items() if key not in NOT_DECIDING}
        return json.dumps({**settings, "settings": decides}, sort_keys=True)

    first, *others = stamps
    for path in others:
        if decisive(stamps[path]) != decisive(stamps[first]):
            raise ValueError(f"{path} and {first} were made with different settings or inputs; {again}")
    if stamps[first]["settings"]["inputs"]["benchmark"] != benchmark:
        raise ValueError(f"{first} holds samples of another version of the benchmark; {again}")


def runs_of(stamps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`run`: how and when the last shard was made; `other_runs`: those that were made otherwise, if any."""
    runs = sorted((stamp["run"] for stamp in stamps), key=lambda run: -run["finished_unix"])
    others = [run for run in runs if any(run[name] != runs[0][name] for name in _MADE_BY)]
    return {"run": runs[0]} | ({"other_runs": others} if others else {})


def _one(values: Iterable[Any]) -> Any:
    """The value, if all are equal; else all of them, as text."""
    different = sorted(set(values), key=str)
    return different[0] if len(different) == 1 else ", ".join(map(str, different)) or None


# --- the second opinion --------------------------------------------------------------------------------------------


def judged(samples: pa.Table, path: Path) -> dict[str, Any]:
    """What the judge's file says of the samples, beside the rules; ValueError where it judged others."""
    verdicts = read_table(path, JUDGEMENTS)
    rules = {
        (problem, repeat): correct
        for problem, repeat, correct in zip(
            *(samples[name].to_pylist() for name in ("problem_id", "repeat", "correct")), strict=True
        )
    }
    pairs = []
    for row in verdicts.to_pylist():
        if (sample := (row["problem_id"], row["repeat"])) not in rules:
            raise ValueError(f"{path} judges problem {sample[0]}, repeat {sample[1]}, which was not sampled; delete it")
        pairs.append((rules[sample], row["verdict"]))
    return {"model": read_provenance(path)["settings"]["settings"]["model"], **agreement(pairs)}


def agreement(pairs: Sequence[tuple[bool, str]]) -> dict[str, Any]:
    """How far rules and judge agree: (right by the rules, verdict `right`, `wrong` or `unparsable`) of each sample.

    `judged` counts the verdicts that say something, and only they are in `table` (rules first, judge second),
    `agreement` (their equal share) and `kappa` (Cohen's: agreement beyond what the two shares of right answers give by
    chance). Both are None where they are undefined: without a verdict, and kappa where chance alone agrees on all.
    """
    counts = Counter((rules, verdict == "right") for rules, verdict in pairs if verdict != "unparsable")
    total = sum(counts.values())
    table = {
        "right_right": counts[True, True],
        "right_wrong": counts[True, False],
        "wrong_right": counts[False, True],
        "wrong_wrong": counts[False, False],
    }
    equal = table["right_right"] + table["wrong_wrong"]
    rules_right = table["right_right"] + table["right_wrong"]
    judge_right = table["right_right"] + table["wrong_right"]
    # total^2 times the agreement by chance, in whole numbers: it is 1 exactly where both say the same of all.
    chance = rules_right * judge_right + (total - rules_right) * (total - judge_right)
    return {
        "judged": total,
        "unparsable": len(pairs) - total,
        "agreement": equal / total if total else None,
        "kappa": (equal * total - chance) / (total * total - chance) if chance < total * total else None,
        "table": table,
    }
