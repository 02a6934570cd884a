"""`%push`, `%pull`, `%scatter`, `%gather`, `%variables`: values between here and the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from IPython.core.magic import Magics, line_magic, magics_class, no_var_expand

from ..engine import transfer
from ..engine.errors import TransferError
from ..engine.hostfile import parse_ranks
from ..engine.tables import Table, size_text
from .arguments import Arguments
from .session import Session


def _parser(magic: str, description: str, names: str) -> Arguments:
    parser = Arguments(magic, description, raw=magic == "%pull")
    many = names.endswith("S")
    parser.add_argument("names", nargs="+" if many else None, metavar=names.rstrip("S"))
    parser.add_argument("-t", "--targets", default="all", metavar="RANKS", help="such as 0,2-3")
    return parser


PUSH = _parser("%push", "Send variables of this notebook to the ranks.", "NAMES")
PULL = _parser("%pull", "Bring variables of the ranks here: a value per rank in a list.", "NAMES")
SCATTER = _parser("%scatter", "Split an array along its first axis over the ranks.", "NAME")
GATHER = _parser("%gather", "Join the ranks' parts of an array along the first axis.", "NAME")
for _each in (PULL, GATHER):
    _each.add_argument(
        "--max-bytes", type=int, default=transfer.MAX_PULL_BYTES, metavar="BYTES",
        help="refuse to bring more than this (default: 1 GB)",
    )  # fmt: skip
    _each.add_argument("--as", dest="alias", metavar="NAME", help="bind it to NAME here")
VARIABLES = Arguments("%variables", "Show what the ranks' namespaces hold.")
VARIABLES.add_argument("-t", "--targets", default="all", metavar="RANKS", help="such as 0,2-3")


@magics_class
class VariableMagics(Magics):
    """Values between this notebook and the ranks."""

    def __init__(self, shell: Any, session: Session) -> None:
        super().__init__(shell)
        self.shell: Any = shell
        self.session = session

    @line_magic
    def push(self, line: str) -> None:
        options = PUSH.read(line)
        names = [name for word in options.names for name in word.split(",") if name]
        values = {name: self._local(name) for name in names}
        transfer.push(self.session.world, values, self._ranks(options))

    @no_var_expand
    @line_magic
    def pull(self, line: str) -> Any:
        options = PULL.read(line)
        ranks = self._ranks(options)
        rows = transfer.pull(self.session.world, options.names, ranks, max_bytes=options.max_bytes)
        # One rank: the values themselves; several: a list with a value per rank.
        per_name = [
            list(column) if len(ranks) > 1 else column[0] for column in zip(*rows, strict=True)
        ]
        return self._bind(options, per_name)

    @line_magic
    def scatter(self, line: str) -> None:
        options = SCATTER.read(line)
        transfer.scatter(
            self.session.world, options.names, self._local(options.names), self._ranks(options)
        )

    @line_magic
    def gather(self, line: str) -> Any:
        options = GATHER.read(line)
        value = transfer.gather(
            self.session.world, options.names, self._ranks(options), max_bytes=options.max_bytes
        )
        options.names = [options.names]
        return self._bind(options, [value])

    @line_magic
    def variables(self, line: str) -> Table:
        options = VARIABLES.read(line)
        return table(transfer.variables(self.session.world, self._ranks(options)))

    push.__doc__ = PUSH.format_help()
    pull.__doc__ = PULL.format_help()
    scatter.__doc__ = SCATTER.format_help()
    gather.__doc__ = GATHER.format_help()
    variables.__doc__ = VARIABLES.format_help()

    def _ranks(self, options: Any) -> list[int]:
        return parse_ranks(options.targets, self.session.world.size)

    def _local(self, name: str) -> Any:
        try:
            return self.shell.user_ns[name]
        except KeyError:
            raise TransferError(
                f"There is no variable {name!r} in this notebook.",
                why="no cell has bound it here; names in %%distributed cells live on the ranks",
                do=f"bind it in a plain cell, or bring it here with %pull {name}",
            ) from None

    def _bind(self, options: Any, values: list[Any]) -> Any:
        """Bind identifiers here under their own names, and return expressions."""
        names = [options.alias] if options.alias else options.names
        if len(names) == len(values) and all(name.isidentifier() for name in names):
            self.shell.user_ns.update(zip(names, values, strict=True))
            return None
        return values[0] if len(values) == 1 else values


def table(rows: Sequence[transfer.Variable]) -> Table:
    """The table of `%variables`."""
    cells = []
    for row in rows:
        sizes = set(row.bytes.values())
        if len(sizes) == 1:
            each = size_text(sizes.pop())
        else:
            each = "; ".join(f"{size_text(size)} on {rank}" for rank, size in row.bytes.items())
        cells.append((row.name, row.type, row.shape, row.dtype, each, row.verdict))
    heading = ("name", "type", "shape", "dtype", "per rank", "across ranks")
    return Table(heading, cells, right=(4,), empty="no variables on the ranks yet")
