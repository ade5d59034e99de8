"""Stage report: the comparison and the records of all stages -> one page to read, one of Markdown, figures and tables.

Inputs: comparison.csv and .json, the folders with traces, token analyses, scores and benchmarks, training.json, reports
on the data, manifests. Outputs: report.html, comparison.md, figures/*.svg and *.pdf, tables/*.csv and *.tex.

The page opens from disk: no network, no server, one small script of its own and the figures inside; it reads without
the script, too. The numbers of the result come from the comparison alone; a record or key that is not there shows as
missing, never as an error. No text of a benchmark is shown, and everything that is shown is escaped. By hand:
`rsd report --help`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rsd.checksums import verify
from rsd.compare import read_comparison, read_summary
from rsd.config import token_analyses, trace_sets
from rsd.records import REMEDY, read_jsonl
from rsd.report_costs import Records, cost_parts, costs_view, devices_of, read_jobs
from rsd.report_explorer import explorer_view
from rsd.report_figures import Drawn, draw
from rsd.report_pages import render_html, render_markdown
from rsd.report_records import (
    byline,
    evaluation_view,
    overlap_view,
    read_record,
    runs_view,
    source_view,
    trainings_view,
)
from rsd.report_result import graders_view, result_view
from rsd.report_tables import write_tables
from rsd.report_tokens import tokens_view
from rsd.report_traces import (
    TraceFiles,
    count_tokens,
    laws_view,
    read_traces,
    reasons_view,
    shard_stamps,
    source_of,
    trace_table,
    trace_view,
)
from rsd.runtime import write_text

LOG = logging.getLogger(__name__)

Record = dict[str, Any]


def run_report(
    *,
    comparison: Path,
    summary: Path,
    problems: Path,
    traces: Path,
    tokens: Path,
    trainings: Mapping[str, Path],
    problems_report: Path,
    overlap: Path,
    manifests: Mapping[str, Path],
    scores: Path,
    benchmarks: Path,
    settings: Record,
    html: Path,
    markdown: Path,
    figures: Path,
    tables: Path,
) -> None:
    """Writes the page `html`, the page `markdown` and the folders `figures` and `tables`.

    `traces`: the folder with SET/selection.json, verdicts.parquet, rows.parquet and shards; `tokens`: the one with
    SET/READER.parquet and .json; `trainings`: ARM-seedK -> training.json; `manifests`: KIND/NAME -> manifest.json;
    `scores`: the folder with ARM-seedK/TASK.json and .parquet; `benchmarks`: Snakemake's; `settings`:
    config.report_settings.
    """
    config = settings["config"]
    rows, answers = read_comparison(Path(comparison)), read_summary(Path(summary))
    sets = needed_sets(config)
    selections = {name: read_record(Path(traces) / name / "selection.json") for name in sets}
    names = [f"{arm}-seed{seed}/{task}" for arm, seed, task in models_and_tasks(answers)]
    analyses = {pair: read_record(Path(tokens) / pair[0] / f"{pair[1]}.json") for pair in token_analyses(config)}
    records = {
        "selections": {name: selections[name] for name in trace_sets(config)},
        "trainings": {name: read_record(path) for name, path in trainings.items()},
        "problems": read_record(problems_report),
        "overlap": read_record(overlap),
        "manifests": {name: read_record(path) for name, path in manifests.items()},
        "scores": {name: read_record(Path(scores) / f"{name}.json") for name in names},
        "analyses": {"/".join(pair): record for pair, record in analyses.items()},
    }
    files = {name: read_traces(Path(traces) / name, record) for name, record in selections.items()}
    shown = {name: files[name] for name in records["selections"]}
    page = result_view(rows, answers, settings) | records_view(records, answers, settings)
    page["graders"] = graders_view(agreement(Path(scores), answers), records["scores"], answers)
    page["tokens"] = tokens_view(analyses, config, answers)
    page["costs"] = costs(Path(traces), Path(benchmarks), files, records, answers, config)
    page["explorer"] = explorer_view(
        read_jsonl(Path(problems)) if Path(problems).exists() else [],
        shown,
        token_files(Path(tokens), analyses),
        {pair: record["threshold"] for pair, record in analyses.items() if record.get("threshold") is not None},
        settings["page"],
        config,
        records["overlap"],
    )
    pictures = draw(Drawn(rows, answers, config, records["trainings"], shown, analyses), Path(figures))
    write_tables(page, Path(tables))
    write_text(Path(html), render_html(page, pictures))
    write_text(Path(markdown), render_markdown(page))
    LOG.info("report in %s", html)


def models_and_tasks(answers: Record) -> list[tuple[str, int, str]]:
    """(arm, seed, task) of every file of samples."""
    return [
        (arm, seed, task)
        for arm, entry in answers["arms"].items()
        for seed in entry["seeds"]
        for task in answers["tasks"]
    ]


# --- reading -------------------------------------------------------------------------------------------------------


def needed_sets(config: Record) -> list[str]:
    """The trace sets of this run's arms, and those that they were made of."""
    found = trace_sets(config)
    for name in found:
        source = source_of(name, config)
        if source is not None and source not in found:
            found.append(source)
    return found


