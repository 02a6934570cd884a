"""The shape of the house: who may import whom, and who may touch ipyparallel's private names."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Package -> its floor. A package imports its own floor and lower ones.
FLOORS = {"engine": 0, "widgets": 1, "magics": 2, "kernel": 2, "server": 2}
FOLDERS = {name: ROOT / name for name in FLOORS} | {"server": ROOT / "macluster" / "server"}
# The packages that live at the top level; not all of them have to exist.
LINKED = [name for name in FLOORS if (ROOT / name / "__init__.py").exists()]
# The server is no notebook: what a notebook's words mean is none of its business.
NOT_IN_SERVER = {"kernel", "magics"}
# The cluster itself has no user interface and no web server.
NOT_IN_ENGINE = {"anywidget", "ipywidgets", "jupyter_server", "jupyterlab"}
PRIVATE_IPYPARALLEL = {
    "_control_stream",
    "_handle_stranded_msgs",
    "_iopub_stream",
    "_message_futures",
    "_mux_stream",
    "_output_futures",
    "_query_stream",
    "_queue_handlers",
    "_registration_callbacks",
    "_send",
    "_send_recv",
    "_task_stream",
    "_unregister_engine",
}


def modules(package: str) -> list[Path]:
    return sorted(FOLDERS[package].rglob("*.py"))


def imported(path: Path, package: str) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, at any depth, with its line; relative names made full."""
    here = ["macluster", package, *path.relative_to(FOLDERS[package]).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else []
            full = ".".join([*base, *([node.module] if node.module else [])])
            # `from macluster import magics` names a module too.
            for alias in node.names:
                yield node.lineno, f"{full}.{alias.name}"


def upward(path: Path, package: str) -> list[str]:
    """Imports that point up the house, as "file:line name"."""
    faults = []
    for line, name in imported(path, package):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        wrong = top == "macluster" and FLOORS.get(target, -1) > FLOORS[package]
        wrong |= package == "engine" and top in NOT_IN_ENGINE
        wrong |= package == "server" and top == "macluster" and target in NOT_IN_SERVER
        if wrong:
            faults.append(f"{path.name}:{line} {name}")
    return faults


@pytest.mark.parametrize("package", FLOORS)
def test_imports_point_one_way(package: str) -> None:
    faults = [fault for path in modules(package) for fault in upward(path, package)]
    assert faults == []


@pytest.mark.parametrize("package", FLOORS)
def test_packages_are_imported_under_macluster(package: str) -> None:
    # `import engine` works in a checkout and nowhere else.
    faults = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in modules(package)
        for line, name in imported(path, package)
        if name.partition(".")[0] in FLOORS
    ]
    assert faults == []


@pytest.mark.parametrize("package", FLOORS)
def test_only_the_client_touches_private_ipyparallel(package: str) -> None:
    faults = []
    for path in modules(package):
        if path == ROOT / "engine" / "client.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            # A class may have a private name of its own that is spelled alike.
            if (
                isinstance(node, ast.Attribute)
                and node.attr in PRIVATE_IPYPARALLEL
                and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"})
            ):
                faults.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.attr}")
    assert faults == []


@pytest.mark.parametrize("name", LINKED)
def test_each_package_is_linked_under_macluster(name: str) -> None:
    link = ROOT / "macluster" / name
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{name}"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import macluster.magics", True),
        ("from macluster import magics", True),
        ("from macluster.magics.cell import run", True),
        ("from ..magics import run", True),
        ("def late():\n    import ipywidgets", True),
        ("from . import errors", False),
        ("from macluster.engine import errors", False),
        ("import magicsomething", False),
    ],
)
def test_the_import_check_sees(tmp_path: Path, monkeypatch, source: str, found: bool) -> None:
    monkeypatch.setitem(FOLDERS, "engine", tmp_path)
    path = tmp_path / "module.py"
    path.write_text(source)
    assert bool(upward(path, "engine")) is found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from ..engine import errors", False),
        ("from ..widgets.topology import Drawing", False),
        ("def late():\n    from ..magics.cluster import CONNECT", True),
        ("import macluster.kernel", True),
    ],
)
def test_the_import_check_sees_the_server(
    tmp_path: Path, monkeypatch, source: str, found: bool
) -> None:
    monkeypatch.setitem(FOLDERS, "server", tmp_path)
    path = tmp_path / "module.py"
    path.write_text(source)
    assert bool(upward(path, "server")) is found
