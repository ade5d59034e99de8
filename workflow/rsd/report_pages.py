"""The report as a page of HTML and as a page of Markdown: templates filled, everything escaped.

The HTML page has one script, hand-written and inside it (templates/report.js); its content security policy allows that
script by its hash and nothing else. The explorer's data stand beside it as JSON, which no browser runs.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsd.formatting import FILTERS
from rsd.report_explorer import embedded_json
from rsd.report_figures import Picture

Record = dict[str, Any]

TEMPLATES = Path(__file__).parent / "templates"


def render_html(page: Record, pictures: Sequence[Picture]) -> str:
    """The page; every value but the figures, the script and the explorer's data (JSON) is escaped."""
    import jinja2
    import yaml
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    data = page["explorer"]["data"]
    return environment.get_template("report.html.j2").render(
        page,
        config_text=yaml.safe_dump(page["config"], sort_keys=False, allow_unicode=True, width=100),
        pictures=[(picture, Markup(picture.svg)) for picture in pictures],
        figure_numbers={picture.name: picture.number for picture in pictures},
        script=Markup(script),
        policy=security_policy(script),
        explorer_json=None if data is None else Markup(embedded_json(data)),
    )


def security_policy(script: str) -> str:
    """The page's content security policy: this very script, inline styles, and nothing from anywhere."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'"
    )


def render_markdown(page: Record) -> str:
    """The answer and the tables as Markdown; every value is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        finalize=escape_markdown,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment.get_template("report.md.j2").render(page)


def escape_markdown(value: Any) -> str:
    """A value as Markdown text on one line: no markup, no HTML, no cell borders."""
    text = " ".join(str(value).split()) if "\n" in str(value) else str(value)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join("\\" + letter if letter in "\\`*_[]|#!" else letter for letter in text)
