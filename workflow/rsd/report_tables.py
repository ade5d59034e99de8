"""The report's tables as files: CSV with raw numbers for programs, LaTeX (booktabs) for papers.

A CSV cell that a spreadsheet would take for a formula gets an apostrophe in front; in LaTeX every sign that means
something is escaped. The .tex file is a tabular alone: `\\input` it inside a table environment, with booktabs loaded.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rsd.compare import MEAN
from rsd.formatting import MISSING, duration, interval, number, p_value, share, signed
from rsd.report_costs import Part
from rsd.runtime import write_text

Record = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A table: `records` for CSV (one dict a line, all with the same keys), `head` and `lines` of texts for LaTeX."""

    name: str
    caption: str
    records: list[Record]
    head: list[str]
    lines: list[list[str]]


def write_tables(page: Record, folder: Path) -> None:
    """Writes every table of the page into `folder` as NAME.csv and NAME.tex."""
    for table in tables(page):
        write_text(folder / f"{table.name}.csv", to_csv(table.records))
        write_text(folder / f"{table.name}.tex", to_latex(table))


def tables(page: Record) -> list[Table]:
    """The tables of this run; one without lines is left out."""
    found = [accuracy_table(page), differences_table(page), traces_table(page), tokens_table(page), costs_table(page)]
    return [table for table in found if table.records]


# --- the tables ----------------------------------------------------------------------------------------------------


def accuracy_table(page: Record) -> Table:
    """Accuracies by arm and task with both intervals; in LaTeX one line an arm."""
    records = [
        {
            "arm": row["arm"],
            "label": row["label"],
            "task": cell["task"],
            **{key: cell[key] for key in ("value", "low", "high", "fixed_low", "fixed_high")},
            "seed_sd": cell["sd"],
            **{key: cell[key] for key in ("n_problems", "n_samples", "paper")},
        }
        for row in page["main"]
        for cell in row["cells"]
    ]
    head = ["Model", *(column["label"] for column in page["columns"])]
    lines = [
        [row["label"], *(_with_interval(cell["value"], cell["low"], cell["high"], number) for cell in row["cells"])]
        for row in page["main"]
    ]
    caption = f"Accuracy, per cent, with its {page['confidence']} interval for problems like these."
    return Table("accuracy", caption, records, head, lines)


def differences_table(page: Record) -> Table:
    """Differences by pair and task, with everything that is known of them."""
    rows = [*page["differences"], *page["more_differences"]]
    records = [
        {
            "label": row["label"],
            "against": row["against"],
            "task": cell["points"].task,
            "points": cell["points"].value,
            **{key: getattr(cell["points"], key) for key in ("low", "high", "fixed_low", "fixed_high", "p", "p_holm")},
            "relative_change": cell["change"].value,
            "relative_low": cell["change"].low,
            "relative_high": cell["change"].high,
            "relative_paper": cell["change"].paper,
            "seed_sd": cell["sd"],
            "smallest_difference": cell["smallest"],
        }
        for row in rows
        for cell in row["cells"]
    ]
    whole = MEAN if len(page["columns"]) > 1 else page["columns"][0]["task"]
    lines = []
    for row in rows:
        cell = next(cell for cell in row["cells"] if cell["points"].task == whole)
        points = cell["points"]
        lines.append(
            [
                f"{row['label']} \N{MINUS SIGN} {row['against']}",
                _with_interval(points.value, points.low, points.high, signed),
                interval(points.fixed_low, points.fixed_high, sign=True) if points.fixed_low is not None else MISSING,
                p_value(points.p),
                p_value(points.p_holm),
                MISSING if cell["change"].value is None else f"{signed(cell['change'].value)} %",
            ]
        )
    head = ["Comparison", "Points, problems like these", "these problems", "p", "p (Holm)", "relative"]
    caption = f"Differences on {'the mean of the tasks' if whole == MEAN else whole}, {page['confidence']} intervals."
    return Table("differences", caption, records, head, lines)


def traces_table(page: Record) -> Table:
    """The trace sets side by side; in CSV one line a set with the counts of every reason."""
    reasons = list(dict.fromkeys(name for entry in page["traces"] for name in entry["record"].get("reasons", {})))
    records = []
    for entry in page["traces"]:
        record = entry["record"]
        problems, fallback = record.get("problems", {}), record.get("fallback_rate") or {}
        lengths = {
            f"{kind}_tokens_{quantile}": (record.get("tokens", {}).get(kind) or {}).get(quantile)
            for kind in ("attempts", "kept", "rows")
            for quantile in ("p5", "p50", "p95")
        }
        records.append(
            {
                "traces": entry["name"],
                "method": entry["method"],
                **{f"problems_{key}": problems.get(key) for key in ("all", "solved", "prefix", "dropped")},
                "attempts": record.get("attempts"),
                "correct_share": record.get("correct_share"),
                **lengths,
                "fallback_rate_attempts": fallback.get("attempts"),
                "fallback_rate_kept": fallback.get("kept"),
                "over_block_share": record.get("over_block_share"),
                **{f"reason_{name}": record.get("reasons", {}).get(name) for name in reasons},
            }
        )
    head = ["", *(entry["name"] for entry in page["traces"])]
    lines = [
        [heading, *(f"{main} ({note})" if note else main for main, note in cells)]
        for heading, cells in page["trace_table"]
    ]
    return Table("traces", "Trace sets; lengths in tokens, median (5 % to 95 %).", records, head, lines)


