"""`%model` and `%%chat`: load a model on all ranks, look at it, trust it, talk to it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from IPython.core.magic import Magics, cell_magic, line_magic, magics_class

from ..engine.errors import UsageError
from ..engine.plan.planner import plan
from ..engine.source import conversation, held, ours
from .arguments import Arguments, read_verb, variable_name
from .quiet import told
from .session import Session

if TYPE_CHECKING:
    from ..widgets.plan import PlanView
    from ..widgets.shards import ShardView
    from ..widgets.timing import TimeView

NAME = "model"  # what a model is bound to on the ranks, unless another name is given


def _whole_numbers(text: str) -> list[int]:
    """ "20,20,21" as numbers, for `--split`."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not like 20,20,21") from None


LOAD = Arguments("%model load", "Load a model, split over all ranks; it stays loaded.")
LOAD.add_argument("path", help="a folder, or the id of a repository on the hub")
LOAD.add_argument("--strategy", choices=("auto", "tensor", "pipeline"), default="auto")
LOAD.add_argument(
    "--split", type=_whole_numbers, metavar="N,N,...", help="layers of each rank, for a pipeline"
)
LOAD.add_argument("--adapter", metavar="FOLDER", help="an adapter to fuse into it")
LOAD.add_argument("--draft", metavar="PATH", help="a small model that proposes tokens to this one")
LOAD.add_argument(
    "--context", type=int, default=4096, metavar="TOKENS",
    help="tokens that there must be memory for (default: 4096)",
)  # fmt: skip
LOAD.add_argument(
    "--name", type=variable_name, default=NAME, help=f"on the ranks (default: {NAME})"
)
SHARDS = Arguments("%model shards", "Who holds which weights, in exact bytes.")
CHECK = Arguments("%model check", "Compare the split model with the whole one on one rank.")
CHECK.add_argument(
    "--lengths", type=_whole_numbers, metavar="N,N,...", help="of the prompts, in tokens"
)
TIME = Arguments("%model time", "Where the time of a token goes: compute, wait, wire.")
SHARDS.add_argument(
    "--context", type=int, metavar="TOKENS",
    help="of the cache whose size is shown (default: 4096, or what the model was made for)",
)  # fmt: skip
for verb in (SHARDS, CHECK, TIME):
    verb.add_argument("name", nargs="?", type=variable_name, default=NAME, metavar="NAME")
LIST = Arguments("%model list", "The models that the ranks hold.")
PLAN = Arguments("%model plan", "Whether a model would fit on some Macs, and how fast it would be.")
PLAN.add_argument(
    "path", metavar="MODEL", nargs="?", help='a folder, or a name such as "DeepSeek-V3.1 8-bit"'
)
PLAN.add_argument(
    "hosts", nargs="?", help='for example "4 x M3 Ultra 512GB, mesh", or a number of ranks here'
)
PLAN.add_argument("--strategy", choices=("auto", "tensor", "pipeline"), default="auto")
PLAN.add_argument("--context", type=int, default=8192, metavar="TOKENS", help="default: 8192")
PLAN.add_argument("--prompt", type=int, default=512, metavar="TOKENS", help="default: 512")
PLAN.add_argument("--measured", metavar="FILE", help="a saved calibration, for its ranks or HOSTS")
PLAN.add_argument(
    "--calibrated", action="store_true", help="measure the running ranks first, and plan for them"
)
PLAN.add_argument(
    "--against", type=variable_name, metavar="NAME",
    help="set what is predicted for a loaded model beside what is measured, on the running ranks",
)  # fmt: skip

VERBS = {"plan": PLAN, "load": LOAD, "shards": SHARDS, "check": CHECK, "time": TIME, "list": LIST}

CHAT = Arguments("%%chat", "Say the cell's text to a model; the answer comes while it is made.")
CHAT.add_argument(
    "--model", type=variable_name, default=NAME, metavar="NAME", help=f"default: {NAME}"
)
CHAT.add_argument(
    "--chat", type=variable_name, default="chat", metavar="NAME", help="default: chat"
)
CHAT.add_argument("--system", metavar="TEXT", help="a first message; another one begins anew")
CHAT.add_argument("--reset", action="store_true", help="begin a new conversation")
CHAT.add_argument("--max-tokens", type=int, metavar="N", help="at most (default: 256)")
CHAT.add_argument("--temperature", type=float, metavar="T", help="0: the likeliest (default)")
CHAT.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest of this share")
CHAT.add_argument("--seed", type=int, metavar="N", help="of what is drawn (default: 0)")


