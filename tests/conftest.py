"""Keep tests away from the Jupyter and IPython folders of the person who runs them."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Set at import: IPython and Jupyter read these when they are first imported.
_HOME = Path(tempfile.mkdtemp(prefix="macluster-tests-"))
os.environ["IPYTHONDIR"] = str(_HOME / "ipython")
os.environ["JUPYTER_CONFIG_DIR"] = str(_HOME / "jupyter-config")
os.environ["JUPYTER_DATA_DIR"] = str(_HOME / "jupyter-data")
os.environ["JUPYTER_RUNTIME_DIR"] = str(_HOME / "jupyter-runtime")
# jupyter_core warns about its old folders unless told which ones to use.
os.environ["JUPYTER_PLATFORM_DIRS"] = "1"


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the folders when the run ends."""
    shutil.rmtree(_HOME, ignore_errors=True)