def token_files(folder: Path, analyses: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Path]:
    """The files of analysed tokens that are there, by trace set and reader."""
    paths = {pair: folder / pair[0] / f"{pair[1]}.parquet" for pair in analyses}
    for path in paths.values():
        if not path.exists():
            LOG.warning("%s is not there; the explorer does without it", path)
    return {pair: path for pair, path in paths.items() if path.exists()}


def agreement(scores: Path, answers: Record) -> dict[tuple[str, str], Record]:
    """(arm, task) -> samples that math-verify and plain string call right: both, rules, string, neither."""
    found: dict[tuple[str, str], Record] = {}
    for arm, seed, task in models_and_tasks(answers):
        path = scores / f"{arm}-seed{seed}" / f"{task}.parquet"
        if not path.exists():
            continue
        counts = found.setdefault((arm, task), dict.fromkeys(("both", "rules", "string", "neither"), 0))
        for key, count in count_agreement(path).items():
            counts[key] += count
    return found


def count_agreement(path: Path) -> dict[str, int]:
    """How many samples of a file the two graders call right; ValueError naming the file where it is damaged."""
    verify(path)
    try:
        table = pq.read_table(path, columns=["correct", "exact"], page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is truncated or corrupted ({error}); {REMEDY}") from error
    correct, exact = table["correct"], table["exact"]

    def count(mask: Any) -> int:
        return int(pc.sum(mask).as_py() or 0)

    both, right, same = count(pc.and_(correct, exact)), count(correct), count(exact)
    neither = table.num_rows - right - same + both
    return {"both": both, "rules": right - both, "string": same - both, "neither": neither}


# --- views ---------------------------------------------------------------------------------------------------------


def records_view(records: Mapping[str, Any], answers: Record, settings: Record) -> Record:
    """What the templates show of the stages' records."""
    config = settings["config"]
    traces = [trace_view(name, record, config) for name, record in records["selections"].items()]
    runs = runs_view(records, answers)
    return {
        "traces": traces,
        "trace_table": trace_table(traces),
        "reasons": reasons_view(traces),
        "laws": laws_view(traces),
        "trainings": trainings_view(records["trainings"], answers),
        "problems": records["problems"],
        "overlap": overlap_view(records["overlap"]),
        "sources": [source_view(name, record, config) for name, record in records["manifests"].items()],
        "evaluations": evaluation_view(records["scores"]),
        "runs": runs,
        "byline": byline(runs),
    }


def costs(
    traces: Path,
    benchmarks: Path,
    files: Mapping[str, TraceFiles],
    records: Mapping[str, Any],
    answers: Record,
    config: Record,
) -> Record:
    """The view of the costs, from the benchmark files and the records."""
    shards = {name: shard_stamps(traces / name) for name in files}
    devices = {name: devices_of([*shards[name], entry.record]) for name, entry in files.items()}
    known = Records(
        devices={name: device for name, device in devices.items() if device},
        trace_tokens={name: count_tokens(entry) for name, entry in files.items()},
        resumed_attempts={name: sum(shard.get("resumed") or 0 for shard in found) for name, found in shards.items()},
        trainings=records["trainings"],
        scores=records["scores"],
        analyses=records["analyses"],
    )
    return costs_view(cost_parts(read_jobs(benchmarks), known, config), answers, config)
