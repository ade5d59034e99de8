"""The report's page in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipelines import Pipeline

pytestmark = pytest.mark.slow

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no chromium here (Debian: apt-get install chromium)")
def test_the_page_opens_from_disk_without_errors_and_without_a_network(tiny: Pipeline, tmp_path: Path) -> None:
    page = tiny.folder / "results/pocket-tiny/report/report.html"
    # Alone in a folder: it must need nothing beside itself.
    alone = shutil.copy(page, tmp_path / "page.html")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=5000"]
    log = ["--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}"]
    no_network = ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking"]
    command = [str(BROWSER), *options, *log, *no_network, "--dump-dom", f"file://{alone}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stderr[-3000:]
    assert [line for line in result.stderr.splitlines() if "CONSOLE" in line] == []
    assert "SFT on RSD traces" in result.stdout
    # A picture whose data the browser cannot read would have no size; remote ones must not be there at all.
    assert not re.search(r"""(?:src|href)=["']https?://[^"']+\.(?:js|css|png|svg|woff2?)""", result.stdout)
