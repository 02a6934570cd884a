"""After a failure: free the ranks that are left, replace those that are lost, form a new world.

The states of a world are "ok", "aborting", "rebuilding" and "broken". Where the backend lets a
blocked rank go (`ring`), the ranks keep their processes, and with them their variables and models.
Elsewhere all ranks are killed first and started anew.

Several processes may use one cluster and notice the same failure, so this runs under a lock of the
cluster, and whoever comes second finds a world that is newer than the one that failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from . import backends
from .errors import MaclusterError, WorldBroken
from .forming import Plan, form, gather
from .hostfile import describe_ranks
from .units import headline

if TYPE_CHECKING:
    from .cluster import Cluster
    from .world import World

PATIENCE = 2.0  # seconds that the main thread of a rank gets to come back after an abort
ANSWER = 1.0  # seconds that a rank gets to answer from its control thread
# At a new world, each with fresh processes for the ranks that did not make it; the last for all.
ATTEMPTS = 3
SETUP_TIMEOUT = 120.0  # seconds for a cell that refills a rank
RELOAD_TIMEOUT = 24 * 3600.0  # seconds; %cluster stop ends it


@attrs.define
class Recovery:
    """What was done about a failure.

    `restarted` are the ranks whose processes are new, `notes` say in words what became of their
    variables, and `seconds` is how long it took, from the abort to the verified world.
    """

    epoch: int = 0
    restarted: list[int] = attrs.field(factory=list)
    notes: list[str] = attrs.field(factory=list)
    seconds: float = 0.0
    by_others: bool = False


async def status(world: World) -> dict[int, dict[str, Any]]:
    """What the ranks that answer within ANSWER say about themselves."""
    return await _ask(world, "status", {}, world.alive)


async def _ask(
    world: World,
    name: str,
    content: Mapping[str, Any],
    ranks: Collection[int],
    timeout: float = ANSWER,
) -> dict[int, dict[str, Any]]:
    return await asyncio.to_thread(world.ask_all, name, content, list(ranks), timeout)


def newer(world: World, states: Mapping[int, Mapping[str, Any]], seen: int) -> bool:
    """True when all ranks are in one sound world that is newer than `seen`."""
    epochs = {state["epoch"] for state in states.values()}
    sound = not any(state["broken"] for state in states.values())
    return len(states) == world.size and sound and len(epochs) == 1 and min(epochs) > seen


async def recover(
    cluster: Cluster,
    world: World,
    *,
    seen: int,
    why: str,
    everyone: bool = False,
    progress: Callable[[str], None],
) -> Recovery:
    """Give the world `seen` up, and form the next one.

    With `everyone`, all ranks are killed and started anew. `progress` is told what takes long:
    loading models again. Raises WorldBroken when no new world could be formed; the next call tries
    again.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    states = await status(world)
    if not everyone and newer(world, states, seen):
        world.epoch = max(state["epoch"] for state in states.values())
        world.client.pids = {rank: state["pid"] for rank, state in states.items()}
        return Recovery(world.epoch, by_others=True)
    backend = backends.get(world.backend)
    report = Recovery(max([seen, *(state["epoch"] for state in states.values())]) + 1)
    if not everyone:
        # Kept until they are loaded again, in case this is broken off.
        world.held |= await _held_models(world, states)
    world.phase = "aborting"
    lost = set(world.ranks)
    in_place = backend.rebuilds_in_place and world.rebuilds
    if in_place and not everyone:
        order = {"why": why, "patience": PATIENCE}
        answers = await _ask(world, "abort", order, states, PATIENCE + ANSWER)
        lost -= {rank for rank, answer in answers.items() if answer["vacant"]}
    world.phase = "rebuilding"
    facts: list[dict[str, Any]] = []
    for attempt in range(ATTEMPTS):
        try:
            if lost:
                await cluster.replace_ranks(sorted(lost))
            plan = Plan(cluster.hosts, backend, report.epoch + attempt, cluster.checked)
            facts = await form(world, plan)
            world.epoch = plan.epoch
            report.epoch = plan.epoch
            break
        except MaclusterError as error:
            if world.client.lost is not None:
                raise world.client.lost from None
            # A rank that waits for one that is lost holds the interpreter: it cannot answer.
            lost = set(world.ranks) - set(await status(world))
            if attempt == ATTEMPTS - 2 or not in_place:
                lost = set(world.ranks)
            if attempt == ATTEMPTS - 1:
                world.phase = "broken"
                raise WorldBroken(
                    f"No new world could be formed in {ATTEMPTS} attempts.",
                    why=str(error),
                    do="%cluster restart tries again with fresh processes",
                ) from error
    report.seconds = loop.time() - began
    # Also those that an earlier attempt has started, which was broken off.
    report.restarted = [rank for rank in world.ranks if facts[rank]["epoch"] == 0]
    _tell_losses(report, facts, world)
    world.phase = "ok"
    await _refill(cluster, world, report, progress)
    cluster.clear_leftovers()
    return report


