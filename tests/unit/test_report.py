"""The report: what it says of the numbers, what it shows where they are missing, and that nothing in it is markup."""

from __future__ import annotations

import base64
import copy
import hashlib
import html.parser
import itertools
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd import config as configuration
from rsd import figures, formatting, notes, report_figures, report_pages
from rsd import report_result as report
from rsd.compare import Row, read_comparison, read_summary
from rsd.records import write_jsonl
from rsd.report_records import byline
from rsd.report_traces import laws_view, reasons_view, trace_view
from synthetic_report import (
    MANIFEST,
    OVERLAP,
    PROBLEMS,
    RUN,
    SCORE,
    SELECTION,
    TRAINING,
    Config,
    Folder,
    paper_config,
    scores_records,
    token_rows,
    write_problems,
    write_tokens,
    write_traces,
)
from synthetic_results import PAPER_ACCURACY, PAPER_TASKS, write_samples, write_scores

ROOT = Path(__file__).parents[2]
HOSTILE = "<script>alert(1)</script> & \"quotes\" '$x^2$' `code` | _under_ {{ 7 * 7 }}"


QUESTION = {
    "text": "Does RSD help the student?",
    "comparisons": [["rsd", "base"], ["rsd", "direct"]],
    "rule": "The interval of the mean leaves out 0.",
}


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Results that look like the paper's; smaller tasks, to be fast."""
    folder = Folder(tmp_path_factory.mktemp("paper"), paper_config())
    tasks = {task: (min(problems, 120), 4) for task, (problems, _) in PAPER_TASKS.items()}
    write_scores(folder.path / "scores", tasks, PAPER_ACCURACY, {"base": [0], "direct": [0, 1], "rsd": [0, 1]})
    scores_records(folder.path / "scores", tasks, SCORE)
    ids = write_problems(folder.path / "problems.jsonl", 30)
    write_traces(folder.path / "traces" / "rsd", ids, 4)
    write_traces(folder.path / "traces" / "direct", ids, 1, rsd=False)
    folder.analyses = [("rsd", "student"), ("direct", "student"), ("rsd", "rsd-seed0"), ("direct", "direct-seed0")]
    for place, (traces, reader) in enumerate(folder.analyses):
        rows = token_rows(ids[:9], 200, improbable=0.01 + 0.05 * (traces == "direct"), seed=place)
        write_tokens(folder.path / "tokens", traces, reader, rows)
    folder.benchmark("generate_traces/rsd/shard-000", 3600.0)
    folder.benchmark("train/rsd-seed0", 60.0)
    folder.benchmark("evaluate/base-seed0/math500", 30.0)
    folder.compare()
    folder.change_summary(question=QUESTION)
    folder.report()
    return folder


@pytest.fixture(scope="module")
def page(paper: Folder) -> str:
    return (paper.path / "report.html").read_text()


class Reader(html.parser.HTMLParser):
    """The visible text, the tags and their attributes; checks that tags are closed in order."""

    VOID = ("meta", "br", "link", "img", "path", "use", "rect", "input")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


# --- the answer ----------------------------------------------------------------------------------------------------


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "arm": "rsd",
        "against": "base",
        "verdict": "higher",
        "accuracy": 27.22,
        "accuracy_against": 25.95,
        "difference_points": {"value": 1.27, "low": 0.31, "high": 2.26},
        "relative_change": {"value": 4.89, "low": 1.2, "high": 8.71, "paper": 4.9},
        "difference_by_seed": [1.0, 1.54, -0.3],
        "seed_sd": 0.94,
        "fixed": {"low": 0.52, "high": 1.91},
        "p": 0.0041,
        "p_holm": 0.0123,
        "smallest_difference": 1.1,
    } | changes


ANSWERS = {
    "arms": {"base": {"label": "Base", "traces": None}, "rsd": {"label": "RSD", "traces": "rsd"}},
    "tasks": {"aime24": {}, "math500": {}},
    "confidence": 0.95,
}


