"""Show a rank's output in the notebook as if the cell had run here."""

from __future__ import annotations

import hashlib
import html
import itertools
import re
import sys
import threading
from collections.abc import Sequence
from typing import Any

from ..engine.cell import Cell, RankRun
from ..engine.client import Message
from ..engine.errors import UsageError
from ..engine.hostfile import describe_ranks
from ..engine.units import bytes_text
from ..engine.world import World

# A notebook with more text than this in one cell is slow to open and to save.
MAX_LINES = 5_000
MAX_BYTES = 512 * 2**10
TAIL_LINES = 20
TAIL_CHARACTERS = 4096
FOLDED_BYTES = 16 * 2**10

RELAYED = (
    "stream", "display_data", "update_display_data", "clear_output",
    "comm_open", "comm_msg", "comm_close",
)  # fmt: skip
# Forms of a value that are worth nothing when they are cut.
RICH_TEXT = {"text/html": "HTML", "text/markdown": "Markdown", "text/latex": "LaTeX"}
# Pictures and programs in HTML, which are no text to read. The end of the text ends them as well:
# a search that fails would start again at each of them.
EMBEDDED = re.compile(
    r"""<(script|svg)\b.*?(?:</\1\s*>|\Z)|\bdata:[\w.+-]+/[\w.+-]+[;,][^"'\s)>]*""",
    re.DOTALL | re.IGNORECASE,
)