def _tell_losses(report: Recovery, facts: Sequence[Mapping[str, Any]], world: World) -> None:
    kept = [rank for rank in world.ranks if rank not in report.restarted]
    for key, text in (
        ("pending", "had not been computed yet, and holds NaN: it was to come from the old world"),
        ("spoiled", "holds NaN, perhaps because it was being computed when the cell was ended"),
    ):
        holders: dict[str, list[int]] = {}
        for rank in kept:
            for name in facts[rank][key]:
                if key == "spoiled" and name in facts[rank]["pending"]:
                    continue
                holders.setdefault(name, []).append(rank)
        report.notes += [
            f"`{name}` on {describe_ranks(ranks)} {text}." for name, ranks in holders.items()
        ]
    if report.restarted and kept:
        report.notes.append(
            f"{describe_ranks(report.restarted)} started anew, with no variables; "
            f"{describe_ranks(kept)} kept {'its' if len(kept) == 1 else 'their'} variables."
        )
    elif report.restarted:
        report.notes.append("All ranks were started anew: their variables are gone.")


# -- what the new ranks get back -------------------------------------------------------------------


async def _held_models(
    world: World, states: Mapping[int, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The models that the ranks hold, by name; every rank holds its part of the same."""
    answers = await _ask(world, "models", {}, states)
    return {model["name"]: model for answer in answers.values() for model in answer["models"]}


async def _refill(
    cluster: Cluster, world: World, report: Recovery, progress: Callable[[str], None]
) -> None:
    """Load their parts of the models again on the ranks that are new, and run the setup cells."""
    fresh = report.restarted
    if not fresh:
        world.held.clear()
        return
    if world.held:
        listing = ", ".join(f"`{name}`" for name in world.held)
        models = list(world.held.values())
        progress(f"loading {listing} again on {describe_ranks(fresh)}")
        futures = world.client.request(fresh, "call", {"name": "models.reload", "models": models})
        try:
            await gather(futures, RELOAD_TIMEOUT)
        except MaclusterError as error:
            report.notes.append(f"{listing} could not be loaded again: {error.what}")
        else:
            report.notes.append(f"{listing} was loaded again on {describe_ranks(fresh)}.")
        world.held.clear()
    ran = 0
    for code in cluster.setup_cells:
        progress(f"running the setup cell `{headline(code)}` on {describe_ranks(fresh)}")
        ran += await _run_setup_cell(world, report, code)
    if ran:
        cells = "the setup cell" if ran == 1 else f"{ran} setup cells"
        report.notes.append(f"{cells} ran again on {describe_ranks(fresh)}.")
    # What ran on the new ranks alone may have drawn random numbers.
    again = {"name": "world.seed", "seed": report.epoch - 1}
    with contextlib.suppress(MaclusterError):
        await gather(world.client.request(fresh, "call", again))


async def _run_setup_cell(world: World, report: Recovery, code: str) -> bool:
    """Run a cell on the ranks that are new. True when it ran well on all of them."""
    fresh = report.restarted
    alone = set(fresh) != set(world.ranks)
    content = {
        "cell": uuid.uuid4().hex,
        "code": code,
        "execution_count": 0,
        "number": 0,
        "settled": world.cells_sent,
        "solo": f"this setup cell runs on {describe_ranks(fresh)} only" if alone else "",
    }
    futures = world.client.request(fresh, "cell", content)
    try:
        await gather(futures, SETUP_TIMEOUT)
    except MaclusterError as error:
        report.notes.append(f"the setup cell `{headline(code)}` failed: {error.what}")
        # One that did not end in time must not go on behind the next cell's back.
        await _ask(world, "interrupt", {"cell": content["cell"], "how": "now"}, fresh)
        return False
    return True