def test_the_sentence_gives_verdict_points_relative_change_and_both_intervals() -> None:
    assert report.sentence(entry(), ANSWERS) == (
        "“RSD” did better than “Base”: mean accuracy over 2 tasks 27.2 % against 25.9 %, +1.3 points "
        "(95 % interval +0.3 to +2.3 for problems like these, +0.5 to +1.9 for these problems; p = 0.004, 0.012 by "
        "Holm's correction), +4.9 % relative to “Base” (+1.2 to +8.7)."
    )


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"verdict": "lower"}, "did worse than “Base”"),
        ({"verdict": "undecided"}, "This run cannot tell whether “RSD” did better or worse than “Base”"),
        ({"verdict": "missing", "accuracy": None}, "missing, since not all of the samples are there"),
        (
            {"relative_change": {"value": None, "low": None, "high": None}},
            "no relative change, since “Base” solved nothing",
        ),
        (
            {"difference_points": {"value": 1.0, "low": None, "high": None}, "fixed": {}, "p": None, "p_holm": None},
            "+1.0 points (95 % interval not determined for problems like these), +4.9 %",
        ),
        ({"p": 0.0001, "p_holm": None}, "for these problems; p < 0.001), "),
    ],
)
def test_the_sentence_says_when_the_answer_is_another_one(changes: dict[str, Any], part: str) -> None:
    assert part in report.sentence(entry(**changes), ANSWERS)


def test_one_task_has_no_mean() -> None:
    said = report.sentence(entry(), ANSWERS | {"tasks": {"gsm8k": {}}})
    assert "mean" not in said
    assert ": accuracy 27.2 % against" in said


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "Training seeds: 2 above, 1 below (+1.0, +1.5, −0.3 points); standard deviation between seeds 0.9."),
        (
            {"difference_by_seed": [1.0], "seed_sd": None},
            "One training seed: this run says nothing about how much another one would differ.",
        ),
        (
            {"difference_by_seed": [1.0, None], "seed_sd": None},
            "Training seeds: 1 above, 0 below (+1.0 points); 1 of 2 seeds missing.",
        ),
    ],
)
def test_every_training_seed_is_reported(changes: dict[str, Any], expected: str) -> None:
    assert report.seed_sentence(entry(**changes), ANSWERS) == expected


def test_models_that_were_not_trained_have_no_training_seeds() -> None:
    untrained = ANSWERS | {"arms": {arm: {"label": arm, "traces": None} for arm in ("base", "rsd")}}
    assert report.seed_sentence(entry(difference_by_seed=[1.0], seed_sd=None), untrained) == ""


def test_the_question_decides_what_is_answered_and_an_unmade_comparison_is_missing() -> None:
    answers = ANSWERS | {
        "question": {"comparisons": [["rsd", "base"], ["own", "base"]]},
        "comparisons": [entry()],
    }
    views = [report.compared_view(found, answers) for found in report.primary_entries(answers)]
    assert [view["verdict"] for view in views] == ["higher", "missing"]
    assert views[1]["sentence"] == "“own” against “Base”: missing, since not all of the samples are there."


def test_many_comparisons_are_split_by_the_arms_of_the_question() -> None:
    arms = [f"arm{number}" for number in range(10)]
    answers = {
        "base": "arm0",
        "question": {"comparisons": [["arm2", "arm0"], ["arm2", "arm1"]]},
        "comparisons": [{"arm": arm, "against": other} for other in arms for arm in arms if arm > other],
    }
    first, rest = report.split_comparisons(answers)
    assert [(pair["arm"], pair["against"]) for pair in first] == [
        *((arm, "arm0") for arm in arms[1:]),
        *((arm, "arm1") for arm in arms[2:]),
    ]
    assert len(first) + len(rest) == 45
    few = answers | {"comparisons": answers["comparisons"][:6]}
    assert report.split_comparisons(few) == (few["comparisons"], [])


def test_the_page_begins_with_the_answer(paper: Folder, page: str) -> None:
    text = Reader(page).text
    summary = read_summary(paper.path / "comparison.json")
    said = [report.sentence(answer, summary) for answer in summary["comparisons"] if answer["arm"] == "rsd"]
    places = [text.index(" ".join(sentence.split())) for sentence in said]
    assert all(place < text.index("Table 1.") for place in places)
    assert len(said) == 2


def test_the_question_stands_before_the_answer_and_the_rule_behind_it(page: str) -> None:
    text = Reader(page).text
    question, rule = f"Asked before the run. {QUESTION['text']}", f"before the run. {QUESTION['rule']}"
    assert text.index(question) < text.index("mean accuracy over 4 tasks") < text.index(rule) < text.index("Table 1.")