@magics_class
class ModelMagics(Magics):
    """The models on the ranks. Everything runs as a distributed cell, which is shown as one."""

    def __init__(self, shell: Any, session: Session) -> None:
        super().__init__(shell)
        self.shell: Any = shell
        self.session = session

    @line_magic
    def model(self, line: str) -> PlanView | ShardView | TimeView | None:
        verb, options = read_verb("%model", VERBS, line, "%model load PATH")
        if verb == "plan" and on_ranks(options):
            self._run(self.plan_code(options))
            return None
        if verb in ("plan", "shards", "time"):
            shown: PlanView | ShardView | TimeView = getattr(self, f"_{verb}")(options)
            return shown
        self._run(getattr(self, f"_{verb}")(options))
        return None

    model.__doc__ = (
        "Plan for a model, load it over all ranks, see who holds what, and check it.\n\n"
        + "\n".join(parser.format_help() for parser in VERBS.values())
    )

    @cell_magic
    def chat(self, line: str, cell: str) -> None:
        given = vars(CHAT.read(line))
        options = {name: value for name, value in given.items() if value is not None}
        model, chat = options.pop("model"), options.pop("chat")
        if not options["reset"]:
            del options["reset"]
        text = cell.strip()
        if not text and "reset" not in options:
            raise UsageError(
                "There is nothing to say.",
                why="the cell has no text",
                do="write what you want to say below %%chat",
            )
        self._run(chat_code(model, chat, text, options))

    chat.__doc__ = (
        "Talk to a model that the ranks hold: write what you want to say below `%%chat`.\n\n"
        "The conversation goes on from cell to cell; on every rank, `chat.messages` is what was\n"
        "said. Ctrl-C ends an answer on all ranks after the same token.\n\n" + CHAT.format_help()
    )

    def _run(self, code: str) -> None:
        self.shell.run_cell_magic("distributed", "", code)

    @staticmethod
    def _load(options: argparse.Namespace) -> str:
        arguments = [repr(options.path), repr(options.strategy)]
        arguments += [f"split={options.split!r}"] if options.split else []
        arguments += [f"adapter={options.adapter!r}"] if options.adapter else []
        arguments += [f"draft={options.draft!r}"] if options.draft else []
        arguments.append(f"context={options.context}")
        name = options.name
        return (
            f"{name} = macluster.load({', '.join(arguments)})\n"
            f"rprint({name}, {name}.reason, sep='\\n')"
        )

    def _shards(self, options: argparse.Namespace) -> ShardView:
        """The ranks find out who holds what; the picture of it lives in this notebook."""
        from ..engine.models.shards import read_map
        from ..widgets.shards import ShardView

        drawn = f"macluster.shards({held(options.name)}, context={options.context})"
        return ShardView(read_map(told(self.session, f"{drawn}.as_json()")))

    def _time(self, options: argparse.Namespace) -> TimeView:
        """The ranks measure; the picture of it lives in this notebook."""
        from ..engine.models.timing import read_time
        from ..widgets.timing import TimeView

        found = told(self.session, f"macluster.token_time({held(options.name)}).as_json()")
        return TimeView(read_time(found))

    @staticmethod
    def _plan(options: argparse.Namespace) -> PlanView:
        """On paper: no cluster is needed."""
        from ..widgets.plan import PlanView

        return PlanView(
            plan(
                options.path,
                options.hosts,
                strategy=options.strategy,
                context=options.context,
                prompt=options.prompt,
                measured=options.measured,
            )
        )

    @staticmethod
    def _check(options: argparse.Namespace) -> str:
        lengths = f", lengths={options.lengths}" if options.lengths else ""
        return f"macluster.check({held(options.name)}{lengths})"

    @staticmethod
    def plan_code(options: argparse.Namespace) -> str:
        """What the ranks run for a plan that needs them."""
        if options.against:
            return f"macluster.compare_plan({held(options.against)})"
        given = ("strategy", "context", "prompt")
        how = ", ".join(f"{name}={getattr(options, name)!r}" for name in given)
        # All ranks measure, one plans.
        return (
            f"(lambda path, found: macluster.plan(path, measured=found, {how}) if rank == 0 else "
            f"None)({options.path!r}, macluster.calibrate({options.path!r}))"
        )

    @staticmethod
    def _list(options: argparse.Namespace) -> str:
        listing = f"{ours('engine.models.load', 'models_in')}(globals()).items()"
        return f"rprint(*(f'{{_name}}: {{_model}}' for _name, _model in {listing}), sep='\\n')"


def on_ranks(options: argparse.Namespace) -> bool:
    """Whether `%model plan` measures on the running ranks. Raises UsageError for half a line."""
    alone = options.path is None and options.hosts is None and options.measured is None
    if options.against and alone and not options.calibrated:
        return True
    if options.against:
        PLAN.error("--against NAME stands alone: it calibrates, and knows model and ranks")
    if options.path is None:
        PLAN.error("it needs a MODEL, or --against NAME")
    if options.calibrated and (options.hosts or options.measured):
        PLAN.error("--calibrated plans for the running ranks: leave HOSTS and --measured out")
    if not (options.calibrated or options.hosts or options.measured):
        PLAN.error("it needs HOSTS, --measured FILE, or --calibrated")
    return bool(options.calibrated)


def chat_code(model: str, chat: str, text: str, options: Mapping[str, Any]) -> str:
    """What all ranks run for one turn of a conversation."""
    turn = dict(options)
    how: dict[str, Any] = {name: turn.pop(name) for name in ("system", "reset") if name in turn}
    say = f"\n{chat}.say({text!r}, **{turn!r});" if text else ""
    # Bound before anything is said: an interrupt must not lose it.
    return conversation(chat, model, how) + say
