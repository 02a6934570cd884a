"""Tab and `?` in distributed cells: rank 0 answers about its names, also while a cell runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..engine.errors import MaclusterError
from . import cluster, distributed, variables
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
}


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
            words = option_completions(code[:cursor].rpartition("\n")[2])
            if words is None:
                return self._complete(code, cursor_pos)
            token = re.search(r"\S*$", code[:cursor])
            begin = token.start() if token else cursor
            return {
                "matches": words,
                "cursor_start": begin,
                "cursor_end": cursor,
                "metadata": {},
                "status": "ok",
            }
        answer = self._ask("complete", code[start:], cursor - start)
        if answer is None:
            return self._complete(code, cursor_pos)
        for comp in answer["metadata"].get("_jupyter_types_experimental", []):
            comp["start"] += start
            comp["end"] += start
        return {
            "matches": answer["matches"],
            "cursor_start": answer["cursor_start"] + start,
            "cursor_end": answer["cursor_end"] + start,
            "metadata": answer["metadata"],
            "status": "ok",
        }

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
    """Options and verbs that fit the end of a magic's line, or None when it is no such line."""
    words = line.split()
    if not words:
        return None
    current = "" if line[-1].isspace() else words[-1]
    if words[0] == "%cluster":
        if words == [current]:
            return None
        before = words[1:] if not current else words[1:-1]
        if not before:
            return [verb for verb in cluster.VERBS if verb.startswith(current)]
        parser = cluster.VERBS.get(before[0])
    else:
        parser = OPTIONS.get(words[0])
    if parser is None or not current.startswith("-"):
        return None
    return [name for name in parser.option_names() if name.startswith(current)]
