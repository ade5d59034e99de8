"""Tables as files: raw numbers in CSV without formulas, booktabs in LaTeX without markup from anywhere."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report import Folder, paper  # noqa: F401

from rsd.compare import read_comparison
from rsd.report_tables import Table, latex, no_formula, to_csv, to_latex


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "  =1", "\t=1", "\r=1", "\n=1", "＝1"])
def test_text_that_a_spreadsheet_would_run_gets_an_apostrophe(text: str) -> None:
    assert no_formula(text) == "'" + text


@pytest.mark.parametrize("text", ["a=1", "SFT on RSD traces", "", "1-2", "'=1"])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert no_formula(text) == text


@given(st.text())
def test_no_cell_begins_like_a_formula(text: str) -> None:
    cell = next(csv.reader(io.StringIO(to_csv([{"x": text}]).split("\n", 1)[1])), [""])
    assert not re.match(r"\s*[=+\-@]", cell[0] if cell else "")


def test_numbers_keep_their_sign_and_nothing_is_an_empty_cell() -> None:
    records = [{"a": -1.25, "b": None, "c": 3, "d": True, "e": "x,y"}]
    assert to_csv(records) == 'a,b,c,d,e\n-1.25,,3,1,"x,y"\n'


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("50 % & more", r"50 \% \& more"),
        ("a_b^c~d", r"a\_b\textasciicircum{}c\textasciitilde{}d"),
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("$x$ #1 <tag>", r"\$x\$ \#1 \textless{}tag\textgreater{}"),
        ("[0.5] * 2", "{[}0.5{]} {*} 2"),
        ("\u22121.5 to 12\u202f345", r"$-$1.5 to 12\,345"),
        ("a -- b --- c", "a -{}- b -{}-{}- c"),
        ("two\nlines\x00\u202e", "two lines"),
    ],
)
def test_latex_is_text(text: str, escaped: str) -> None:
    assert latex(text) == escaped


@given(st.text())
def test_no_sign_of_latex_is_left_unescaped(text: str) -> None:
    escaped = latex(text)
    assert "\n" not in escaped
    names = "backslash|asciicircum|asciitilde|asciigrave|less|greater|bar"
    known = rf"\\text(?:{names})\{{\}}|\\[{{}}$&#%_,]|\$-\$|\{{[\[\]*]\}}|-\{{\}}|~"
    assert not set(re.sub(known, "", escaped)) & set("\\{}$&#%_^[]*")


def test_a_latex_table_is_a_booktabs_tabular() -> None:
    table = Table("t", "what\nit is", [], ["", "a_b"], [["x & y", "1.0"], ["[z]", "2.0"]])
    assert to_latex(table) == "\n".join(
        [
            "% what it is",
            r"\begin{tabular}{lr}",
            r"\toprule",
            r" & a\_b \\",
            r"\midrule",
            r"x \& y & 1.0 \\",
            r"{[}z{]} & 2.0 \\",
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def test_the_report_writes_every_table_in_both_forms(paper: Folder) -> None:  # noqa: F811
    names = {path.name for path in (paper.path / "tables").iterdir()}
    tables = ("accuracy", "differences", "traces", "tokens", "costs")
    assert names == {f"{name}.{kind}" for name in tables for kind in ("csv", "tex")}
    for name in tables:
        lines = (paper.path / "tables" / f"{name}.tex").read_text().splitlines()
        columns = re.search(r"\{(l(?:r*))\}", lines[1])
        assert columns
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines if line.endswith(r" \\")} == {len(columns[1])}


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_accuracies_are_those_of_the_comparison(paper: Folder) -> None:  # noqa: F811
    found = {(row["arm"], row["task"]): row for row in read(paper.path / "tables" / "accuracy.csv")}
    rows = [
        row for row in read_comparison(paper.path / "comparison.csv") if (row.metric, row.seed) == ("accuracy", "all")
    ]
    assert len(rows) == len(found) == 15
    for row in rows:
        for key in ("value", "low", "high", "fixed_low", "fixed_high"):
            assert float(found[row.arm, row.task][key]) == pytest.approx(getattr(row, key), rel=1e-9)


def test_the_differences_hold_every_pair_and_task(paper: Folder) -> None:  # noqa: F811
    found = read(paper.path / "tables" / "differences.csv")
    assert len(found) == 3 * 5
    assert all(row["p_holm"] and row["smallest_difference"] and row["relative_change"] for row in found)


def test_a_label_that_looks_like_a_formula_is_text_in_the_csv(tmp_path: Path) -> None:
    assert to_csv([{"label": '=HYPERLINK("http://x")'}]).splitlines()[1].startswith("\"'=HYPERLINK")
