"""Pictures of a report's page, to be looked at and for the documentation:

    python tests/screenshots.py results/pocket/report/report.html FOLDER

writes into FOLDER the top of the page in light and dark, on a phone and as on paper, the whole page, and the explorer
with one problem opened, in light and dark. Needs Chromium; --problem takes another problem than the first one.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from browser import CHROMIUM, NO_CHROMIUM, Page


def main() -> None:
    """Takes all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--problem", type=int, help="number of the problem that the explorer shows")
    arguments = parser.parse_args()
    if CHROMIUM is None:
        parser.error(NO_CHROMIUM)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, Page(Path(profile)) as page:
        take(page, arguments.page, arguments.folder, arguments.problem)


def take(page: Page, report: Path, folder: Path, problem: int | None = None) -> None:
    """Every picture of a report, into `folder`."""
    for scheme in ("light", "dark"):
        page.media(scheme=scheme)
        page.screen(1280, 1000, scale=1.5)
        page.open(report)
        page.screenshot(folder / f"top-{scheme}.png")
        page.screenshot(folder / f"whole-{scheme}.png", whole=True)
        if page.run("document.getElementById('explorer-app') !== null"):
            if problem is not None:
                page.run(f"document.querySelectorAll('#finder-list li')[{problem - 1}].click()")
            page.run("(t => { if (t) { t.focus(); } })(document.querySelector('.tokens'))")
            page.press("ArrowDown")
            page.screenshot(folder / f"explorer-{scheme}.png", selector="#explorer")
    page.media(scheme="light")
    page.screen(360, 780, scale=2, mobile=True)
    page.open(report)
    page.screenshot(folder / "phone-top.png")
    page.screenshot(folder / "phone.png", whole=True)
    page.media(scheme="light", kind="print")
    page.screen(794, 1123, scale=1.5)
    page.open(report)
    page.screenshot(folder / "print.png", whole=True)
    page.print(folder / "page.pdf")


if __name__ == "__main__":
    main()
