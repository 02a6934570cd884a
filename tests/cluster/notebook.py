"""A notebook without a browser: a real kernel, and the messages that a front end would see."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from queue import Empty
from typing import Any

import attrs
from jupyter_client.manager import KernelManager

TIMEOUT = 60.0  # seconds; a busy machine is slow, a stuck cell is an error
OUTPUT = (
    "stream", "display_data", "update_display_data", "execute_result", "clear_output", "error",
    "comm_open", "comm_msg", "comm_close",
)  # fmt: skip
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@attrs.frozen
class Output:
    """One output message."""

    kind: str
    content: dict[str, Any]
    metadata: dict[str, Any] = attrs.field(factory=dict)
    buffers: list[bytes] = attrs.field(factory=list)

    @property
    def plain(self) -> str:
        """The text form of a display, or the text of a stream."""
        if self.kind == "stream":
            return str(self.content["text"])
        return str(self.content.get("data", {}).get("text/plain", ""))


@attrs.frozen
class Ran:
    """What became of a cell."""

    reply: dict[str, Any]
    outputs: list[Output]
    seconds: float

    @property
    def ok(self) -> bool:
        return bool(self.reply["status"] == "ok")

    @property
    def ename(self) -> str:
        return str(self.reply.get("ename", ""))

    @property
    def evalue(self) -> str:
        return str(self.reply.get("evalue", ""))

    @property
    def traceback(self) -> str:
        """The lines of the error that the notebook shows, without colours."""
        return ANSI.sub("", "\n".join(self.reply.get("traceback", [])))

    def text(self, name: str = "stdout") -> str:
        """What came on one stream."""
        return "".join(
            o.content["text"]
            for o in self.outputs
            if o.kind == "stream" and o.content["name"] == name
        )

    def all(self, kind: str) -> list[Output]:
        return [output for output in self.outputs if output.kind == kind]

    @property
    def result(self) -> str:
        """The text form of the cell's value."""
        return "\n".join(output.plain for output in self.all("execute_result"))

    @property
    def pager(self) -> str:
        """What the cell opened in the pager."""
        texts = [
            part["data"]["text/plain"] for part in self.reply.get("payload", []) if "data" in part
        ]
        return ANSI.sub("", "\n".join(texts))

    @property
    def folded(self) -> Output | None:
        """The block with the output of the other ranks."""
        return next((output for output in reversed(self.outputs) if is_folded(output)), None)

    @property
    def own(self) -> list[Output]:
        """The output without that block."""
        return [output for output in self.outputs if not is_folded(output)]


def is_folded(output: Output) -> bool:
    return output.kind == "display_data" and output.plain.startswith("[rank")