def test_a_card_holds_everything_that_says_how_sure(paper: Folder, page: str) -> None:
    summary = read_summary(paper.path / "comparison.json")
    text = Reader(page).text
    for arm, against in QUESTION["comparisons"]:
        found = next(one for one in summary["comparisons"] if (one["arm"], one["against"]) == (arm, against))
        points, fixed = found["difference_points"], found["fixed"]
        assert (
            f"{formatting.signed(points['value'])} points 95 %, problems like these "
            f"{formatting.interval(points['low'], points['high'], sign=True)} 95 %, these problems "
            f"{formatting.interval(fixed['low'], fixed['high'], sign=True)} "
            f"p (sign flips) {formatting.p_value(found['p'])} p, Holm {formatting.p_value(found['p_holm'])} "
            "smallest detectable "
            f"{formatting.number(found['smallest_difference'])} points"
        ) in text


def test_a_judges_opinion_is_summed_over_seeds_and_decides_nothing() -> None:
    def judged(right: int, wrong: int, model: str) -> dict[str, Any]:
        return {"judge": {"model": model, "table": {"right_right": right, "wrong_right": wrong, "wrong_wrong": 5}}}

    scores = {
        "rsd-seed0/aime24": judged(10, 1, "one"),
        "rsd-seed1/aime24": judged(20, 4, "two"),
        "base-seed0/aime24": {},
    }
    (found,) = report.judged_view(scores, ANSWERS)
    assert (found["label"], found["task"], found["models"], found["judged"]) == ("RSD", "aime24", ["one", "two"], 45)
    assert found["agreement"] == 40 / 45


# --- the page ------------------------------------------------------------------------------------------------------


def test_the_page_shows_every_accuracy_with_its_interval_and_the_papers_value(paper: Folder, page: str) -> None:
    text = Reader(page).text
    for row in read_comparison(paper.path / "comparison.csv"):
        if (row.against, row.seed, row.metric) == ("", "all", "accuracy"):
            intervals = formatting.interval(row.low, row.high), formatting.interval(row.fixed_low, row.fixed_high)
            assert f"{formatting.number(row.value)} {intervals[0]} [{intervals[1]}]" in text
    for published in ("paper 2.7", "paper 65.4", "paper 25.95", "paper −20.5 %", "paper +4.9 %"):
        assert published in text


def test_the_page_needs_no_network_and_runs_its_own_script_alone(page: str) -> None:
    tags = Reader(page).tags
    assert not {tag for tag, _ in tags} & {"link", "img", "iframe", "object", "embed", "base", "form"}
    for _, attributes in tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href", "action", "data"):
                assert value
                assert value.startswith("#")
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page, flags=re.DOTALL)
    assert [attributes for attributes, _ in scripts] == [' type="application/json" id="explorer-data"', ""]
    digest = base64.b64encode(hashlib.sha256(scripts[1][1].encode()).digest()).decode()
    policy = next(
        str(attributes["content"]) for tag, attributes in tags if "content-security-policy" in str(attributes).lower()
    )
    assert policy.split("; ") == [
        "default-src 'none'",
        f"script-src 'sha256-{digest}'",
        "style-src 'unsafe-inline'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_inner_links_lead_somewhere_and_ids_are_unique(page: str) -> None:
    tags = Reader(page).tags
    ids = [attributes["id"] for tag, attributes in tags if "id" in attributes and tag in ("section", "figure")]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for tag, attributes in tags if tag == "a" and "href" in attributes]
    assert links
    assert {str(link).removeprefix("#") for link in links} <= set(ids)


def test_the_records_of_all_stages_are_shown(page: str) -> None:
    text = Reader(page).text
    for shown in (
        "16.7 %",  # solved
        "did not end its turn within the limit",
        "100 20 to 240",  # median length and range
        "0.84 %",  # fallback
        "56.8 %",  # over the block size
        "1 h 02 min",
        "1.000 0.007",  # loss
        "Agree % Right by both",
        "How many of the attempts at a problem have the right answer.",
        "rank-surprisal ratio",
        "SFT on RSD traces, seed 0 (after training)",
        "1 h 00 min",
        "1 000 training problems from 1 003 rows",
        "2 rows with the question of an earlier one",
        "math500 500 2 1 0.4 %",  # overlap: two benchmark problems of 500
        "c1899de",
        "1.5 GB",
        "f00d" * 16,
        "apache-2.0",
        "lm-eval 0.4.13",
        "0123456789abcdef",
        "torch 2.13.0",
        "threshold: 0.01",
        "authors-code: up to 5 proposals of the teacher (temperature 1, top 20)",
    ):
        assert shown in text, shown


