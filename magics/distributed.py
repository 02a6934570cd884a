"""`%%distributed` and `%%rank`: run a cell on the ranks."""

from __future__ import annotations

import argparse
import sys
import threading
from typing import Any

from IPython.core.magic import (
    Magics,
    cell_magic,
    line_cell_magic,
    magics_class,
    no_var_expand,
)

from ..engine.cell import Cell
from ..engine.errors import UsageError
from ..engine.hostfile import parse_ranks
from ..engine.verdict import error_of, timeout_error
from . import relay
from .arguments import WORD, Arguments
from .lines import Steps, WaitLine
from .session import Session


def seconds(text: str) -> float:
    """A positive number of seconds, for `--timeout`."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0 seconds")
    return value


def _options(magic: str, description: str, *, with_targets: bool) -> Arguments:
    parser = Arguments(magic, description)
    if with_targets:
        parser.add_argument(
            "-t", "--targets", default="all", metavar="RANKS", help="ranks to run on, such as 0,2-3"
        )
    parser.add_argument(
        "-a", "--noblock", dest="block", action="store_false", default=True,
        help="return a handle at once: wait(), show(), cancel(), result()",
    )  # fmt: skip
    parser.add_argument("--block", dest="block", action="store_true", help="wait (the default)")
    parser.add_argument("-o", "--out", metavar="NAME", help="bind the cell's handle to NAME here")
    parser.add_argument("--local", action="store_true", help="run the cell in this kernel, too")
    parser.add_argument(
        "--group-outputs", choices=relay.GROUPINGS, metavar="HOW",
        help="show every rank's output after the cell, by engine, type or order",
    )  # fmt: skip
    parser.add_argument(
        "--checked", action="store_true",
        help="compare every collective across the ranks before it moves data",
    )  # fmt: skip
    parser.add_argument(
        "--on-start", action="store_true",
        help="run the cell again on every rank that is started anew after a failure",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=seconds, metavar="SECONDS", help="stop the cell on all ranks after this"
    )
    return parser


DISTRIBUTED = _options("%%distributed", "Run the cell on all ranks.", with_targets=True)
RANK = _options("%%rank", "Run the cell on the ranks named first.", with_targets=False)
RANK.add_argument("ranks", metavar="RANKS", help="ranks to run on, such as 0,2-3")


class Handle:
    """A distributed cell: wait for it, show its output, cancel it."""

    def __init__(self, cell: Cell, shown_rank: int) -> None:
        self.cell = cell
        self.shown_rank = shown_rank

    def __repr__(self) -> str:
        return repr(self.cell)

    @property
    def done(self) -> bool:
        """True once every rank has ended."""
        return self.cell.done

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until every rank has ended, at most `timeout` seconds. True when all have."""
        return self.cell.wait(timeout)

    def cancel(self) -> None:
        """Interrupt the cell on all ranks."""
        self.cell.cancel()

    def text(self, rank: int | None = None) -> str:
        """What a rank has printed so far."""
        return self.cell.runs[self.shown_rank if rank is None else rank].text()

    def show(self, group_outputs: str = "engine") -> None:
        """Show the output so far of every rank, by engine, type or order, and how it failed."""
        relay.show_grouped(self.cell, group_outputs)
        if self.cell.settled and (error := error_of(self.cell)) is not None:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)

    def result(self, timeout: float | None = None) -> Handle:
        """Wait, and raise the cell's error if it failed."""
        self.cell.result(timeout)
        return self


