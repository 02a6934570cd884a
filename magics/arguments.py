"""The magics' own argument parser: clear errors, and options that Tab can complete."""

from __future__ import annotations

import argparse
import keyword
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ..engine.errors import UsageError

# A word of a line; quotes keep spaces together and stay.
WORD = re.compile(r"""\s*((?:"[^"]*"|'[^']*'|\S)+)""")

TAKEN = {"group", "macluster", "mx", "rank", "rprint", "size"}  # what every cell on a rank finds


def variable_name(text: str) -> str:
    """An option's value that becomes a variable on the ranks."""
    if not text.isidentifier() or keyword.iskeyword(text) or text in TAKEN:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be a name")
    return text


def read_verb(
    magic: str, verbs: Mapping[str, Arguments], line: str, example: str
) -> tuple[str, argparse.Namespace]:
    """The verb at the start of a magic's line, and its options. Raises UsageError."""
    verb, _, rest = line.strip().partition(" ")
    if verb not in verbs:
        raise UsageError(
            f"{magic} has no verb {verb!r}." if verb else f"{magic} needs a verb.",
            why="it has " + ", ".join(verbs),
            do=f"{example}, for example; {magic}? explains all of them",
        )
    return verb, verbs[verb].read(rest)


class Arguments(argparse.ArgumentParser):
    """An argparse parser that raises UsageError in place of leaving the process."""

    def __init__(self, magic: str, description: str, *, raw: bool = False, **options: Any) -> None:
        # With `raw`, words keep their quotes: they are expressions, such as d["key"].
        self.raw = raw
        super().__init__(
            prog=magic,
            description=description,
            add_help=False,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        # IPython knows `%cluster?`, and no `%cluster start?`.
        magic = self.prog.partition(" ")[0]
        raise UsageError(
            f"{self.prog}: {message}.",
            why="the line after the magic's name is read like a command line",
            do=self.format_usage().removeprefix("usage: ").strip() + f"\n{magic}? explains it",
        )

    def read(self, line: str) -> argparse.Namespace:
        """Parse the rest of a magic's line. Raises UsageError."""
        try:
            words = WORD.findall(line) if self.raw else shlex.split(line)
        except ValueError as error:
            self.error(f"{line!r} cannot be split into words: {error}")
        return self.parse_args(words)

    def option_names(self) -> list[str]:
        """Every `--option`, for completion."""
        return sorted(name for name in self._options() if name.startswith("--"))

    def action_after(self, words: Sequence[str]) -> argparse.Action | None:
        """The option or argument that a word behind `words` is a value of, for completion."""
        options = self._options()
        arguments = [action for action in self._actions if not action.option_strings]
        wanted: argparse.Action | None = None
        for word in words:
            if wanted is not None:
                wanted = None
            elif word.startswith("-"):
                wanted = options.get(word)
                if wanted is not None and wanted.nargs == 0:
                    wanted = None
            elif arguments and arguments[0].nargs != "+":
                del arguments[0]
        return wanted or (arguments[0] if arguments else None)

    def _options(self) -> dict[str, argparse.Action]:
        return {name: action for action in self._actions for name in action.option_strings}
