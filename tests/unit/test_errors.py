"""Errors: one tree, three parts each, short enough to be read."""

import re

import pytest
from IPython.core.interactiveshell import InteractiveShell

from macluster.engine import errors
from macluster.engine.errors import CellCancelled, CellError, CellTimeout, MaclusterError

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def family(root: type[MaclusterError]) -> list[type[MaclusterError]]:
    """A class and its subclasses in the module: others may be made as the ranks need them."""
    below = [kind for kind in root.__subclasses__() if kind.__module__ == errors.__name__]
    return [root, *(each for kind in below for each in family(kind))]


FAMILY = family(MaclusterError)


def drawn() -> dict[str, str]:
    """The tree in the docstring: class name -> the name of the class above it."""
    above: list[tuple[int, str]] = []
    tree: dict[str, str] = {}
    for line in (errors.__doc__ or "").splitlines()[2:]:
        found = re.match(r"([ │├└─]*)([A-Z]\w+)", line)
        assert found, f"no class in {line!r}"
        column, name = found.end(1), found.group(2)
        while above and above[-1][0] >= column:
            above.pop()
        assert name not in tree
        tree[name] = above[-1][1] if above else "Exception"
        above.append((column, name))
    return tree


def test_the_docstring_draws_the_tree_that_exists() -> None:
    assert drawn() == {kind.__name__: kind.__bases__[0].__name__ for kind in FAMILY}


def test_every_exception_of_the_module_is_in_the_tree() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert defined == {kind.__name__ for kind in FAMILY}


@pytest.mark.parametrize("kind", FAMILY)
def test_an_error_reads_what_why_do(kind: type[MaclusterError]) -> None:
    error = kind("It broke.", why="a cable\nis loose", do="plug it in\n%cluster restart")
    assert (error.what, error.args) == ("It broke.", ("It broke.",))
    assert str(error).splitlines() == [
        "It broke.",
        "  Why: a cable",
        "       is loose",
        "  Do:  plug it in",
        "       %cluster restart",
    ]


@pytest.mark.parametrize("kind", FAMILY)
def test_parts_that_are_not_given_leave_no_line(kind: type[MaclusterError]) -> None:
    assert str(kind("It broke.")) == "It broke."
    assert str(kind("It broke.", why="age")) == "It broke.\n  Why: age"
    assert str(kind("It broke.", do="mend it")) == "It broke.\n  Do:  mend it"


@pytest.mark.parametrize("kind", FAMILY)
def test_a_notebook_shows_only_the_error_itself(
    kind: type[MaclusterError], shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    """One screen: no stack through our own code pushes the remedy away."""
    shell.push({"error": kind("It broke.", why="age", do="mend it")})
    result = shell.run_cell("def f():\n    raise error\nf()")
    assert type(result.error_in_exec) is kind
    shown = [line for line in ANSI.sub("", capsys.readouterr().out).splitlines() if line]
    assert shown == [f"{kind.__name__}: It broke.", "  Why: age", "  Do:  mend it"]


@pytest.mark.parametrize("ename", ["ZeroDivisionError", "OutOfMemory", "Ünding"])
@pytest.mark.parametrize("kind", [CellError, CellTimeout, CellCancelled])
def test_a_cell_error_goes_by_the_name_of_the_ranks_exception(
    kind: type[CellError], ename: str
) -> None:
    named = kind.named(ename)
    assert named.__name__ == ename
    assert named.__module__ == "macluster"
    error = named("division by zero", rank=2, ename=ename, traceback=["a"])
    assert isinstance(error, kind)
    assert (error.rank, error.ename, error.traceback) == (2, ename, ["a"])


@pytest.mark.parametrize("ename", ["", "two words", "1st", "module.Error"])
def test_a_name_that_is_none_leaves_the_class_alone(ename: str) -> None:
    assert CellError.named(ename) is CellError
    assert CellCancelled.named(ename) is CellCancelled


def test_a_cell_error_shows_the_ranks_traceback_and_where_the_others_stood(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["Traceback of rank 1", "----> 1 1 / 0", "ZeroDivisionError: division by zero"]
    error = CellError.named("ZeroDivisionError")(
        "division by zero", why="raised on rank 1\nranks 0, 2: ended", rank=1, traceback=lines
    )
    shell.push({"error": error})
    shell.run_cell("raise error")
    assert capsys.readouterr().out.splitlines() == [
        *lines,
        "",
        "raised on rank 1",
        "ranks 0, 2: ended",
    ]


def test_a_cell_error_without_a_traceback_reads_as_the_others() -> None:
    shown = CellError("Rank 1 died.", why="it was killed")._render_traceback_()
    assert [ANSI.sub("", line) for line in shown] == [
        "CellError: Rank 1 died.",
        "  Why: it was killed",
    ]