@magics_class
class DistributedMagics(Magics):
    """Cells that run on the ranks."""

    def __init__(self, shell: Any, session: Session) -> None:
        super().__init__(shell)
        self.shell: Any = shell
        self.session = session

    @no_var_expand
    @line_cell_magic
    def distributed(self, line: str, cell: str | None = None) -> Handle | None:
        if cell is None:
            options, code = split_line(DISTRIBUTED, line)
            if not code:
                DISTRIBUTED.error("there is nothing to run")
        else:
            options, code = DISTRIBUTED.read(line), numbered("%%distributed " + line, cell)
        ranks = parse_ranks(options.targets, self.session.world.size)
        return self._run(code, cell or code, ranks, options)

    @cell_magic
    def rank(self, line: str, cell: str) -> Handle | None:
        options = RANK.read(line)
        ranks = parse_ranks(options.ranks, self.session.world.size)
        return self._run(numbered("%%rank " + line, cell), cell, ranks, options)

    # Both magics document themselves: `%%distributed?` shows this text.
    distributed.__doc__ = (
        "Run a cell (`%%distributed`) or a line (`%distributed`) on the ranks.\n\n"
        "Rank 0's output is shown as if the cell had run here; what the other ranks print is\n"
        "folded below it. `group`, `rank`, `size`, `mx`, `rprint` and `macluster` are defined on\n"
        "every rank. A cell that fails on a rank fails here, with that rank's traceback.\n\n"
        + DISTRIBUTED.format_help()
    )
    rank.__doc__ = "Run a cell on some ranks: `%%rank 0,2`.\n\n" + RANK.format_help()

    def _run(
        self, code: str, local_code: str, ranks: list[int], options: argparse.Namespace
    ) -> Handle | None:
        world, shell = self.session.world, self.shell
        if options.out is not None and not options.out.isidentifier():
            raise UsageError(
                f"{options.out!r} cannot be a name.",
                why="-o binds the cell's handle to a Python name",
                do="for example: -o run",
            )
        if options.on_start and not options.block:
            raise UsageError(
                "--on-start and --noblock do not go together.",
                why="a cell is remembered for new ranks once it has ended well",
                do="leave --noblock out",
            )
        shown = ranks[0]
        live = options.block and not options.group_outputs
        show = relay.Relay(shell, shown) if live else None
        if show is not None and options.local:
            # Two halves that print at the same time would mix within a line.
            show.pause()
        # The number that the notebook shows for this cell; `execution_count` is ahead of it.
        number = shell.displayhook.prompt_count
        cell = world.run(
            code, ranks, execution_count=number, checked=options.checked, on_output=show
        )
        relay.show_notices(world)
        if options.block:
            cell.on_wait, cell.on_repair = WaitLine(), Steps()
        handle = Handle(cell, shown)
        if options.out:
            shell.user_ns[options.out] = handle
        here = shell.run_cell(local_code) if options.local else None
        if show is not None and options.local:
            show.resume()
        if here is not None and isinstance(here.error_in_exec, KeyboardInterrupt):
            cell.interrupt("you interrupted it")
        if not options.block:
            # Somebody has to notice a rank that fails while nobody waits.
            threading.Thread(target=cell.wait, name="macluster-cell", daemon=True).start()
            return handle
        ended = True
        try:
            ended = cell.wait(options.timeout)
        except KeyboardInterrupt:
            cell.interrupt("you interrupted it")
        late = [] if ended else cell.running
        if late:
            cell.interrupt(f"the cell ran longer than {options.timeout:g} s")
        self._finish(cell, show, options)
        if late:
            raise timeout_error(cell, options.timeout, late)
        cell.check()
        if options.on_start:
            self.session.running[0].add_setup_cell_sync(code)
        if here is not None:
            here.raise_error()
        return None

    def _finish(self, cell: Cell, show: relay.Relay | None, options: argparse.Namespace) -> None:
        if show is None:
            relay.show_grouped(cell, options.group_outputs)
            return
        show.finish()
        relay.show_others(cell, show.rank)
        for warning in cell.warnings:
            print(f"macluster: {warning}", file=sys.stderr)
        for payload in cell.runs[show.rank].payload:
            # `name?` on a rank opens the pager here.
            self.shell.payload_manager.write_payload(payload)


def numbered(first_line: str, body: str) -> str:
    """The cell's source for the ranks, with the line numbers that the notebook shows.

    The magic's own line becomes a comment, unless another cell magic has to stay on top. It is
    indented like the body, which IPython moves to the left as a whole.
    """
    if body.lstrip().startswith("%%"):
        return body
    first = next((line for line in body.splitlines() if line.strip()), "")
    indent = first[: len(first) - len(first.lstrip())]
    return f"{indent}# {first_line.rstrip()}\n{body}"


def split_line(parser: Arguments, line: str) -> tuple[argparse.Namespace, str]:
    """Options at the start of a line magic, and the code behind them, quotes and all."""
    end = options_end(parser, line)
    return parser.read(line[:end]), line[end:].strip()


def options_end(parser: Arguments, line: str) -> int:
    """Where the options at the start of `line` end."""
    actions = {name: action for action in parser._actions for name in action.option_strings}
    end = 0
    while match := WORD.match(line, end):
        name, equals, _ = match[1].partition("=")
        if name not in actions:
            break
        end = match.end()
        if not equals and actions[name].nargs != 0 and (value := WORD.match(line, end)):
            end = value.end()
    return end