def test_the_configuration_on_the_page_gives_the_same_run(paper: Folder, page: str, tmp_path: Path) -> None:
    reader = Reader(page[page.index("<pre>") : page.index("</pre>") + 6])
    (tmp_path / "config.yaml").write_text("".join(reader.words))
    assert configuration.load([tmp_path / "config.yaml"]) == paper.config


def test_the_same_results_give_the_same_bytes(paper: Folder, page: str) -> None:
    def files() -> dict[str, bytes]:
        return {
            path.name: path.read_bytes() for name in ("figures", "tables") for path in (paper.path / name).iterdir()
        }

    before = files()
    again, _ = paper.report()
    assert again == page
    assert files() == before


def test_the_papers_experiment_is_not_called_another_one(page: str) -> None:
    assert "not the paper's experiment" not in Reader(page).text


def test_trace_sets_with_one_law_share_its_lines_and_outcomes_stand_side_by_side() -> None:
    config = paper_config()
    config["traces"]["again"] = config["traces"]["rsd"] | {"method": "select", "of": "rsd"}
    config["traces"]["other"] = config["traces"]["rsd"] | {"threshold": 0.1}
    views = [trace_view(name, SELECTION, config) for name in ("rsd", "again", "other", "direct")]
    assert list(laws_view(views).values()) == [["rsd", "again"], ["other"]]
    assert views[1]["made"] == "selected anew from another set's attempts, from rsd"
    reasons = reasons_view([views[0], trace_view("direct", {"attempts": 5, "reasons": {"kept": 5}}, config)])
    assert [entry["name"] for entry in reasons["sets"]] == ["rsd"]
    assert reasons["rows"][0] == ("kept: it became a training row", [(167, 16000)])


def test_the_byline_names_every_commit_and_a_changed_checkout() -> None:
    runs = [
        {"commit": "a" * 40, "finished": 5.0},
        {"commit": "b" * 40 + "-dirty", "finished": 9.0},
        {"commit": None, "finished": None},
    ]
    assert byline(runs) == {"finished": 9.0, "commits": ["a" * 12, "b" * 12 + "-dirty", "no checkout"]}
    assert byline([]) == {"finished": None, "commits": []}


# --- what is missing -----------------------------------------------------------------------------------------------


@pytest.fixture
def gaps(tmp_path: Path) -> Folder:
    """No record of any stage, and one sample file gone."""
    folder = Folder(tmp_path, paper_config())
    tasks = dict.fromkeys(PAPER_TASKS, (4, 2))
    write_scores(folder.path / "scores", tasks, PAPER_ACCURACY, {"base": [0], "direct": [0, 1], "rsd": [0, 1]})
    (folder.path / "scores" / "rsd-seed1" / "math500.parquet").unlink()
    for path in folder.records():
        path.unlink()
    folder.compare()
    return folder


def test_missing_cells_and_records_are_shown_as_missing(gaps: Folder) -> None:
    page, markdown = gaps.report()
    text = Reader(page).text
    assert "1 of 20 sample files are missing" in text
    assert "rsd-seed1/math500" in text
    assert "“SFT on RSD traces” against “Untrained student”: missing" in text
    assert "The overlap with the benchmarks is missing." in text
    assert "The benchmark files of this run are missing." in text
    assert "No problem is shown here: it is not known which training problems are problems of gpqa_diamond" in text
    assert not re.search(r"\b(nan|inf|None)\b", text)
    row = next(line for line in markdown.splitlines() if line.startswith("| SFT on RSD traces |"))
    assert row.split("|")[5].strip() == "missing"
    assert "missing" in (gaps.path / "figures" / "accuracy.svg").read_text()


def test_records_with_missing_keys_are_no_error(gaps: Folder) -> None:
    gaps.analyses = [("rsd", "student"), ("rsd", "rsd-seed0")]
    analyses = [gaps.path / "tokens" / traces / f"{reader}.json" for traces, reader in gaps.analyses]
    scores = [gaps.path / "scores" / "base-seed0" / f"{task}.json" for task in PAPER_TASKS]
    for path in (*gaps.records(), *analyses, *scores):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"unknown": 1}')
    assert "missing" in Reader(gaps.report()[0]).text


def test_a_comparison_without_the_newer_numbers_shows_them_as_missing(gaps: Folder) -> None:
    tasks = dict.fromkeys(PAPER_TASKS, (4, 2))
    write_scores(gaps.path / "scores", tasks, PAPER_ACCURACY, {"base": [0], "direct": [0, 1], "rsd": [0, 1]})
    gaps.compare()
    lines = (gaps.path / "comparison.csv").read_text().splitlines()
    later = ("pass_at_k", "maj_at_k", "duplicate_share", "smallest_difference")
    (gaps.path / "comparison.csv.sha256").unlink()
    (gaps.path / "comparison.csv").write_text(
        "\n".join(line for line in lines if not any(name in line for name in later))
    )
    summary = read_summary(gaps.path / "comparison.json")
    old = [
        {key: value for key, value in found.items() if key not in ("fixed", "p", "p_holm", "smallest_difference")}
        for found in summary["comparisons"]
    ]
    gaps.change_summary(comparisons=old, tests=None)
    text = Reader(gaps.report()[0]).text
    assert "smallest detectable missing" in text
    assert "p, Holm missing" in text


def test_a_set_made_of_another_one_has_no_attempts_and_names_where_it_comes_from(gaps: Folder) -> None:
    gaps.config["traces"]["filtered"] = gaps.config["traces"]["direct"] | {"method": "filter", "of": "direct"}
    gaps.config["arms"]["direct"]["traces"] = "filtered"
    gaps.selection("filtered", {"problems": {"all": 9, "solved": 7, "prefix": 0, "dropped": 2}})
    text = Reader(gaps.report()[0]).text
    assert "another set's traces, filtered, from direct" in text
    assert "7 77.8 %" in text


def test_a_broken_record_is_refused_by_name(gaps: Folder) -> None:
    gaps.overlap.write_text("{")
    with pytest.raises(ValueError, match=r"overlap\.json is no valid JSON .*; delete the file"):
        gaps.report()


def test_an_untrained_student_alone_has_a_report(tmp_path: Path) -> None:
    folder = Folder(
        tmp_path, paper_config(run={"arms": ["base"], "tasks": ["math500"]}, question={"comparisons": None})
    )
    folder.trainings = {}
    write_samples(tmp_path / "scores" / "base-seed0" / "math500.parquet", np.array([[True, False]] * 3))
    folder.compare()
    page, markdown = folder.report()
    assert "There is one arm only" in Reader(page).text
    assert "50.0" in markdown
    assert not (tmp_path / "figures" / "differences.svg").exists()


# --- hostile text --------------------------------------------------------------------------------------------------


def test_nothing_that_is_shown_is_markup(tmp_path: Path) -> None:
    config = paper_config(title=HOSTILE, run={"tasks": ["math500"]})
    for arm in ("base", "direct", "rsd"):
        config["arms"][arm]["label"] = f"{arm} {HOSTILE}"
    config["prompts"]["boxed"] = HOSTILE + "</pre>{question}"
    folder = Folder(tmp_path, config)
    write_scores(
        tmp_path / "scores", {"math500": (5, 2)}, PAPER_ACCURACY, {"base": [0], "direct": [0, 1], "rsd": [0, 1]}
    )
    hostile = json.loads(json.dumps(SELECTION))
    hostile["reasons"][HOSTILE] = 3
    folder.selection("rsd", hostile)
    ids = [HOSTILE, "</script><script>alert(2)</script>", "<!--"]
    records = [{"id": name, "question": HOSTILE + "\u2028</script>", "answer": HOSTILE} for name in ids]
    write_jsonl(tmp_path / "problems.jsonl", records)
    write_traces(tmp_path / "traces" / "rsd", ids, 3)
    rows = token_rows(ids, 20, improbable=0.5)
    for row in rows:
        row["pieces"] = [HOSTILE, "</script>", "<!--", "\u202e"] * (len(row["pieces"]) // 4)
    folder.analyses = [("rsd", "student")]
    write_tokens(tmp_path / "tokens", "rsd", "student", rows)
    folder.record("student.manifest", MANIFEST | {"licence": HOSTILE, "revision": HOSTILE, "source": HOSTILE})
    folder.record("problems", PROBLEMS | {"dataset": HOSTILE})
    folder.record(
        "overlap", OVERLAP | {"tasks": {HOSTILE: {"n_problems": 1, "exact": [[HOSTILE, HOSTILE]], "near": []}}}
    )
    folder.record("rsd0.training", TRAINING | {"provenance": {"run": RUN | {"commit": HOSTILE, "gpu": HOSTILE}}})
    folder.compare()
    page, markdown = folder.report()
    reader = Reader(page)
    assert len([tag for tag, _ in reader.tags if tag == "script"]) == page.count("<script") == 2
    data = page.split('id="explorer-data">')[1].split("</script>")[0]
    assert not set("<>&\u2028\u2029") & set(data)
    assert {problem["id"] for problem in json.loads(data)["problems"]} == set(ids)
    assert json.loads(data)["views"][HOSTILE]["rsd"]["pieces"][:2] == [HOSTILE, "</script>"]
    assert HOSTILE in reader.text
    assert "⟨U+202E⟩" in reader.text
    assert "\u202e" not in reader.text
    assert "<script" not in markdown
    for path in (tmp_path / "tables").glob("*.tex"):
        assert not re.search(r"(?<!\\)\$x", path.read_text())
    table = [line for line in markdown.splitlines() if line.startswith("| base")]
    assert len(re.findall(r"(?<!\\)\|", table[0])) == 3
    for figure in (tmp_path / "figures").glob("*.svg"):
        assert "script" not in {element.tag.split("}")[-1] for element in ElementTree.parse(figure).iter()}


@given(st.text(max_size=40))
def test_escaped_markdown_is_one_line_without_markup(text: str) -> None:
    escaped = report_pages.escape_markdown(text)
    assert "\n" not in escaped
    assert not set("<>") & set(escaped)
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`*_]", escaped)


# --- figures -------------------------------------------------------------------------------------------------------


FIGURES = ["accuracy", "before-after", "differences", "fallback", "lengths", "right-attempts", "tokens", "training"]


def test_figures_are_written_as_svg_and_pdf(paper: Folder) -> None:
    names = sorted(path.name for path in (paper.path / "figures").iterdir())
    assert names == [f"{name}.{kind}" for name in FIGURES for kind in ("pdf", "svg")]
    for name in names:
        content = (paper.path / "figures" / name).read_bytes()
        if name.endswith("pdf"):
            assert content.startswith(b"%PDF")
            assert b"CreationDate" not in content
        else:
            ElementTree.fromstring(content)
            assert b"<dc:date>" not in content


def test_figures_are_numbered_in_their_order_on_the_page(page: str) -> None:
    assert re.findall(r"Figure (\d+)\.", Reader(page).text) == [str(number) for number in range(1, len(FIGURES) + 1)]


def test_figures_on_the_page_take_their_colours_from_the_page(paper: Folder, page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) == len(FIGURES)
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        assert "var(--ink)" in drawing
        assert set(re.findall(r"#[0-9a-f]{6}\b", drawing)) <= {"#000000"}
        assert 'role="img"' in drawing
    style = page[page.index("<style>") : page.index("</style>")]
    for name in figures.PALETTE:
        assert style.count(f"--{name}:") == 2  # light and dark


def test_page_and_figures_share_the_light_palette(page: str) -> None:
    light = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", page.split("@media")[0]))
    assert {name: light[name] for name in figures.PALETTE} == figures.PALETTE


MANY = [f"arm{number}" for number in range(12)]


def many_arms(tasks: list[str]) -> tuple[list[Row], dict[str, Any]]:
    """A comparison of twelve arms as in an experiment of controls; arm0 is the base, arm1 direct distillation."""

    def row(arm: str, against: str, task: str, metric: str) -> Row:
        intervals = {"low": -1.0, "high": 3.0, "fixed_low": 0.0, "fixed_high": 2.0}
        names = {"arm": arm, "against": against, "seed": "all", "task": task, "metric": metric}
        return Row(**names, value=1.0, **intervals, p=0.1, p_holm=0.2, n_problems=9, n_samples=9, paper=None)

    pairs = [(later, earlier) for earlier, later in itertools.combinations(MANY, 2)]
    shown = [*tasks, "mean"] if len(tasks) > 1 else tasks
    rows = [row(arm, "", task, "accuracy") for arm in MANY for task in shown]
    rows += [row(arm, against, task, "difference_points") for arm, against in pairs for task in shown]
    answers = {
        "base": "arm0",
        "arms": {arm: {"label": arm, "seeds": [0], "traces": arm} for arm in MANY},
        "tasks": {task: {"problems": 9, "samples_a_problem": 1} for task in tasks},
        "confidence": 0.95,
        "question": {"comparisons": [["arm2", "arm0"], ["arm2", "arm1"]]},
        "comparisons": [{"arm": arm, "against": against} for arm, against in pairs],
    }
    return rows, answers


@pytest.mark.parametrize("tasks", [["pocket"], ["aime24", "aime25", "gpqa", "math500"]])
def test_a_forest_of_many_arms_shows_the_base_and_direct_first_and_folds_the_rest(tasks: list[str]) -> None:
    rows, answers = many_arms(tasks)
    drawn = list(report_figures.difference_drawings(rows, answers))
    first, *others = drawn
    assert [drawing.name for drawing in drawn if not drawing.folded] == ["differences"]
    labels = [label.get_text() for label in first.figure.axes[0].get_yticklabels()]
    assert labels == [*MANY[1:], *MANY[2:]]
    headings = {text.get_text() for text in first.figure.axes[0].texts}
    assert {"against arm0", "against arm1"} <= headings
    by_task = [f"differences-{task}" for task in tasks] if len(tasks) > 1 else []
    assert [drawing.name for drawing in others] == [*by_task, "differences-others"]
    # Every line has its own height: nothing lies upon another, at least a fifth of an inch apart.
    height = first.figure.get_size_inches()[1]
    assert height / len(labels) > 0.2


def test_the_accuracies_of_many_arms_show_their_mean_and_fold_the_tasks() -> None:
    rows, answers = many_arms(["a", "b", "c"])
    first, tasks = report_figures.accuracy_drawings(rows, answers)
    assert len(first.figure.axes[0].get_yticklabels()) == 12
    assert (first.folded, tasks.folded) == (False, True)
    assert len(tasks.figure.axes[0].get_yticklabels()) == 36


def test_a_forest_shows_both_intervals() -> None:
    mark = figures.Mark("x", 1.0, -1.0, 3.0, 0.5, 2.0)
    lines = figures.forest_figure([figures.Group("g", [mark])]).axes[0].lines
    ends = [line.get_xdata().tolist() for line in lines if len(line.get_xdata()) == 2]
    assert [-1.0, 3.0] in ends
    assert [0.5, 2.0] in ends


def test_every_arm_has_its_own_colour_up_to_seven() -> None:
    assert len({figures.arm_colour(index) for index in range(7)}) == 7
    assert figures.arm_colour(7) == figures.arm_colour(1)


def test_labels_with_dollars_are_text_and_long_ones_are_broken() -> None:
    figure = figures.accuracy_figure([figures.Group("$a_b$", [figures.Mark("word " * 30, 5.0, 4.0, 6.0)])])
    label = figure.axes[0].get_yticklabels()[0].get_text()
    assert label.count("\n") == 1
    assert label.endswith("…")


def test_drawing_leaves_matplotlibs_settings_alone() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    before = copy.deepcopy(dict(matplotlib.rcParams))
    figures.forest_figure([figures.Group("x", [figures.Mark("y", 1.0, 0.0, 2.0)])])
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("value", "text"), [(1.25, "+1.2"), (-0.04, "0.0"), (0.04, "0.0"), (-20.5, "−20.5"), (0, "0.0")]
)
def test_signed_numbers_have_a_true_minus_and_zero_has_no_sign(value: float, text: str) -> None:
    assert figures.signed(value) == text


def test_a_figure_title_that_would_need_escaping_is_refused() -> None:
    with pytest.raises(ValueError, match="must be plain text"):
        figures.inline_svg("<svg></svg>", 'a "quoted" title')


def test_losses_are_averaged_over_equal_stretches() -> None:
    points = [{"epoch": float(step), "loss": float(step % 2)} for step in range(240)]
    epochs, losses = report_figures.averaged(points)
    assert len(epochs) == 60
    assert losses == [0.5] * 60
    assert epochs[0] == 1.5
    assert report_figures.averaged(points[:3]) == ([0, 1, 2], [0, 1, 0])


# --- terminal ------------------------------------------------------------------------------------------------------


def test_the_terminal_shows_the_table_and_the_answers(paper: Folder) -> None:
    lines = report.terminal_table(paper.path / "comparison.csv").splitlines()
    assert lines[0].split() == ["accuracy,", "%", "aime24", "aime25", "gpqa_diamond", "math500", "mean"]
    assert len({len(line) for line in lines[:4]}) == 1
    answers = read_summary(paper.path / "comparison.json")
    assert len(answers["question"]["comparisons"]) == 2 < len(answers["comparisons"])
    verdict = {(entry["arm"], entry["against"]): entry["verdict"] for entry in answers["comparisons"]}
    asked = [verdict[arm, against] for arm, against in answers["question"]["comparisons"]]
    assert [line[0] for line in lines[5:]] == [report.VERDICTS[entry][0] for entry in asked]


# --- notes ---------------------------------------------------------------------------------------------------------


def said(config: Config) -> dict[str, str]:
    return {note.title: note.text for note in notes.method_notes(config)}


def test_the_unchanged_config_is_the_papers_experiment_with_its_open_questions() -> None:
    config = configuration.load([ROOT / "config.yaml"])
    assert notes.unlike_paper(config) == []
    found = said(config)
    assert set(found) == {
        "Prompts",
        "Grading",
        "Law of rsd",
        "Unsolved problems of rsd",
        "Long traces of direct",
        "Samples",
    }
    assert "the wording is ours" in found["Prompts"]
    assert "GPT-4o-mini" in found["Grading"]
    assert "the first one" in found["Unsolved problems of rsd"]
    assert "aime24 64" in found["Samples"]


@pytest.mark.parametrize(
    ("changes", "title", "part"),
    [
        ({"traces": {"rsd": {"threshold": 0.03}}}, "Traces rsd", "threshold 0.03 (paper: 0.01)"),
        ({"traces": {"rsd": {"law": "paper-text"}}}, "Law of rsd", "a plain reading of the paper's text"),
        ({"traces": {"rsd": {"draws": 1}}}, "Law of rsd", "up to 1 proposal of the teacher"),
        ({"traces": {"rsd": {"select": {"unsolved": "drop"}}}}, "Selection of rsd", "unsolved drop (paper: prefix)"),
        ({"training": {"epochs": 5}}, "Training of rsd", "epochs 5 (paper: 15)"),
        ({"arms": {"rsd": {"training": {"epochs": 5}}}}, "Training of rsd", "epochs 5 (paper: 15)"),
        ({"evaluation": {"profile": "qwen"}}, "Evaluation profile qwen", "temperature 0.6 (paper: 0.7)"),
        ({"tasks": {"math500": {"limit": 50}}}, "Cut-down data", "math500 50"),
        ({"problems": {"limit": 96}}, "Cut-down data", "training 96"),
    ],
)
def test_each_changed_setting_is_said(changes: Config, title: str, part: str) -> None:
    assert part in said(paper_config(**changes))[title]


def test_a_setting_of_an_arm_that_does_not_run_is_not_said() -> None:
    found = said(paper_config(run={"arms": ["base", "rsd"]}, arms={"direct": {"training": {"epochs": 1}}}))
    assert not [title for title in found if "direct" in title]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"models": {"student": {"source": "path:models/other"}}}, "student student: path:models/other"),
        (
            {"models": {"teacher": {"source": "hf://a/b@c"}}},
            "teacher teacher: hf://a/b (paper: hf://simplescaling/s1.1-7B)",
        ),
        ({"problems": {"dataset": "math500"}}, "training problems math500"),
        ({"run": {"tasks": ["math500"]}}, "no task AIME 2024"),
    ],
)
def test_other_models_and_data_are_said_to_be_another_experiment(changes: Config, part: str) -> None:
    assert any(line.startswith(part) for line in notes.unlike_paper(paper_config(**changes)))


def test_the_page_says_plainly_that_it_is_not_the_papers_experiment(gaps: Folder) -> None:
    gaps.config["models"]["student"]["source"] = "path:somewhere"
    page, markdown = gaps.report()
    assert "This is not the paper's experiment: other models and data." in Reader(page).text
    assert "**This is not the paper's experiment: other models and data.**" in markdown


# --- numbers as text -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (formatting.number(12345.678), "12\u202f345.7"),
        (formatting.number(-1.25, 2), "−1.25"),
        (formatting.number(None), "missing"),
        (formatting.interval(-1, 2, sign=True), "−1.0 to +2.0"),
        (formatting.interval(None, None), "not determined"),
        (formatting.share(1, 8), "12.5\u00a0%"),
        (formatting.share(0.25), "25.0\u00a0%"),
        (formatting.share(1, 0), "missing"),
        (formatting.size(999), "999 B"),
        (formatting.size(1_503_300_328), "1.5 GB"),
        (formatting.size(0), "0 B"),
        (formatting.duration(59.6), "1 min 00 s"),
        (formatting.duration(7.2), "7 s"),
        (formatting.duration(7325), "2 h 02 min"),
        (formatting.day(0), "1970-01-01 00:00 UTC"),
        (formatting.given(25.95), "25.95"),
        (formatting.given(-20.5, sign=True), "−20.5"),
    ],
)
def test_numbers_are_written_for_people(shown: str, expected: str) -> None:
    assert shown == expected
