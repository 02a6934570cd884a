"""A conversation with the model on the ranks, in a page: `macluster.chat_ui()`."""

from __future__ import annotations

import html
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from ..engine import transfer
from ..engine.cell import Cell
from ..engine.client import Message
from ..engine.errors import MaclusterError, UsageError
from ..engine.source import conversation, ours
from ..engine.verdict import error_of
from ..engine.world import World
from .turn import Reader

PACE = 0.07  # seconds between two updates of the page: about 14 a second

# What the settings are called, their type, and the least and most that they may be.
NUMBERS: dict[str, tuple[type, float, float]] = {
    "temperature": (float, 0.0, 10.0),
    "top_p": (float, 0.001, 1.0),
    "max_tokens": (int, 1, 1_000_000),
    "seed": (int, 0, 2**63 - 1),
}
DEFAULTS = {"system": "", "temperature": 0.0, "top_p": 1.0, "max_tokens": 256, "seed": 0}
ENDED = {"stop": "", "length": "cut at max tokens", "interrupted": "stopped"}
AGAIN = "send it again; if it fails again, %cluster restart gives fresh ranks"


class ChatView(anywidget.AnyWidget):
    """The page of a conversation. Made by `macluster.chat_ui`.

    Each turn is a cell on all ranks, which goes on with the conversation that `%%chat` knows by
    the same name. The notebook stays free meanwhile.

    Args:
        world: gives the world to speak to, for every turn anew: a cluster may be restarted.
        model: the name of the model on the ranks.
        chat: the name of the conversation on the ranks.
    """

    _esm = Path(__file__).parent / "chat.js"
    title = traitlets.Unicode().tag(sync=True)
    turns: Any = traitlets.List().tag(sync=True)  # {"role", "text", "note"}
    answer = traitlets.Unicode().tag(sync=True)  # as far as it has come
    phase = traitlets.Unicode("ready").tag(sync=True)  # ready, waiting, answering, stopping
    status = traitlets.Unicode().tag(sync=True)
    figures: Any = traitlets.Dict().tag(sync=True)
    settings: Any = traitlets.Dict(DEFAULTS).tag(sync=True)

    def __init__(
        self, world: Callable[[], World], *, model: str = "model", chat: str = "chat"
    ) -> None:
        super().__init__()
        self.title = f"{model}: not looked at yet"
        self.model, self.chat = model, chat
        self._world = world
        self._cell: Cell | None = None
        self._worker: threading.Thread | None = None
        self._lock = threading.Lock()
        self._reader = Reader()
        self._text = ""
        self._said: dict[str, Any] = {}  # figures and history, as they come
        self._begun = False  # the ranks have taken the turn up
        self._system: str | None = None  # what the conversation on the ranks began with
        self._reset = False
        self._transcript: str | None = None  # the id of its display
        self.on_msg(self._on_page)
        self.look()

    def __repr__(self) -> str:
        lines = [self._heading()]
        for turn in self.turns:
            lines.append(f"\n{turn['role']}: {turn['text']}")
            if turn["note"]:
                lines.append(f"[{turn['note']}]")
        return "\n".join(lines)

    def _heading(self) -> str:
        return f"Conversation with {self.title}"

    # -- in the saved notebook ---------------------------------------------------------------------

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        found = super()._repr_mimebundle_(**kwargs)
        if found is not None:
            # What is left when the kernel is gone.
            heading = f"<p><b>{html.escape(self._heading())}</b></p>"
            found[0].update({"text/plain": repr(self), "text/html": heading + self._html()})
        return found

    def _ipython_display_(self, **_: Any) -> None:
        from IPython.display import display

        bundle = super()._repr_mimebundle_()
        if bundle is None:
            return
        heading = {
            "text/plain": self._heading(),
            "text/html": f"<b>{html.escape(self._heading())}</b>",
        }
        display(bundle[0] | heading, raw=True)
        # An output of its own, which can be brought up to date: JupyterLab would draw the page
        # anew with its output, and whoever writes there would lose the cursor.
        self._transcript = self._transcript or uuid.uuid4().hex
        display(self._kept(), raw=True, display_id=self._transcript)

    def _save(self) -> None:
        """Put what was said into the notebook."""
        from IPython.display import update_display

        if self._transcript is not None:
            update_display(self._kept(), raw=True, display_id=self._transcript)

    def _kept(self) -> dict[str, str]:
        """What was said, folded."""
        count = len(self.turns)
        words = f"Transcript: {count} turn{'s' if count != 1 else ''}, kept in the notebook"
        return {
            "text/plain": repr(self),
            "text/html": '<details><summary style="opacity:0.6;font-size:90%">'
            f"{words}</summary>{self._html()}</details>",
        }

    def _html(self) -> str:
        parts = []
        for turn in self.turns:
            note = f"<br><small>{html.escape(turn['note'])}</small>" if turn["note"] else ""
            parts.append(
                f"<p><b>{html.escape(turn['role'])}</b>{note}</p>"
                f'<pre style="white-space:pre-wrap">{html.escape(turn["text"])}</pre>'
            )
        return "".join(parts)

    # -- what the page asks for --------------------------------------------------------------------

    def _on_page(self, _: Any, content: Mapping[str, Any], __: Any) -> None:
        asked = content.get("do")
        if asked == "say":
            self.say(str(content.get("text", "")), content.get("settings"))
        elif asked == "stop":
            self.stop()
        elif asked == "reset":
            self.reset()

    def look(self) -> None:
        """Find out what the ranks hold, unless a cell runs there."""
        names = f"globals().get({self.chat!r}), globals().get({self.model!r})"
        expression = f"{ours('widgets.turn', 'look')}({names})"
        try:
            world = self._world()
            if world.busy:
                self.status = "A cell runs on the ranks; what you say is answered after it."
                return
            [[facts]] = transfer.pull(world, [expression], [0])
        except MaclusterError as error:
            self.status = str(error)
            return
        if not facts:
            self.title = f"{self.model}: not loaded yet"
            self.status = f"The ranks hold no model named {self.model!r} yet: %model load PATH"
            return
        self.title, self.status = facts["model"], ""
        if "system" in facts:
            self._system = facts["system"]
            self.settings = {**self.settings, "system": self._system}
            self._take_history(facts["history"])

    def say(self, text: str, settings: Mapping[str, Any] | None = None) -> None:
        """Say something and return at once. What goes wrong is shown in the conversation."""
        text = text.strip()
        if not text or self.phase != "ready":
            return
        self.turns = [*self.turns, _turn("user", text)]
        try:
            self.settings = read_settings({**self.settings, **(settings or {})})
            world = self._world()
            busy = world.busy
            self._text, self._said, self._reader, self._begun = "", {}, Reader(), False
            self.answer = ""
            self.phase = "waiting"
            self.status = (
                "A cell runs on the ranks; the answer begins when it has ended."
                if busy
                else "reading what you said"
            )
            self._cell = world.run(self._code(text), on_output=self._take)
            self._cell.on_repair = self._tell
        except Exception as error:
            self._fail(error)
            return
        self._worker = threading.Thread(
            target=self._follow, args=(self._cell,), name="macluster-chat", daemon=True
        )
        self._worker.start()

    def stop(self) -> None:
        """End the answer on all ranks after the same token. Returns at once."""
        cell = self._cell
        if cell is None or cell.done or self.phase == "stopping":
            return
        self.phase, self.status = "stopping", "stopping all ranks after the same token"
        # Elsewhere: ranks that do not react are given seconds, and the notebook goes on.
        threading.Thread(
            target=cell.interrupt, args=("you pressed Stop",), name="macluster-stop", daemon=True
        ).start()

    def reset(self) -> None:
        """Begin a new conversation with the next turn."""
        if self.phase != "ready":
            return
        self._reset = True
        self.turns, self.answer, self.figures = [], "", {}
        self.status = "A new conversation begins with what you say next."
        self._save()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the turn under way has ended, at most `timeout` seconds. True when it has."""
        worker = self._worker
        if worker is not None:
            worker.join(timeout)
        return worker is None or not worker.is_alive()

    # -- a turn ------------------------------------------------------------------------------------

    def _code(self, text: str) -> str:
        """What all ranks run for one turn."""
        options = dict(self.settings)
        system = options.pop("system")
        how: dict[str, Any] = {}
        if self._system is None:
            # An empty one is no wish to take away what a conversation may have begun with.
            how |= {"system": system} if system else {}
        elif system != self._system:
            how["system"] = system
        if self._reset:
            how["reset"] = True
        # Bound before anything is said: an interrupt must not lose it.
        return (
            f"{conversation(self.chat, self.model, how)}\n"
            f"{ours('widgets.turn', 'say')}({self.chat}, {text!r}, {options!r})"
        )

    def _take(self, rank: int, message: Message) -> None:
        """Keep what rank 0 tells (called in the client's thread, which must not wait)."""
        content = message["content"]
        if rank != 0 or message["header"]["msg_type"] != "stream" or content["name"] != "stdout":
            return
        with self._lock:
            for kind, value in self._reader.take(content["text"]):
                if kind == "text":
                    self._text += value
                else:
                    self._said[kind] = value

    def _tell(self, step: str) -> None:
        """The step of a recovery that takes long (called in the thread that waits)."""
        self.status = step

    def _follow(self, cell: Cell) -> None:
        """Bring the answer to the page until the cell has ended (in a thread of its own)."""
        try:
            while not cell.wait(PACE):
                self._show(cell)
            error = error_of(cell)
        except Exception as problem:
            self._fail(problem)
            return
        self._end(cell, error)

    def _show(self, cell: Cell) -> None:
        with self._lock:
            text, said = self._text, dict(self._said)
        # What was said before comes first of all, so from then on this turn is under way.
        if "history" in said and not self._begun:
            self._begun, self._reset = True, False
            self._system = self.settings["system"]
            self.title = said["model"]
            self._take_history(said["history"], asked=self.turns[-1:])
            if self.phase == "waiting":
                self.phase, self.status = "answering", ""
        if text != self.answer:
            self.answer = text
        if cell.waiting:
            self.status = f"{cell.waiting}."

    def _end(self, cell: Cell, error: MaclusterError | None) -> None:
        if not cell.cancelled and error is None and not self._said.get("figures"):
            error = MaclusterError(
                "The answer did not arrive.", why="rank 0 has said nothing", do=AGAIN
            )
        self._show(cell)
        figures = self._said.get("figures") or {}
        if figures:
            self.figures = figures
            reason = str(figures["finish_reason"])
            note = figures_text(figures, ENDED.get(reason, reason))
            if figures["tokens"]:
                with self.hold_sync():
                    self.turns = [*self.turns, _turn("assistant", figures["text"], note)]
                    self.answer = ""
        if error is not None and not cell.cancelled:
            self._fail(error)
            return
        self.answer, self.status = "", "stopped on all ranks" if cell.cancelled else ""
        self.phase = "ready"
        self._save()

    def _fail(self, error: Exception) -> None:
        self.turns = [*self.turns, _turn("error", error_text(error))]
        self.answer, self.status, self.phase = "", "", "ready"
        self._save()

    def _take_history(self, history: list[list[str]], asked: Any = ()) -> None:
        """Show the conversation as the ranks have it: `%%chat` may have gone on with it."""
        notes = {(turn["role"], turn["text"]): turn["note"] for turn in self.turns}
        turns = [_turn(role, text, notes.get((role, text), "")) for role, text in history]
        shown = [turn for turn in self.turns if turn["role"] != "error"]
        if turns + list(asked) != shown:
            self.turns = [*turns, *asked]


def read_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they came from the page. Raises UsageError for a number that cannot be meant."""
    settings: dict[str, Any] = {"system": str(given.get("system") or "")}
    for name, (kind, least, most) in NUMBERS.items():
        value = given.get(name)
        if value is None or value == "":
            value = DEFAULTS[name]
        try:
            number = kind(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None or not least <= number <= most:
            words = name.replace("_", "-")
            raise UsageError(
                f"{words} cannot be {value}.",
                why=f"it is a number from {least:g} to {most:g}",
                do=f"set it to {DEFAULTS[name]:g}, the default, or another one of these",
            )
        settings[name] = number
    return settings


def figures_text(figures: Mapping[str, Any], ended: str = "") -> str:
    """The figures of an answer in one line."""
    room = f" of {figures['limit']:,}" if figures["limit"] else ""
    count = figures["tokens"]
    parts = [f"{count:,} token{'s' if count != 1 else ''}"]
    # The first token has a time of its own.
    parts += [f"{figures['tokens_per_second']:.1f} tokens/s"] if count > 1 else []
    parts += [f"first after {figures['first']:.2f} s"] if count else []
    parts.append(f"{figures['context']:,}{room} tokens of context")
    return " · ".join(parts + ([ended] if ended else []))


def error_text(error: Exception) -> str:
    """What happened, why, and what to do."""
    if not isinstance(error, MaclusterError):
        error = MaclusterError(f"{type(error).__name__}: {error}", why="the turn failed", do=AGAIN)
    elif "\n  Do:" in error.what:
        # An error of ours that was raised on the ranks has all its parts already.
        return error.what
    elif not error.do:
        error = MaclusterError(error.what, why=error.why, do=AGAIN)
    return str(error)


def _turn(role: str, text: str, note: str = "") -> dict[str, str]:
    return {"role": role, "text": text, "note": note}
