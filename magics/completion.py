"""Tab and `?` in distributed cells: rank 0 answers about its names, also while a cell runs."""

from __future__ import annotations

import argparse
import builtins
import keyword
import re
from collections.abc import Callable, Iterable
from typing import Any

from ..engine.backends import BACKENDS
from ..engine.cluster import Cluster
from ..engine.errors import MaclusterError
from . import cluster, distributed, model, variables, wires
from .arguments import Arguments
from .session import Session

DISTRIBUTED_CELL = re.compile(r"\s*%%(distributed|rank)\b[^\n]*\n")
DISTRIBUTED_LINE = re.compile(r"\s*%distributed[ \t]+([^\n]*)\Z")
ANSWER_TIMEOUT = 2.0  # seconds; a stopped rank must not freeze the editor

OPTIONS: dict[str, Arguments] = {
    "%%distributed": distributed.DISTRIBUTED,
    "%distributed": distributed.DISTRIBUTED,
    "%%rank": distributed.RANK,
    "%push": variables.PUSH,
    "%pull": variables.PULL,
    "%scatter": variables.SCATTER,
    "%gather": variables.GATHER,
    "%variables": variables.VARIABLES,
    "%%chat": model.CHAT,
    "%measure": wires.MEASURE,
    "%topology": wires.TOPOLOGY,
}
VERBS = {"%cluster": cluster.VERBS, "%model": model.VERBS}
# What may stand behind an option or as an argument, by magic and by argparse's name for it.
VALUES: dict[tuple[str, str], Callable[[], Iterable[str]]] = {
    ("%cluster start", "backend"): lambda: BACKENDS,
    ("%cluster connect", "name"): lambda: [each.name for each in Cluster.running()],
}
NAMES_OF_RANKS = {
    ("%pull", "names"), ("%gather", "names"), ("%model shards", "name"), ("%model check", "name"),
    ("%model time", "name"),
    ("%%chat", "model"),
}  # fmt: skip
# IPython offers these everywhere; no one pulls them.
NOT_BOUND_BY_CELLS = {*keyword.kwlist, *dir(builtins), "In", "Out", "exit", "quit", "get_ipython"}


class Completion:
    """Wraps a kernel's `do_complete` and `do_inspect`; `remove` puts the original ones back."""

    def __init__(self, kernel: Any, session: Session) -> None:
        self.kernel = kernel
        self.session = session
        self._complete: Callable[..., Any] = kernel.do_complete
        self._inspect: Callable[..., Any] = kernel.do_inspect
        kernel.do_complete = self.do_complete
        kernel.do_inspect = self.do_inspect

    def remove(self) -> None:
        self.kernel.do_complete = self._complete
        self.kernel.do_inspect = self._inspect

    def do_complete(self, code: str, cursor_pos: int | None) -> Any:
        cursor = len(code) if cursor_pos is None else cursor_pos
        start = body_start(code)
        if start is None or cursor < start:
            line = code[:cursor].rpartition("\n")[2]
            begin = cursor - len(_split(line)[1])
            if names_ranks(line):
                found = self._names_of_ranks(code[begin:cursor])
                if found is not None:
                    return _reply(found[0], begin + found[1], cursor)
            words = option_completions(line)
            if words is None:
                return self._complete(code, cursor_pos)
            return _reply(words, begin, cursor)
        answer = self._ask("complete", code[start:], cursor - start)
        if answer is None:
            return self._complete(code, cursor_pos)
        for comp in answer["metadata"].get("_jupyter_types_experimental", []):
            comp["start"] += start
            comp["end"] += start
        begin, end = answer["cursor_start"] + start, answer["cursor_end"] + start
        return _reply(answer["matches"], begin, end, answer["metadata"])

    def do_inspect(
        self, code: str, cursor_pos: int, detail_level: int = 0, omit_sections: Any = ()
    ) -> Any:
        start = body_start(code)
        if start is not None and cursor_pos >= start:
            answer = self._ask("inspect", code[start:], cursor_pos - start, detail=detail_level)
            if answer is not None:
                return {
                    "status": "ok",
                    "found": answer["found"],
                    "data": answer["data"],
                    "metadata": {},
                }
        return self._inspect(code, cursor_pos, detail_level, omit_sections)

    def _names_of_ranks(self, text: str) -> tuple[list[str], int] | None:
        """What completes `text` on rank 0, and from where on; None when nobody answers."""
        answer = self._ask("complete", text, len(text))
        if answer is None:
            return None
        found = [
            name
            for name in answer["matches"]
            if not name.startswith("%")
            and name not in NOT_BOUND_BY_CELLS
            and (text or not name.startswith("_"))
        ]
        return found, answer["cursor_start"]

    def _ask(self, name: str, code: str, cursor: int, **more: Any) -> dict[str, Any] | None:
        """Rank 0's answer, or None when there is no cluster or it does not answer in time."""
        content = {"code": code, "cursor": cursor, **more}
        try:
            return self.session.world.ask(name, content, timeout=ANSWER_TIMEOUT)
        except MaclusterError:
            return None


def body_start(code: str) -> int | None:
    """Where the code that runs on the ranks begins, or None when no part of it does."""
    if cell := DISTRIBUTED_CELL.match(code):
        return cell.end()
    if line := DISTRIBUTED_LINE.match(code):
        rest = line[1]
        end = distributed.options_end(distributed.DISTRIBUTED, rest)
        end += len(rest[end:]) - len(rest[end:].lstrip())
        if not rest[end:].startswith("-"):
            return line.start(1) + end
    return None


def option_completions(line: str) -> list[str] | None:
    """Verbs, options and values that fit the end of a magic's line, or None when none are known."""
    before, current = _split(line)
    if len(before) == 1 and before[0] in VERBS:
        return [verb for verb in VERBS[before[0]] if verb.startswith(current)]
    parser, words = _parser(before)
    if parser is None:
        return None
    option, equals, value = current.partition("=")
    if not current.startswith("-"):
        value, lead, action = current, "", parser.action_after(words)
    elif equals:
        lead, action = f"{option}=", parser.action_after([option])
    else:
        return [name for name in parser.option_names() if name.startswith(current)]
    values = _values(parser, action)
    if values is None:
        return None
    return [f"{lead}{each}" for each in values if each.startswith(value)]


def names_ranks(line: str) -> bool:
    """True when a name that lives on the ranks belongs at the end of a magic's line."""
    before, current = _split(line)
    parser, words = _parser(before)
    action = parser.action_after(words) if parser is not None else None
    if parser is None or action is None or current.startswith("-"):
        return False
    return (parser.prog, action.dest) in NAMES_OF_RANKS


def _split(line: str) -> tuple[list[str], str]:
    """The words before the one at the end of `line`, and that one, empty behind a blank."""
    words = line.split()
    if not words or line[-1].isspace():
        return words, ""
    return words[:-1], words[-1]


def _parser(words: list[str]) -> tuple[Arguments | None, list[str]]:
    """The parser of a magic's line that begins with `words`, and the words behind its name."""
    if words and words[0] in VERBS:
        return VERBS[words[0]].get(words[1]) if len(words) > 1 else None, words[2:]
    return OPTIONS.get(words[0]) if words else None, words[1:]


def _values(parser: Arguments, action: argparse.Action | None) -> Iterable[str] | None:
    if action is None:
        return None
    if action.choices is not None:
        return action.choices
    find = VALUES.get((parser.prog, action.dest))
    return None if find is None else find()


def _reply(
    matches: list[str], start: int, end: int, metadata: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "matches": matches,
        "cursor_start": start,
        "cursor_end": end,
        "metadata": metadata or {},
        "status": "ok",
    }
