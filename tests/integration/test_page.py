"""The report's page in a real browser: that it opens from disk, and that a reader can use it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import CHROMIUM, NO_CHROMIUM, Page
from pipelines import Pipeline
from rsd.compare import read_summary
from rsd.records import write_jsonl
from synthetic_report import (
    SCORE,
    SELECTION,
    Folder,
    paper_config,
    scores_records,
    token_rows,
    write_problems,
    write_tokens,
    write_traces,
)
from synthetic_results import PAPER_ACCURACY, write_scores

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)]

TASKS = {"aime24": (30, 2), "math500": (40, 2)}
SEEDS = {"base": [0], "direct": [0, 1], "rsd": [0, 1]}
# How many elements a page of 1000 problems with 16 attempts each may build.
ELEMENTS = 20_000
# A script, a picture whose loading fails, an element's end, and signs that hide or turn what follows.
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\u202e"


def made(path: Path, problems: int, attempts: int, length: int, **config: Any) -> Folder:
    """A report of that many training problems, with token views of a tenth of them."""
    folder = Folder(path, paper_config(run={"tasks": list(TASKS)}, **config))
    write_scores(path / "scores", TASKS, PAPER_ACCURACY, SEEDS)
    scores_records(path / "scores", TASKS, SCORE)
    ids = write_problems(path / "problems.jsonl", problems, 500)
    write_traces(path / "traces" / "rsd", ids, attempts)
    write_traces(path / "traces" / "direct", ids, 1, rsd=False)
    folder.analyses = [("rsd", "student"), ("direct", "student"), ("rsd", "rsd-seed0")]
    for place, (traces, reader) in enumerate(folder.analyses):
        rows = token_rows(
            ids[: max(6, problems // 10)], length, improbable=0.02 + 0.05 * (traces == "direct"), seed=place
        )
        write_tokens(path / "tokens", traces, reader, rows)
    folder.benchmark("train/rsd-seed0", 60.0)
    folder.compare()
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = made(tmp_path_factory.mktemp("report"), 30, 4, 300)
    folder.report()
    return folder


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Page]:
    with Page(tmp_path / "profile") as page:
        page.screen(1280, 900)
        yield page


@pytest.fixture
def page(browser: Page, report: Folder) -> Page:
    browser.open(report.path / "report.html")
    return browser


def texts(page: Page, selector: str) -> list[str]:
    found: list[str] = page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")
    return found


def select(page: Page, selector: str, value: str) -> None:
    found = f"document.querySelector({json.dumps(selector)})"
    page.run(f"(s => {{ s.value = {json.dumps(value)}; s.dispatchEvent(new Event('change')); }})({found})")


def is_clean(page: Page) -> None:
    """No error, no message, no dialog, and nothing asked for but the page itself."""
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith("file:")] == []
    assert len(page.requests) == 1


def test_the_page_of_a_real_run_opens_alone_in_a_folder(tiny: Pipeline, browser: Page, tmp_path: Path) -> None:
    alone = shutil.copy(tiny.folder / "results/pocket-tiny/report/report.html", tmp_path / "page.html")
    browser.open(Path(alone))
    is_clean(browser)
    assert "SFT on RSD traces" in browser.run("document.body.textContent")
    assert browser.run("document.querySelectorAll('#finder-list li').length") == 24


def test_the_page_opens_without_errors_and_asks_for_nothing(page: Page) -> None:
    is_clean(page)
    assert page.run("[...document.querySelectorAll('svg')].every(svg => svg.getBoundingClientRect().height > 40)")


# --- sorting -------------------------------------------------------------------------------------------------------


def models(page: Page) -> list[str]:
    return [re.sub(r"(base|direct|rsd)(, \d seeds)?$", "", text) for text in texts(page, "#result tbody th")]


def test_a_click_on_a_heading_sorts_and_says_so(page: Page, report: Folder) -> None:
    first = models(page)
    answers = read_summary(report.path / "comparison.json")
    accuracy = {answers["arms"][arm]["label"]: value for arm, value in accuracies(page, report).items()}
    headings = "[...document.querySelectorAll('#result thead th')].map(e => e.getAttribute('aria-sort'))"
    assert page.run(headings) == ["none"] * 4
    for order, direction in (
        (sorted(first, key=lambda m: -accuracy[m]), "descending"),
        (None, "ascending"),
        (first, "none"),
    ):
        page.click("#result thead .sort", 3)
        assert page.run(headings)[3] == direction
        assert models(page) == (sorted(first, key=lambda m: accuracy[m]) if order is None else order)
    is_clean(page)


def accuracies(page: Page, report: Folder) -> dict[str, float]:
    comparisons = read_summary(report.path / "comparison.json")["comparisons"]
    return {entry["arm"]: entry["accuracy"] for entry in comparisons} | {
        entry["against"]: entry["accuracy_against"] for entry in comparisons
    }


def test_headings_sort_by_keyboard_too(page: Page) -> None:
    first = models(page)
    page.run("document.querySelector('#result thead .sort').focus()")
    page.press("Enter")
    assert models(page) == sorted(first)
    page.press(" ")
    assert models(page) == sorted(first, reverse=True)
    page.press("Tab")
    assert page.run("document.activeElement.closest('th').cellIndex") == 1


def test_missing_numbers_stay_last_either_way(browser: Page, tmp_path: Path) -> None:
    folder = made(tmp_path, 6, 2, 50)
    (folder.path / "scores" / "rsd-seed1" / "math500.parquet").unlink()
    folder.compare()
    folder.report()
    browser.open(folder.path / "report.html")
    for _ in range(2):
        browser.click("#result thead .sort", 2)
        assert models(browser)[-1] == "SFT on RSD traces"


# --- the explorer --------------------------------------------------------------------------------------------------


def test_choosing_a_problem_shows_its_attempts_and_tokens(page: Page) -> None:
    assert page.run("document.querySelectorAll('#finder-list li').length") == 30
    page.click("#finder-list li", 3)
    assert texts(page, "#detail h3")[0].startswith("Problem 4 ")
    assert page.run("document.querySelector('.question-text').textContent").startswith("Question 3:")
    assert page.run("[...document.querySelectorAll('.attempts table')].map(t => t.tBodies[0].rows.length)") == [1, 4]
    used = texts(page, ".attempts .used th")
    assert len(used) == 2
    assert all(text.startswith("▸ ") for text in used)
    assert page.run("[...document.querySelectorAll('.tokens')].map(t => t.children.length)") == [300, 300]
    assert texts(page, ".pane .soft")[0].startswith("rsd, read by student: attempt ")
    assert texts(page, ".pane .soft")[1].startswith("direct, read by student: attempt ")
    page.click("#finder-list li", 20)
    assert "not in the sample" in texts(page, "#detail > .soft")[0]
    is_clean(page)


def test_a_token_says_who_wrote_it_and_how_probable_it_was(page: Page) -> None:
    page.click("#finder-list li", 0)
    page.point(".tokens .t", 5)
    by = r"(proposed by the teacher, accepted by the student|the student's own \(fallback\))"
    shape = rf"^Token 6: “.*” · {by} · probability .* · rank \d"
    assert re.match(shape, texts(page, ".readout")[0])
    for mark, said in (("low", "(under the threshold)"), ("own", "the student's own (fallback)")):
        place = page.run(
            f"[...document.querySelector('.tokens').children].findIndex(t => t.classList.contains('{mark}'))"
        )
        page.click(".tokens .t", place)
        assert said in texts(page, ".readout")[0]
        assert texts(page, ".readout")[0].startswith(f"Token {place + 1}:")
    assert "from the dataset" in texts(page, ".readout")[1]


def test_tokens_are_stepped_through_by_keyboard(page: Page) -> None:
    page.click("#finder-list li", 0)
    page.run("document.querySelector('.tokens').focus()")
    page.press("ArrowRight", "ArrowRight", "ArrowLeft")
    assert texts(page, ".readout")[0].startswith("Token 1:")
    page.press("ArrowDown")
    assert page.run("/\\b(low|own)\\b/.test(document.querySelector('.t.now').className)")
    page.press("End")
    assert texts(page, ".readout")[0].startswith("Token 300:")


def test_another_reader_or_trace_set_can_be_chosen_and_stays_for_the_next_problem(page: Page) -> None:
    page.click("#finder-list li", 0)
    select(page, ".pane label + label select", "rsd-seed0")
    assert "read by rsd-seed0" in texts(page, ".pane .soft")[0]
    page.click("#finder-list li", 3)
    assert "read by rsd-seed0" in texts(page, ".pane .soft")[0]


def test_problems_are_searched_filtered_and_chosen_by_keyboard(page: Page) -> None:
    page.run("document.getElementById('finder-text').focus()")
    page.type("question 12:")
    assert texts(page, "#finder-list li:not([hidden]) .what")[0].startswith("Question 12:")
    assert texts(page, "#finder-count") == ["1 of 30 problems"]
    page.run("(s => { s.value = ''; s.dispatchEvent(new Event('input')); })(document.getElementById('finder-text'))")
    select(page, "#finder-kind", "2")
    # Every third problem is solved.
    assert texts(page, "#finder-count") == ["10 of 30 problems"]
    page.run("document.getElementById('finder-list').focus()")
    page.press("Home", "ArrowDown", "ArrowDown")
    assert texts(page, "#detail h3")[0].startswith("Problem 7 ")
    page.press("End")
    assert texts(page, "#detail h3")[0].startswith("Problem 28 ")
    active = page.run("document.getElementById('finder-list').getAttribute('aria-activedescendant')")
    assert page.run(f"document.getElementById('{active}').getAttribute('aria-selected')") == "true"
    assert page.run("document.querySelectorAll('[aria-selected=\"true\"]').length") == 1


def test_hostile_traces_run_nothing_and_show_as_text(browser: Page, tmp_path: Path) -> None:
    folder = made(tmp_path, 6, 2, 50, title=HOSTILE)
    for arm in folder.config["arms"].values():
        arm["label"] = HOSTILE
    ids = [HOSTILE, "__proto__", "constructor"]
    write_jsonl(tmp_path / "problems.jsonl", [{"id": name, "question": HOSTILE, "answer": HOSTILE} for name in ids])
    write_traces(tmp_path / "traces" / "rsd", ids, 2)
    hostile = json.loads(json.dumps(SELECTION))
    hostile["reasons"][HOSTILE] = 3
    folder.selection("rsd", hostile)
    rows = token_rows(ids[:1], 40, improbable=0.5)
    for row in rows:
        row["pieces"] = [HOSTILE, "\n", ""] + [HOSTILE] * (len(row["pieces"]) - 3)
    folder.analyses = [("rsd", "student")]
    write_tokens(tmp_path / "tokens", "rsd", "student", rows)
    folder.compare()
    folder.change_summary(question={"text": HOSTILE, "rule": HOSTILE, "comparisons": [["rsd", "base"]]})
    folder.report()
    browser.open(tmp_path / "report.html")
    for place in range(3):
        browser.click("#finder-list li", place)
    browser.click("#finder-list li", 0)
    browser.point(".tokens .t", 0)
    assert browser.run("window.hacked") is None
    assert browser.run("document.querySelectorAll('img, script').length") == 2
    shown = HOSTILE.replace("\u202e", "⟨U+202E⟩")
    assert texts(browser, ".tokens .t")[:3] == [shown, "↵\n", "∅"]
    assert shown.replace(" ", "␣") in texts(browser, ".readout")[0]
    is_clean(browser)


# --- screens -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_in_both_schemes(page: Page, scheme: str) -> None:
    page.media(scheme=scheme)
    assert (
        page.run("getComputedStyle(document.body).backgroundColor")
        == {
            "light": "rgb(255, 255, 255)",
            "dark": "rgb(13, 17, 23)",
        }[scheme]
    )
    # Every element with text of its own, against the nearest ground that is painted behind it (WCAG 2, level AA).
    faint = page.run("""(() => {
        const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
        const parse = text => text.match(/[\\d.]+/g).map(Number);
        const ground = e => {
            for (; e; e = e.parentElement) {
                const c = parse(getComputedStyle(e).backgroundColor);
                if (c.length === 3 || c[3] > 0) return c;
            }
            return [255, 255, 255];
        };
        const found = new Set();
        for (const e of document.querySelectorAll('body *')) {
            const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
            if (!own || !e.getClientRects().length || ['SCRIPT', 'NOSCRIPT', 'OPTION'].includes(e.tagName)) continue;
            const style = getComputedStyle(e);
            const colour = e instanceof SVGElement ? style.fill : style.color;
            if (!colour.startsWith('rgb')) continue;
            const [a, b] = [light(parse(colour)), light(ground(e))].sort((x, y) => y - x);
            if ((a + 0.05) / (b + 0.05) >= 4.5) continue;
            found.add(e.tagName + '.' + e.className + ' ' + colour + ' on ' + ground(e));
        }
        return [...found];
    })()""")
    assert faint == []


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_no_screen_scrolls_sideways(page: Page, width: int) -> None:
    page.screen(width, 780, mobile=width < 500)
    assert page.run("document.documentElement.scrollWidth") <= width
    page.click("#finder-list li", 3)
    assert page.run("document.documentElement.scrollWidth") <= width


def test_nothing_is_cut_off_on_paper(page: Page) -> None:
    # A4 less its margins, in CSS pixels.
    page.media(kind="print")
    page.screen(688, 1000)
    page.run("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    assert page.run("document.documentElement.scrollWidth") <= 688
    assert page.run("getComputedStyle(document.querySelector('.finder')).display") == "none"
    assert page.run("document.querySelector('.tokens').scrollHeight <= document.querySelector('.tokens').clientHeight")


def test_what_is_closed_is_printed_and_closed_again(page: Page, tmp_path: Path) -> None:
    closed = page.run("document.querySelectorAll('details:not([open])').length")
    assert closed > 0
    count = "document.querySelectorAll('details:not([open])').length"
    page.run(f"window.seen = null; addEventListener('beforeprint', () => {{ window.seen = {count}; }})")
    page.print(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert page.run("window.seen") == 0
    assert page.run("document.querySelectorAll('details:not([open])').length") == closed


def test_without_scripts_the_page_still_reads(browser: Page, report: Folder) -> None:
    browser.scripting(False)
    browser.open(report.path / "report.html")
    browser.scripting(True)
    assert browser.run("document.getElementById('explorer-app').hidden")
    assert browser.run("document.querySelectorAll('.sort').length") == 0
    assert browser.run("document.querySelector('#result td b').getBoundingClientRect().height > 0")


# --- size ----------------------------------------------------------------------------------------------------------


def test_a_thousand_problems_with_sixteen_attempts_stay_within_the_budget(browser: Page, tmp_path: Path) -> None:
    folder = made(tmp_path, 1000, 16, 4000)
    folder.report()
    path = tmp_path / "report.html"
    # What is not of the explorer takes less than one.
    assert path.stat().st_size < 1e6 * (folder.config["report"]["megabytes"] + 1)
    browser.open(path)
    is_clean(browser)
    assert browser.run("document.querySelectorAll('#finder-list li').length") == 1000
    assert texts(browser, "#finder-count") == ["1\u202f000 of 1\u202f000 problems"]
    for place in (999, 0):
        browser.click("#finder-list li", place)
        assert texts(browser, "#detail h3")[0].startswith(f"Problem {place + 1} ")
        assert browser.run("document.getElementsByTagName('*').length") < ELEMENTS
    assert browser.run("document.querySelectorAll('.tokens .t').length") == 2 * 1500
