"""What is built from this checkout is complete, and works where neither checkout nor node is."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["engine", "magics", "widgets", "macluster/server"]
# What Jupyter looks for, by the place where it looks.
JUPYTER = {
    "share/jupyter/labextensions/macluster": ROOT / "labextension" / "dist",
    "share/jupyter/labextensions/macluster/install.json": ROOT / "labextension" / "install.json",
    "etc/jupyter/jupyter_server_config.d/macluster.json": ROOT
    / "macluster"
    / "server"
    / "jupyter_server_config.json",
}
# A model is at least its description and its weights.
MODEL = [".json", ".safetensors"]

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel made from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("macluster-*.whl")
    return path


def expected(package: str) -> set[str]:
    """The files of a top-level package, by their names in the wheel."""
    return {
        f"macluster/{path.relative_to(ROOT).as_posix().removeprefix('macluster/')}"
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }


def test_wheel_from_sdist_is_complete(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {"macluster/__init__.py", "macluster/py.typed"}.union(*map(expected, PACKAGES))
    assert wanted - names == set()
    assert any(name.endswith("LICENSE") for name in names)


def test_wheel_has_the_toy_model(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    toy = [name for name in names if name.startswith("macluster/engine/models/toy/")]
    for suffix in MODEL:
        assert any(name.endswith(suffix) for name in toy), f"no {suffix} in {toy}"


def data() -> dict[str, bytes]:
    """The files for Jupyter, by their places below the environment."""
    found = {}
    for place, source in JUPYTER.items():
        files = [source] if source.is_file() else [p for p in source.rglob("*") if p.is_file()]
        for path in files:
            found[str(Path(place) / path.relative_to(source))] = path.read_bytes()
    return found


def test_wheel_has_the_sidebar(wheel: Path) -> None:
    wanted = data()
    assert any("/remoteEntry." in name for name in wanted)
    with zipfile.ZipFile(wheel) as archive:
        found = {
            name.partition(".data/data/")[2]: archive.read(name)
            for name in archive.namelist()
            if ".data/data/" in name
        }
    assert found == wanted


def test_wheel_has_nothing_beside_macluster(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.startswith("macluster")} == set()


def test_sdist_holds_each_folder_once(dist: Path) -> None:
    (path,) = dist.glob("macluster-*.tar.gz")
    with tarfile.open(path) as archive:
        inside = [name.partition("/")[2] for name in archive.getnames()]
    assert [name for name in inside if name.startswith("macluster/engine")] == []
    assert "engine/__init__.py" in inside
    assert not any("__pycache__" in name for name in inside)


def test_wheel_works_without_checkout_and_node(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python),
        *("install", "--quiet", "--no-deps", "--no-index", wheel),
        cwd=tmp_path,
    )
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    # Borrow our dependencies. A folder named in a .pth file gets none of its own .pth files read,
    # so the editable macluster of this environment stays out of sight.
    (site / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env["PATH"] = str(tmp_path / "venv" / "bin")
    code = """
import importlib.metadata, sys
import macluster, macluster.engine, macluster.magics
for module in (macluster, macluster.engine, macluster.magics):
    print(module.__file__)
for point in importlib.metadata.distribution("macluster").entry_points:
    print(sys.modules[point.load().__module__].__file__)
"""
    places = run(python, "-c", code, cwd=tmp_path, env=env).split()
    assert len(places) == 5
    assert [place for place in places if not Path(place).is_relative_to(site)] == []

    # Jupyter finds both sides of the sidebar.
    for kind in ("config", "data", "runtime"):
        env[f"JUPYTER_{kind.upper()}_DIR"] = str(tmp_path / kind)
    command = [python, "-m", "jupyterlab.labextensions", "list"]
    assert re.search(r"macluster v\S+.* enabled .*OK", plain(command, tmp_path, env))
    command = [python, "-m", "jupyter_server.extension.serverextension", "list"]
    said = plain(command, tmp_path, env)
    assert re.search(r"macluster .*enabled", said)
    assert re.search(r"macluster \S+ .*OK", said)


def plain(command: list[str | Path], cwd: Path, env: dict[str, str]) -> str:
    """What a command prints, on both streams, without colours."""
    done = subprocess.run(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
