"""Drive a real JupyterLab: a server process of its own, and a page that waits on conditions."""

import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import psutil
from playwright.sync_api import Page

START_TIMEOUT_S = 90
PAGE_TIMEOUT_MS = 60_000
# A page shown by a machine without the outside world must not ask whether to fetch news.
NO_NEWS = '{"fetchNews": "false", "checkForUpdates": false}'


@dataclass
class LabServer:
    """A JupyterLab that keeps everything it writes under one folder."""

    home: Path
    token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    url: str = ""

    def __post_init__(self) -> None:
        """Lay out the folders; nothing runs yet."""
        self.root = self.home / "work"
        self.log = self.home / "server.log"
        for folder in (self.root, self.home / "settings"):
            folder.mkdir(parents=True)
        news = self.home / "settings/@jupyterlab/apputils-extension"
        news.mkdir(parents=True)
        (news / "notification.jupyterlab-settings").write_text(NO_NEWS)

    def start(self) -> None:
        """Return when the server answers; raise with its log when it does not."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        options = [
            "--no-browser",
            "--allow-root",
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={port}",
            "--ServerApp.port_retries=0",
            f"--ServerApp.root_dir={self.root}",
            # Gives the page `window.jupyterapp`, which the tests drive it by.
            "--LabApp.expose_app_in_browser=True",
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            # The token goes by the environment: argv can be read by every user of the machine.
            env=self._environment() | {"JUPYTER_TOKEN": self.token},
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._keep_log, daemon=True)
        self._reader.start()
        try:
            self._wait_until_it_answers(time.monotonic() + START_TIMEOUT_S)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server and every process below it."""
        family = []
        if self.process.poll() is None:
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        _, left = psutil.wait_procs(family, timeout=5)
        for process in left:
            process.kill()
        self._reader.join(5)
        if self.process.stdout:
            self.process.stdout.close()

    def write_notebook(self, name: str, cells: list[str], kernel: str = "python3") -> str:
        """Save code cells as a notebook in the server's folder; returns its path there."""
        notebook = nbformat.v4.new_notebook()
        # With a kernel named, JupyterLab does not ask for one.
        notebook.metadata["kernelspec"] = {"name": kernel, "display_name": kernel}
        notebook.cells = [nbformat.v4.new_code_cell(source) for source in cells]
        nbformat.write(notebook, self.root / name)
        return name

    def _environment(self) -> dict[str, str]:
        folders = {
            "IPYTHONDIR": "ipython",
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        }
        return os.environ | {name: str(self.home / folder) for name, folder in folders.items()}

    def _wait_until_it_answers(self, deadline: float) -> None:
        request = urllib.request.Request(
            f"{self.url}/api/status", headers={"Authorization": f"token {self.token}"}
        )
        # Without the proxies that the environment may name: the server is on this machine.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            try:
                direct.open(request, timeout=10).close()
                return
            except urllib.error.HTTPError as error:
                error.close()
                raise
            except OSError:
                self._fail_if_ended_within(0.1)
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer in {START_TIMEOUT_S} s:\n{self.log.read_text()}")

    def _fail_if_ended_within(self, seconds: float) -> None:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return
        self._reader.join(5)
        raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text()}")

    def _keep_log(self) -> None:
        assert self.process.stdout
        with self.log.open("w") as log:
            for line in self.process.stdout:
                log.write(line)
                log.flush()


class LabPage:
    """One browser page with JupyterLab in it. Every method returns when the page is done."""

    def __init__(self, page: Page, server: LabServer) -> None:
        """Take a blank page; `open` brings the lab."""
        self.page = page
        self.server = server
        self.faults: list[str] = []
        page.set_default_timeout(PAGE_TIMEOUT_MS)
        page.on("pageerror", lambda error: self.faults.append(str(error)))

    def open(self) -> None:
        """Load JupyterLab with an empty workspace."""
        self.page.goto(f"{self.server.url}/lab?token={self.server.token}&reset")
        self.restored()

    def restored(self) -> None:
        """Return when a page that was loaded, or loaded anew, is as it was left."""
        self.page.wait_for_function("() => window.jupyterapp !== undefined")
        self._call("() => window.jupyterapp.restored")
        # Only now: before it is shown, the splash counts as gone.
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> None:
        """Run a command of JupyterLab and wait for its end."""
        self._call(
            "async ([id, args]) => { await window.jupyterapp.commands.execute(id, args); }",
            [command, arguments or {}],
        )

    def open_notebook(self, path: str) -> None:
        """Open a notebook of the server's folder; returns when its kernel has answered."""
        self._call(
            """async (path) => {
              const panel = await window.jupyterapp.commands.execute(
                'docmanager:open', { path, factory: 'Notebook' });
              await panel.context.ready;
              await panel.sessionContext.ready;
              await panel.sessionContext.session.kernel.info;
            }""",
            path,
        )

    def run_all_cells(self) -> None:
        """Run the notebook in front from top to bottom."""
        self.execute("notebook:run-all-cells")

    def cells(self) -> list[dict[str, Any]]:
        """The cells of the notebook in front, as nbformat has them.

        Read from the model: JupyterLab draws only the cells in view.
        """
        return self._call(
            "() => window.jupyterapp.shell.currentWidget.content.model.toJSON().cells"
        )

    def save(self) -> None:
        """Save every open document."""
        self.execute("docmanager:save-all")

    def _call(self, code: str, argument: Any = None, timeout_ms: int = PAGE_TIMEOUT_MS) -> Any:
        # page.evaluate waits for a promise without any limit.
        return self.page.evaluate(
            f"""([argument, limit]) => Promise.race([
              ({code})(argument),
              new Promise((_, reject) => setTimeout(
                () => reject(new Error(`not done after ${{limit}} ms`)), limit)),
            ])""",
            [argument, timeout_ms],
        )
