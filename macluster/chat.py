"""`macluster chat`: talk to a model over several ranks, from a terminal."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from .engine.cluster import Cluster
from .engine.errors import MaclusterError
from .engine.world import World
from .terminal import add_loading, cluster_name, load_code, run_cell

HELP = "/reset begins a new conversation, /quit or Ctrl-D ends; Ctrl-C ends an answer"


def add_chat(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    chat = commands.add_parser("chat", help="talk to a model over several ranks")
    add_loading(chat)
    chat.add_argument("--draft", metavar="MODEL", help="a small model that proposes tokens")
    chat.add_argument("--system", metavar="TEXT", help="a first message that sets the tone")
    chat.add_argument("--max-tokens", type=int, default=1024, metavar="N")
    chat.add_argument("--temperature", type=float, default=0.0, metavar="T")
    chat.add_argument("--top-p", type=float, default=1.0, metavar="P")
    chat.add_argument("--seed", type=int, default=0, metavar="N")
    chat.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Start a cluster, load the model, and talk until the input ends."""
    name = f"chat-{cluster_name(options.model)}-{os.getpid()}"
    cluster = Cluster(options.hostfile or options.n, backend=options.backend, name=name)
    world = cluster.start_sync(lambda step: print(step, file=sys.stderr, flush=True))
    try:
        run_cell(world, f"{load_code(options)}\n{_beginning(options)}").check()
        print(HELP, file=sys.stderr)
        _talk(world, options)
    finally:
        cluster.stop_sync()


def _beginning(options: argparse.Namespace) -> str:
    return (
        f"chat = macluster.Chat(model, system={options.system or ''!r}, "
        f"max_tokens={options.max_tokens}, temperature={options.temperature}, "
        f"top_p={options.top_p}, seed={options.seed})"
    )


def _talk(world: World, options: argparse.Namespace) -> None:
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            print(f"\n{HELP}", file=sys.stderr)
            continue
        if text in ("/quit", "/exit"):
            return
        code = "chat.reset()" if text == "/reset" else f"chat.say({text!r}); None"
        if not text:
            continue
        try:
            run_cell(world, code).check()
        except MaclusterError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            # A rank that was started anew has its part of the model, and no conversation.
            run_cell(world, f"if 'chat' not in globals():\n    {_beginning(options)}").check()
