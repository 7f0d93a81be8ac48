import shutil
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real browser; without one the tests that need it are skipped."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no browser driver here: the development extra installs it"
    )
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no browser here: Debian's package chromium has one")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