# Keys of a token analysis that are one number.
TOKEN_NUMBERS = (
    "problems",
    "rows",
    "tokens",
    "threshold",
    "improbable_share",
    "mean_surprisal",
    "mean_rank",
    "mean_entropy",
    "rank_surprisal_ratio",
)


def tokens_table(page: Record) -> Table:
    """The token analyses, one line a trace set and reader."""
    entries = page["tokens"]["entries"]
    records = [
        {
            "traces": entry["traces"],
            "reader": entry["reader"],
            **{key: entry["record"].get(key) for key in TOKEN_NUMBERS},
        }
        for entry in entries
    ]
    head = ["Trace set", "Read by", "Tokens", "Under the threshold", "Surprisal, nats", "Rank", "Entropy, nats", "RSR"]
    lines = [
        [
            entry["traces"],
            entry["label"],
            number(entry["record"].get("tokens"), 0),
            share(entry["record"].get("improbable_share"), digits=2),
            number(entry["record"].get("mean_surprisal"), 3),
            number(entry["record"].get("mean_rank"), 2),
            number(entry["record"].get("mean_entropy"), 3),
            number(entry["record"].get("rank_surprisal_ratio"), 2),
        ]
        for entry in entries
    ]
    caption = "How probable the tokens of each trace set are. RSR: rank-surprisal ratio (arXiv 2601.14249)."
    return Table("tokens", caption, records, head, lines)


def costs_table(page: Record) -> Table:
    """The costs, one line a rule and owner."""
    parts: Sequence[Part] = page["costs"]["parts"]
    records = [
        {
            **{key: value for key, value in asdict(part).items() if key not in ("arms", "notes")},
            "arms": " ".join(part.arms),
            "notes": "; ".join(part.notes),
        }
        for part in parts
    ]
    head = ["Stage", "Of", "Rule", "Jobs", "Device", "Time", "Tokens generated", "Tokens trained", "Used by"]
    lines = [
        [
            part.stage,
            part.owner,
            part.rule,
            str(part.jobs),
            part.device,
            f"{'at least ' if part.at_least else ''}{duration(part.seconds)}",
            number(part.generated, 0) if part.generated is not None else "",
            number(part.trained, 0) if part.trained is not None else "",
            ", ".join(part.arms),
        ]
        for part in parts
    ]
    return Table("costs", "What every part of the experiment took; each is counted once.", records, head, lines)


def _with_interval(value: float | None, low: float | None, high: float | None, show: Any) -> str:
    if value is None:
        return MISSING
    return f"{show(value)} ({interval(low, high, sign=show is signed)})"


# --- CSV -----------------------------------------------------------------------------------------------------------


def to_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Records of equal keys as CSV; numbers with ten digits, empty cells for None, no formulas."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(records[0].keys())
    for record in records:
        writer.writerow([_csv_cell(value) for value in record.values()])
    return text.getvalue()


def _csv_cell(value: Any) -> str | int:
    if value is None:
        return ""
    if isinstance(value, bool | int):
        return int(value)
    # On one line, so that every reader of CSV finds the same rows.
    return f"{value:.10g}" if isinstance(value, float) else no_formula(" ".join(re.split(r"[\r\n]+", str(value))))


def no_formula(text: str) -> str:
    """Text that no spreadsheet takes for a formula: with an apostrophe before a leading =, +, -, @, tab or newline."""
    return f"'{text}" if re.match(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]", text) else text


# --- LaTeX ---------------------------------------------------------------------------------------------------------

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    # Behind a line's end these would be an argument of it.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "`": r"\textasciigrave{}",
    "\N{MINUS SIGN}": r"$-$",
    "\N{NO-BREAK SPACE}": "~",
    "\N{NARROW NO-BREAK SPACE}": r"\,",
    "\N{LEFT DOUBLE QUOTATION MARK}": "``",
    "\N{RIGHT DOUBLE QUOTATION MARK}": "''",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
}


def latex(text: str) -> str:
    """Text as LaTeX on one line: every sign that means something escaped, controls left out, no ligatures."""
    line = re.sub(r"[ \t\r\n]+", " ", text).strip(" ")
    # Unbreakable spaces are not printable, as Python sees it.
    escaped = "".join(_LATEX.get(letter, letter) for letter in line if letter in _LATEX or letter.isprintable())
    return re.sub("-(?=-)", "-{}", escaped)


def to_latex(table: Table) -> str:
    """The table as a booktabs tabular, its caption in a comment; the first column left, the others right."""
    columns = "l" + "r" * (len(table.head) - 1)
    body = [" & ".join(latex(cell) for cell in line) + r" \\" for line in table.lines]
    return "\n".join(
        [
            f"% {' '.join(table.caption.split())}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(latex(cell) for cell in table.head) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )
