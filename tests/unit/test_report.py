"""The report: what it says of the numbers, what it shows where they are missing, and that nothing in it is markup."""

from __future__ import annotations

import copy
import html.parser
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
from rsd import figures, formatting, notes, report
from rsd.compare import read_comparison, read_summary, run_compare
from synthetic_results import PAPER_ACCURACY, PAPER_TASKS, write_samples, write_scores

ROOT = Path(__file__).parents[2]
HOSTILE = "<script>alert(1)</script> & \"quotes\" '$x^2$' `code` | _under_ {{ 7 * 7 }}"
RUN = {
    "commit": "0123456789abcdef",
    "python": "3.11.9",
    "packages": {"torch": "2.13.0"},
    "machine": "x86_64",
    "gpu": None,
    "finished_unix": 1.7e9,
}
QUANTILES = {"mean": 110.0, "p0": 5.0, "p5": 20.0, "p25": 70.0, "p50": 100.0, "p75": 130.0, "p95": 240.0, "p100": 300.0}
SELECTION = {
    "problems": {"all": 1000, "solved": 167, "prefix": 833, "dropped": 0, "without_attempt": {}},
    "attempts": 16000,
    "reasons": {"kept": 167, "unfinished": 12000, "wrong_answer": 3833},
    "correct_share": 0.0625,
    "tokens": {"attempts": QUANTILES, "kept": QUANTILES, "completions": QUANTILES, "rows": None},
    "block_size": 8192,
    "over_block_share": 0.5678,
    "kept_unfinished_share": 0.0,
    "fallback_rate": {"attempts": 0.0084, "kept": 0.0051},
    "provenance": {"settings": {}, "run": RUN},
}
TRAINING = {
    "curve": [{"step": step, "epoch": step / 50, "loss": 1 / step} for step in range(1, 151)],
    "rows": {
        "total": 1000,
        "prefix": 833,
        "overlong": 5,
        "truncated": 5,
        "dropped": 0,
        "used": 1000,
        "supervised_tokens": 123456,
    },
    "steps": 150,
    "epochs": 3,
    "seconds": 3725.0,
    "provenance": {"settings": {}, "run": RUN},
}
PROBLEMS = {"dataset": "s1k", "rows": 1003, "problems": 1000, "limit": None, "duplicates": [{}] * 2, "empty": [{}]}
OVERLAP = {
    "n_problems": 1000,
    "method": {"near": "half of the words"},
    "tasks": {"math500": {"n_problems": 500, "exact": [["a1", "b1"], ["a2", "b2"]], "near": [["a3", "b2", 0.75]]}},
}
MANIFEST = {
    "kind": "model",
    "source": "hf://Qwen/Qwen3-0.6B",
    "revision": "c1899de",
    "licence": "apache-2.0",
    "files": {"model.safetensors": {"size": 1_503_300_328, "sha256": "f00d" * 16}},
}
SCORE = {
    "tokens": 1000,
    "seconds": 60.0,
    "lm_eval": {"version": "0.4.13", "task_version": 1},
    "provenance": {"run": RUN},
}

Config = dict[str, Any]


def paper_config(**changes: Any) -> Config:
    over = {"report": {"resamples": 300}, "run": {"seeds": [0, 1]}}
    loaded = configuration.validate(configuration.merge(configuration.load([ROOT / "config.yaml"]), over))
    return configuration.merge(loaded, changes)


class Folder:
    """A results folder, and the report made of it."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path, self.config = path, config
        self.selections = {name: self.record(f"{name}.selection", SELECTION) for name in ("direct", "rsd")}
        self.trainings = {
            f"{arm}-seed{seed}": self.record(f"{arm}{seed}.training", TRAINING)
            for arm in ("direct", "rsd")
            for seed in (0, 1)
        }
        self.manifests = {"models/student": self.record("student.manifest", MANIFEST)}
        self.problems = self.record("problems", PROBLEMS)
        self.overlap = self.record("overlap", OVERLAP)

    def record(self, name: str, value: Any) -> Path:
        path = self.path / "records" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
        return path

    def compare(self) -> None:
        run_compare(
            scores=self.path / "scores",
            settings=configuration.compare_settings(self.config),
            output=self.path / "comparison.csv",
            summary=self.path / "comparison.json",
        )

    def report(self) -> tuple[str, str]:
        """The page and the Markdown."""
        report.run_report(
            comparison=self.path / "comparison.csv",
            summary=self.path / "comparison.json",
            selections=self.selections,
            trainings=self.trainings,
            problems_report=self.problems,
            overlap=self.overlap,
            manifests=self.manifests,
            scores=self.path / "scores",
            settings=configuration.report_settings(self.config),
            html=self.path / "report.html",
            markdown=self.path / "comparison.md",
            figures=self.path / "figures",
        )
        return (self.path / "report.html").read_text(), (self.path / "comparison.md").read_text()


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Results that look like the paper's; smaller tasks, to be fast."""
    folder = Folder(tmp_path_factory.mktemp("paper"), paper_config())
    tasks = {task: (min(problems, 120), 4) for task, (problems, _) in PAPER_TASKS.items()}
    write_scores(folder.path / "scores", tasks, PAPER_ACCURACY, {"base": [0], "direct": [0, 1], "rsd": [0, 1]})
    for model in (folder.path / "scores").iterdir():
        for task in tasks:
            (model / f"{task}.json").write_text(json.dumps(SCORE))
    folder.compare()
    folder.report()
    return folder


@pytest.fixture(scope="module")
def page(paper: Folder) -> str:
    return (paper.path / "report.html").read_text()


class Reader(html.parser.HTMLParser):
    """The visible text, the tags and their attributes; checks that tags are closed in order."""

    VOID = ("meta", "br", "link", "img", "path", "use", "rect")

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
        if self.open[-1:] != ["style"]:
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
    } | changes


ANSWERS = {
    "arms": {"base": {"label": "Base", "traces": None}, "rsd": {"label": "RSD", "traces": "rsd"}},
    "tasks": {"aime24": {}, "math500": {}},
    "confidence": 0.95,
}


def test_the_sentence_gives_verdict_points_relative_change_and_both_intervals() -> None:
    assert report.sentence(entry(), ANSWERS) == (
        "“RSD” did better than “Base”: mean accuracy over 2 tasks 27.2 % against 25.9 %, +1.3 points "
        "(95 % interval for these models +0.3 to +2.3), +4.9 % relative to “Base” (+1.2 to +8.7)."
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
            {"difference_points": {"value": 1.0, "low": None, "high": None}},
            "(95 % interval for these models not determined)",
        ),
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


def test_the_question_is_rsd_against_base_and_against_the_datasets_traces() -> None:
    config = paper_config()
    pairs = [("direct", "base"), ("rsd", "base"), ("own", "base"), ("rsd", "direct"), ("own", "direct"), ("own", "rsd")]
    answers = {
        "base": "base",
        "arms": {arm: {"traces": None if arm == "base" else arm} for arm in ("base", "direct", "rsd", "own")},
        "comparisons": [{"arm": arm, "against": against} for arm, against in pairs],
    }
    config["traces"]["own"] = {"method": "sample"}
    assert report.primary_comparisons(answers, config) == [("rsd", "base"), ("rsd", "direct")]
    config["traces"]["rsd"]["method"] = "sample"
    assert report.primary_comparisons(answers, config) == [("direct", "base"), ("rsd", "base"), ("own", "base")]


def test_the_page_begins_with_the_answer(paper: Folder, page: str) -> None:
    text = Reader(page).text
    summary = read_summary(paper.path / "comparison.json")
    said = [report.sentence(answer, summary) for answer in summary["comparisons"] if answer["arm"] == "rsd"]
    places = [text.index(" ".join(sentence.split())) for sentence in said]
    assert all(place < text.index("Table 1.") for place in places)


# --- the page ------------------------------------------------------------------------------------------------------


def test_the_page_shows_every_accuracy_with_its_interval_and_the_papers_value(paper: Folder, page: str) -> None:
    text = Reader(page).text
    for row in read_comparison(paper.path / "comparison.csv"):
        if (row.against, row.seed, row.metric) == ("", "all", "accuracy"):
            assert f"{formatting.number(row.value)} {formatting.interval(row.low, row.high)}" in text
    for published in ("paper 2.7", "paper 65.4", "paper 25.95", "paper −20.5 %", "paper +4.9 %"):
        assert published in text


def test_the_page_needs_no_network_and_no_scripts(page: str) -> None:
    tags = Reader(page).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for _, attributes in tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href", "action", "data"):
                assert value
                assert value.startswith("#")
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in page


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
    before = {path.name: path.read_bytes() for path in (paper.path / "figures").iterdir()}
    again, _ = paper.report()
    assert again == page
    assert {path.name: path.read_bytes() for path in (paper.path / "figures").iterdir()} == before


def test_the_papers_experiment_is_not_called_another_one(page: str) -> None:
    assert "not the paper's experiment" not in Reader(page).text


# --- what is missing -----------------------------------------------------------------------------------------------


@pytest.fixture
def gaps(tmp_path: Path) -> Folder:
    """No record of any stage, and one sample file gone."""
    folder = Folder(tmp_path, paper_config())
    tasks = dict.fromkeys(PAPER_TASKS, (4, 2))
    write_scores(folder.path / "scores", tasks, PAPER_ACCURACY, {"base": [0], "direct": [0, 1], "rsd": [0, 1]})
    (folder.path / "scores" / "rsd-seed1" / "math500.parquet").unlink()
    for path in (folder.path / "records").iterdir():
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
    assert not re.search(r"\b(nan|inf|None)\b", text)
    row = next(line for line in markdown.splitlines() if line.startswith("| SFT on RSD traces |"))
    assert row.split("|")[5].strip() == "missing"
    assert "missing" in (gaps.path / "figures" / "accuracy.svg").read_text()


def test_records_with_missing_keys_are_no_error(gaps: Folder) -> None:
    for path in (
        *gaps.selections.values(),
        *gaps.trainings.values(),
        gaps.problems,
        gaps.overlap,
        *gaps.manifests.values(),
    ):
        path.write_text('{"unknown": 1}')
    assert "missing" in Reader(gaps.report()[0]).text


def test_a_broken_record_is_refused_by_name(gaps: Folder) -> None:
    gaps.overlap.write_text("{")
    with pytest.raises(ValueError, match=r"overlap\.json is no valid JSON .*; delete the file"):
        gaps.report()


def test_an_untrained_student_alone_has_a_report(tmp_path: Path) -> None:
    folder = Folder(tmp_path, paper_config(run={"arms": ["base"], "tasks": ["math500"]}))
    folder.selections, folder.trainings = {}, {}
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
    folder.record("rsd.selection", hostile)
    folder.record("student.manifest", MANIFEST | {"licence": HOSTILE, "revision": HOSTILE, "source": HOSTILE})
    folder.record("problems", PROBLEMS | {"dataset": HOSTILE})
    folder.record(
        "overlap", OVERLAP | {"tasks": {HOSTILE: {"n_problems": 1, "exact": [[HOSTILE, HOSTILE]], "near": []}}}
    )
    folder.record("rsd0.training", TRAINING | {"provenance": {"run": RUN | {"commit": HOSTILE, "gpu": HOSTILE}}})
    folder.compare()
    page, markdown = folder.report()
    reader = Reader(page)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert "<script" not in page
    assert HOSTILE in reader.text
    assert "<script" not in markdown
    table = [line for line in markdown.splitlines() if line.startswith("| base")]
    assert len(re.findall(r"(?<!\\)\|", table[0])) == 3
    for figure in (tmp_path / "figures").glob("*.svg"):
        assert "script" not in {element.tag.split("}")[-1] for element in ElementTree.parse(figure).iter()}


@given(st.text(max_size=40))
def test_escaped_markdown_is_one_line_without_markup(text: str) -> None:
    escaped = report.escape_markdown(text)
    assert "\n" not in escaped
    assert not set("<>") & set(escaped)
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`*_]", escaped)


# --- figures -------------------------------------------------------------------------------------------------------


def test_figures_are_written_as_svg_and_png(paper: Folder) -> None:
    names = sorted(path.name for path in (paper.path / "figures").iterdir())
    assert names == [f"{name}.{kind}" for name in ("accuracy", "differences", "training") for kind in ("png", "svg")]
    for name in names:
        content = (paper.path / "figures" / name).read_bytes()
        if name.endswith("png"):
            assert content.startswith(b"\x89PNG")
        else:
            ElementTree.fromstring(content)
            assert b"<dc:date>" not in content


def test_figures_on_the_page_take_their_colours_from_the_page(paper: Folder, page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) == 3
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
    epochs, losses = report.averaged(points)
    assert len(epochs) == 60
    assert losses == [0.5] * 60
    assert epochs[0] == 1.5
    assert report.averaged(points[:3]) == ([0, 1, 2], [0, 1, 0])


# --- terminal ------------------------------------------------------------------------------------------------------


def test_the_terminal_shows_the_table_and_the_answers(paper: Folder) -> None:
    lines = report.terminal_table(paper.path / "comparison.csv").splitlines()
    assert lines[0].split() == ["accuracy,", "%", "aime24", "aime25", "gpqa_diamond", "math500", "mean"]
    assert len({len(line) for line in lines[:4]}) == 1
    assert [line[0] for line in lines[5:]] == [
        report.VERDICTS[entry["verdict"]][0] for entry in read_summary(paper.path / "comparison.json")["comparisons"]
    ]


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