class Budget:
    """How much text a cell may still show. Text that a `\\r` overwrites does not count."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.lines = self.bytes = self.hidden_lines = self.hidden_bytes = 0
        self.tail = ""
        self._open = ""  # the last line, as long as it may still be overwritten

    def admit(self, text: str) -> str:
        """The part of `text` that may be shown."""
        if self.lines >= MAX_LINES or self.bytes >= MAX_BYTES:
            self._hide(text)
            return ""
        kept = overwritten(self._open + text)
        lines, size = kept.count("\n"), _size(kept) - _size(overwritten(self._open))
        if self.lines + lines <= MAX_LINES and self.bytes + size <= MAX_BYTES:
            self.lines += lines
            self.bytes += size
            # A line end that may be the first half of "\r\n" is kept as it is.
            last = (self._open + text).rpartition("\n")[2]
            self._open = overwritten(last) + ("\r" if last.endswith("\r") else "")
            return text
        part = text.encode(errors="replace")[: MAX_BYTES - self.bytes].decode(errors="ignore")
        shown = "".join(_lines(part)[: MAX_LINES - self.lines])
        self.lines = MAX_LINES
        self._hide(text[len(shown) :])
        return shown

    def _hide(self, text: str) -> None:
        self.hidden_lines += text.count("\n")
        self.hidden_bytes += _size(text)
        last = (self.tail + text)[-TAIL_CHARACTERS:]
        self.tail = "".join(_lines(last)[-TAIL_LINES:])

    def summary(self) -> str:
        """What was left out, and the end of it; empty when nothing was."""
        if not self.hidden_bytes:
            return ""
        return (
            f"\n[{self.hidden_lines:,} more lines ({bytes_text(self.hidden_bytes)}) are not "
            f"shown; %cluster output --save FILE writes all of them. The last ones:]\n{self.tail}"
        )


def _size(text: str) -> int:
    return len(text.encode(errors="replace"))


def _lines(text: str) -> list[str]:
    # Not `splitlines`: it also cuts at "\r", which starts no new line on a screen.
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def overwritten(text: str) -> str:
    """What is left of text on a screen, where `\\r` goes back to the start of the line."""
    if "\r" not in text:
        return text
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def within_limit(kind: str, content: dict[str, Any], rank: int) -> dict[str, Any]:
    """A display or result whose text is cut at MAX_BYTES. Pictures are never cut."""
    data = content.get("data") or {}
    plain = str(data.get("text/plain", ""))
    # Counting takes a copy, so nothing is counted that is short anyway.
    rich = {
        mime: size
        for mime in RICH_TEXT
        if len(text := str(data.get(mime, ""))) > MAX_BYTES // 4
        and (size := _size(EMBEDDED.sub("", text))) > MAX_BYTES
    }
    size = _size(plain) if len(plain) > MAX_BYTES // 4 else 0
    if size <= MAX_BYTES and not rich:
        return content
    said = [f"its {RICH_TEXT[mime]} ({bytes_text(rich[mime])}) is not shown" for mime in rich]
    if size > MAX_BYTES:
        plain = plain.encode(errors="replace")[:MAX_BYTES].decode(errors="ignore")
        said.insert(0, f"cut: {bytes_text(size)} in all")
    if kind == "execute_result" and "execution_count" in content:
        do = f"%pull Out[{content['execution_count']}] --targets {rank} brings the value here"
    else:
        do = "bind the value to a name, and %pull NAME brings it here"
    short = {mime: value for mime, value in data.items() if mime not in rich}
    short["text/plain"] = f"{plain}\n[{', '.join(said)}; {do}]"
    return {**content, "data": short}


def show_notices(world: World) -> None:
    """Tell what happened to the world while nobody ran a cell."""
    notices, world.notices = world.notices, []
    for notice in notices:
        print(f"macluster: {notice}", file=sys.stderr)


class Relay:
    """Relays one rank's output messages to the cell that is running in this notebook.

    Messages are sent on unchanged, under the cell's own parent header, so order, `\\r`, ANSI
    colours, `clear_output`, display updates and figures look as they do locally. Outside of a
    notebook, text is printed.
    """

    def __init__(self, shell: Any, rank: int) -> None:
        self.rank = rank
        self.budget = Budget()
        self._shell = shell
        self._lock = threading.Lock()
        self._kernel = getattr(shell, "kernel", None)
        self._flushed = False
        # A result is displayed by the notebook's own display hook, in the main thread at the end.
        # What follows it, such as a figure, has to wait for it.
        self._held: list[Message] = []
        self._clear: Message | None = None
        self._waiting: list[Message] | None = None
        self._last_stream = "stdout"
        if self._kernel is not None:
            self._parent = self._kernel.get_parent("shell")

    def __call__(self, rank: int, message: Message) -> None:
        """Take an output message of any rank (called in the client's thread)."""
        if rank != self.rank:
            return
        with self._lock:
            if self._waiting is not None:
                self._waiting.append(message)
            else:
                self._take(message)

    def pause(self) -> None:
        """Keep what comes back until `resume`: the notebook itself is printing."""
        self._waiting = []

    def resume(self) -> None:
        """Show what has come meanwhile, after all that the notebook has printed."""
        with self._lock:
            waiting, self._waiting = self._waiting or [], None
            self._flushed = False
            for message in waiting:
                self._take(message)

    def _take(self, message: Message) -> None:
        if self._held or message["header"]["msg_type"] == "execute_result":
            self._held.append(message)
        else:
            self._show(message)

    def finish(self) -> None:
        """Show the result and what came after it, and say what was left out."""
        with self._lock:
            for message in self._held:
                kind = message["header"]["msg_type"]
                if kind == "execute_result":
                    content = within_limit(kind, message["content"], self.rank)
                    self._shell.displayhook(RankResult(content))
                else:
                    self._show(message)
            self._held.clear()
            self._stream(self._last_stream, self.budget.summary())

    def _show(self, message: Message) -> None:
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "clear_output":
            self.budget.reset()
            if content.get("wait"):
                # Until this rank shows something else: our own folded block must not clear it.
                self._clear = message
                return
        if kind not in RELAYED:
            return
        if self._clear is not None:
            waiting, self._clear = self._clear, None
            self._send("clear_output", waiting["content"])
        if kind == "stream":
            self._last_stream = content["name"]
            self._stream(content["name"], self.budget.admit(content["text"]))
        else:
            if not kind.startswith("comm_"):
                content = within_limit(kind, content, self.rank)
            self._send(kind, content, message.get("metadata"), message.get("buffers"))

    def _stream(self, name: str, text: str) -> None:
        if text:
            self._send("stream", {"name": name, "text": text})

    def _send(
        self, kind: str, content: dict[str, Any], metadata: Any = None, buffers: Any = None
    ) -> None:
        if self._kernel is None:
            _print(kind, content)
            return
        if not self._flushed:
            # What the notebook itself printed before comes first.
            self._flushed = True
            sys.stdout.flush()
            sys.stderr.flush()
        # The rank's own number stays out of the saved notebook.
        clean = {key: value for key, value in (metadata or {}).items() if key != "engine"}
        self._kernel.session.send(
            self._kernel.iopub_socket,
            kind,
            content,
            parent=self._parent,
            ident=self._kernel._topic(kind),
            metadata=clean,
            buffers=[bytes(buffer) for buffer in buffers] if buffers else None,
        )


def _print(kind: str, content: dict[str, Any]) -> None:
    if kind == "stream":
        target = sys.stderr if content["name"] == "stderr" else sys.stdout
        print(content["text"], end="", file=target, flush=True)
    elif kind == "display_data":
        print(content["data"].get("text/plain", ""))


class RankResult:
    """The last expression of a distributed cell, as rank 0 displays it.

    The value itself stays on the ranks, under the same number as here: `%pull Out[5]`.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        self.data: dict[str, Any] = content["data"]
        self.metadata: dict[str, Any] = content["metadata"]

    def __repr__(self) -> str:
        return str(self.data.get("text/plain", ""))

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.data, self.metadata


# -- the other ranks -----------------------------------------------------------------------------


def groups_of_equal_output(runs: Sequence[RankRun]) -> list[list[RankRun]]:
    """Ranks that printed and displayed the same, together, in the order of their first rank."""
    groups: dict[bytes, list[RankRun]] = {}
    for run in runs:
        groups.setdefault(digest_of(run), []).append(run)
    return list(groups.values())


def digest_of(run: RankRun) -> bytes:
    """A hash of a rank's output. How the text was cut into messages does not matter."""
    digest = hashlib.blake2b(digest_size=16)
    for label, group in itertools.groupby(run.messages, key=_label):
        digest.update(f"\0{label}\0".encode())
        texts = (content["text"] if kind == "stream" else _comparable(content)
                 for kind, content in group)  # fmt: skip
        # Warnings name the file of a cell, whose folder has the number of the rank's process.
        digest.update(re.sub(r"ipykernel_\d+", "ipykernel", "".join(texts)).encode())
    return digest.digest()


def _label(message: tuple[str, dict[str, Any]]) -> str:
    kind, content = message
    return str(content["name"]) if kind == "stream" else kind


def _comparable(content: dict[str, Any]) -> str:
    # A widget has another id on every rank.
    data = content.get("data") or {}
    return repr({mime: value for mime, value in data.items() if "widget-view" not in mime})


def show_others(cell: Cell, shown_rank: int) -> None:
    """A folded block with what the other ranks printed; equal outputs are merged."""
    others = [cell.runs[rank] for rank in cell.ranks if rank != shown_rank]
    speaking = [run for run in others if run.messages]
    if not speaking:
        return
    reference = digest_of(cell.runs[shown_rank])
    from IPython.display import display

    blocks = []
    open_line = cell.runs[shown_rank].text()
    for group in groups_of_equal_output(speaking):
        who = describe_ranks(run.rank for run in group)
        same = digest_of(group[0]) == reference
        errors = group[0].text("stderr")
        # A progress bar stays folded; errors never do.
        shown = bool(errors) and not same and "\r" not in errors
        text = plain_text(group[0], without_stderr=shown)
        if same or text:
            blocks.append((who, None if same else text))
        if shown:
            gap = "" if open_line.endswith("\n") or not open_line else "\n"
            print(f"{gap}[{who}] {errors.rstrip()[:FOLDED_BYTES]}", file=sys.stderr)
            open_line = ""
    if blocks:
        display(_folded(blocks), raw=True)


def plain_text(run: RankRun, *, without_stderr: bool = False) -> str:
    """A rank's output as text, displays by their text form."""
    pieces = []
    for kind, content in run.messages:
        if kind == "stream":
            if content["name"] != "stderr" or not without_stderr:
                pieces.append(content["text"])
        elif kind == "clear_output":
            pieces.clear()
        else:
            pieces.append(str(content.get("data", {}).get("text/plain", "")) + "\n")
    return "".join(pieces)


ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def _folded(blocks: Sequence[tuple[str, str | None]]) -> dict[str, str]:
    plain, rich = [], []
    for who, text in blocks:
        if text is None:
            plain.append(f"[{who}: same output]")
            rich.append(f'<div style="opacity:0.6;font-size:90%">{who}: same output</div>')
            continue
        if len(text) > FOLDED_BYTES:
            text = text[:FOLDED_BYTES] + "\n… cut; %cluster output --save FILE has all of it"
        text = overwritten(ANSI.sub("", text))
        lines = text.count("\n") + (not text.endswith("\n"))
        plain.append(f"[{who}]\n{text.rstrip()}")
        count = f"{lines} line{'s' if lines != 1 else ''}"
        rich.append(
            f'<details><summary style="opacity:0.6;font-size:90%">{who}: {count}</summary>'
            f'<pre style="font-size:90%">{html.escape(text)}</pre></details>'
        )
    return {"text/plain": "\n".join(plain), "text/html": "".join(rich)}


GROUPINGS = ("engine", "type", "order")


def show_grouped(cell: Cell, how: str) -> None:
    """All ranks' output after the cell has ended, as `%%px --group-outputs` orders it.

    `how` is "engine" (rank after rank), "type" (streams, then displays, then results) or "order"
    (the first output of each rank, then the second, ...). Raises UsageError for another word.
    """
    if how not in GROUPINGS:
        raise UsageError(
            f"Outputs cannot be grouped by {how!r}.",
            why="the ways are those of %%px: " + ", ".join(GROUPINGS),
            do='for example: show("engine")',
        )
    items = [
        (index, run.rank, kind, content)
        for run in cell.runs.values()
        for index, (kind, content) in enumerate(run.messages)
        if kind != "clear_output"
    ]
    kinds = ("stream", "display_data", "update_display_data", "execute_result")
    keys = {
        "engine": lambda item: (item[1], item[0]),
        "order": lambda item: (item[0], item[1]),
        "type": lambda item: (
            kinds.index(item[2]),
            item[3].get("name") == "stderr",
            item[1],
            item[0],
        ),
    }
    from IPython.display import display

    previous, open_line = None, False
    for _, rank, kind, content in sorted(items, key=keys[how]):
        if kind == "stream":
            label = f"[{content['name']}:{rank}]"
            lead = "" if label == previous else "\n" * open_line + f"{label}\n"
            target = sys.stderr if content["name"] == "stderr" else sys.stdout
            other = sys.stdout if target is sys.stderr else sys.stderr
            other.flush()
            print(f"{lead}{content['text']}", end="", file=target)
            previous, open_line = label, not content["text"].endswith("\n")
        else:
            sys.stderr.flush()
            print("\n" * open_line + f"[output:{rank}]", flush=True)
            data = within_limit(kind, content, rank)["data"]
            display(data, metadata=content.get("metadata"), raw=True)
            previous, open_line = None, False
