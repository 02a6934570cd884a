"""A real browser and a real JupyterLab for every test in this folder."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.ui.lab import LabPage, LabServer

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MAC_APPS = ("Chromium", "Google Chrome")
NO_BROWSER = (
    "no Chromium found: none named by MACLUSTER_CHROMIUM, on PATH or in /Applications. "
    "Remedy: apt-get install chromium, brew install --cask chromium, or set MACLUSTER_CHROMIUM"
)
# Nothing that calls out on its own: a test must see only the traffic it causes.
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str | None:
    """The browser to use: the one named by MACLUSTER_CHROMIUM, else the first one installed."""
    if named := os.environ.get("MACLUSTER_CHROMIUM"):
        # A wrong name must not turn the tests off in silence.
        if not os.access(named, os.X_OK):
            raise pytest.UsageError(f"MACLUSTER_CHROMIUM={named} is not a program")
        return named
    on_path = (shutil.which(name) for name in NAMES)
    in_apps = (shutil.which(f"/Applications/{app}.app/Contents/MacOS/{app}") for app in MAC_APPS)
    return next((found for found in (*on_path, *in_apps) if found), None)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path; the test is skipped when there is none."""
    return find_chromium() or pytest.skip(NO_BROWSER)


@pytest.fixture(scope="session")
def browser_type_launch_args(
    browser_type_launch_args: dict[str, Any], chromium: str
) -> dict[str, Any]:
    """Use the system's browser: Playwright's own are downloads."""
    # Chromium's sandbox refuses to run as root.
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    return browser_type_launch_args | {"executable_path": chromium, "args": [*FLAGS, *sandbox]}


@pytest.fixture(scope="session")
def lab(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """A running JupyterLab: `.url`, `.token`, `.root` (its notebooks)."""
    server = LabServer(tmp_path_factory.mktemp("lab"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def lab_page(lab: LabServer, page: Page) -> LabPage:
    """The lab in a fresh browser page with an empty workspace."""
    opened = LabPage(page, lab)
    opened.open()
    return opened