class Notebook:
    """A kernel and a client. Cells run one after the other, as with Run All."""

    def __init__(self, **env: str) -> None:
        self.manager = KernelManager(kernel_name="python3")
        # ipykernel leaves native output alone when it finds itself in a test.
        inherited = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
        self.manager.start_kernel(env={**inherited, **env})
        self.client: Any = self.manager.client()
        self.client.start_channels()
        try:
            self.client.wait_for_ready(TIMEOUT)
        except BaseException:
            self.close()
            raise
        self._replies: dict[str, dict[str, Any]] = {}
        self._outputs: dict[str, list[Output]] = {}
        self._idle: set[str] = set()

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=False)
        self.manager.cleanup_resources()

    def run(self, source: str, *, timeout: float = TIMEOUT) -> Ran:
        """Run a cell to its end."""
        return self.finish(self.send(source), timeout=timeout)

    def ok(self, source: str, *, timeout: float = TIMEOUT) -> Ran:
        """Run a cell that must not fail."""
        ran = self.run(source, timeout=timeout)
        assert ran.ok, f"{source}\n{ran.traceback}"
        return ran

    def send(self, source: str, *, stop_on_error: bool = False) -> str:
        """Put a cell into the kernel's queue."""
        sent: str = self.client.execute(source, allow_stdin=False, stop_on_error=stop_on_error)
        return sent

    def finish(self, sent: str, *, timeout: float = TIMEOUT) -> Ran:
        """The outcome of a cell that was sent."""
        began = time.monotonic()
        deadline = began + timeout
        while sent not in self._idle:
            self._read_output(deadline)
        reply = self._reply(sent, deadline)
        self._idle.discard(sent)
        return Ran(reply, self._outputs.pop(sent, []), time.monotonic() - began)

    def wait_for_output(self, sent: str, text: str) -> None:
        """Return once a cell under way has printed `text`."""
        deadline = time.monotonic() + TIMEOUT
        while not any(text in output.plain for output in self._outputs.get(sent, [])):
            assert sent not in self._idle, f"the cell ended without printing {text!r}"
            self._read_output(deadline)

    def interrupt(self) -> None:
        """What the stop button does."""
        self.manager.interrupt_kernel()

    def complete(self, code: str, cursor: int | None = None) -> dict[str, Any]:
        """What Tab offers at the end of `code`."""
        sent = self.client.complete(code, len(code) if cursor is None else cursor)
        return self._reply(sent, time.monotonic() + TIMEOUT)

    def inspect(self, code: str, cursor: int | None = None) -> dict[str, Any]:
        """What Shift-Tab shows at the end of `code`."""
        sent = self.client.inspect(code, len(code) if cursor is None else cursor)
        return self._reply(sent, time.monotonic() + TIMEOUT)

    def _read_output(self, deadline: float) -> None:
        try:
            message = self.client.get_iopub_msg(timeout=max(0.01, deadline - time.monotonic()))
        except Empty:
            raise TimeoutError("the kernel sent no more output in time") from None
        parent = message["parent_header"].get("msg_id", "")
        kind, content = message["header"]["msg_type"], message["content"]
        if kind in OUTPUT:
            output = Output(
                kind, content, dict(message["metadata"]), [bytes(b) for b in message["buffers"]]
            )
            self._outputs.setdefault(parent, []).append(output)
        elif kind == "status" and content["execution_state"] == "idle":
            self._idle.add(parent)

    def _reply(self, sent: str, deadline: float) -> dict[str, Any]:
        while sent not in self._replies:
            try:
                message = self.client.get_shell_msg(timeout=max(0.01, deadline - time.monotonic()))
            except Empty:
                raise TimeoutError("the kernel sent no reply in time") from None
            self._replies[message["parent_header"]["msg_id"]] = message["content"]
        return self._replies.pop(sent)


# Every run has other identifiers, and every process other files for its cells.
IDENTIFIER = re.compile(r"\b[0-9a-f]{32}\b|(?<=IPY_MODEL_)[0-9a-f]{32}")
FOLDER = re.compile(r"\bipykernel_\d+")
# A progress bar's times.
PACE = re.compile(r"\[[^\[\]]{0,40}(?:it/s|s/it)\]")
COUNT = re.compile(r"In\[\d+\]")


def comparable(outputs: Sequence[Output]) -> list[Any]:
    """Output messages in a form that is equal when a person sees the same.

    Adjacent texts of one stream are one text; identifiers are numbered in order of appearance.
    """
    numbers: dict[str, str] = {}

    def rename(found: re.Match[str]) -> str:
        return numbers.setdefault(found.group(), f"id{len(numbers)}")

    def cleaned(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: cleaned(part) for key, part in value.items() if key != "execution_count"}
        if isinstance(value, list):
            return [cleaned(part) for part in value]
        if isinstance(value, str):
            text = FOLDER.sub("ipykernel", COUNT.sub("In[n]", value))
            return PACE.sub("[pace]", IDENTIFIER.sub(rename, text))
        return value

    merged: list[Any] = []
    for output in outputs:
        if (
            output.kind == "stream"
            and merged
            and merged[-1][0] == "stream"
            and merged[-1][1]["name"] == output.content["name"]
        ):
            merged[-1][1]["text"] += output.content["text"]
        else:
            content = json.loads(json.dumps(output.content))
            merged.append([output.kind, content, output.metadata, output.buffers])
    return [cleaned(each) for each in merged]
