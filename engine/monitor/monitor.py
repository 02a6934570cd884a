"""One running cluster as somebody sees it who only watches.

The ranks send what they do and hold by themselves, see `rank/metrics.py`; here the newest message
of each is kept, and put into the words and numbers of `Monitor.state`.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from ..cell import RETURN, order_stop
from ..client import METRICS
from ..cluster import Cluster
from ..errors import MaclusterError, UsageError, WorldError
from ..files import ClusterFiles
from ..hostfile import describe_ranks
from ..processes import runs
from ..reports import stacks_text
from ..watch import Watch
from ..world import World

if TYPE_CHECKING:
    from ..measure.record import Measurement
    from ..models.shards import ShardMap
    from ..topology.facts import Facts
    from ..topology.topology import Topology

TERM = 15.0  # seconds for which the ranks are asked to send
RENEW = 5.0  # seconds after which they are asked again
SILENCE, PERIODS = 3.0, 4  # seconds and periods after which a rank counts as silent
FACTS_AGE = 60.0  # seconds after which the hosts look at their cables again
PATIENCE = 4.0  # seconds that they get for it
HOLD_TIMEOUT = 2.0  # seconds for the ranks to say where they can stop; they go on after as many
LOG_LINES = 200
DEATH_LINES = 8
# What ipyparallel logs whenever a rank starts.
_OWN_LINE = re.compile(r"\S+ \S+ \[(RankApp|KernelNanny)[.\d]*\]")
SAME_TIME = 0.5  # seconds: ranks that end together were ended on purpose


@attrs.define
class Heard:
    """The newest message of a rank: when it came, and since when its request runs (unix)."""

    content: dict[str, Any]
    at: float
    began: float | None


class Monitor:
    """Watches one cluster. All methods may be called from any thread.

    `on_change` is called, in any thread, when `state` may say something new.
    """

    def __init__(self, name: str, on_change: Callable[[], None] = lambda: None) -> None:
        self.name = name
        self._on_change = on_change
        self._id = uuid.uuid4().hex
        self._lock = threading.RLock()
        self._asking = threading.Lock()  # while ranks are asked what they do not send
        self._heard: dict[int, Heard] = {}
        self._period = 1.0
        self._slack = (1.0, 0.0)  # a longer period, and until when messages may still come so
        self._asked_at = 0.0
        self._opened_at = time.time()
        self._expected: dict[int, float] = {}  # since when a rank that is new should be heard
        self._purposes = 0  # of those who end ranks on purpose
        self._since = ("", time.time())  # the state of now, and when it began
        self.failure: dict[str, Any] | None = None  # {"words", "at"} of the last one
        self._departed: dict[int, float] = {}
        self._watch: Watch | None = None
        self._facts: dict[int, Facts] = {}
        self._facts_of: tuple[Any, float] = ((), 0.0)
        self._measurement: tuple[str, Measurement | None] = ("", None)
        self._shards: dict[str, tuple[Any, ShardMap]] = {}
        self.cluster = Cluster.connect(name, topic=METRICS)
        client = self.world.client
        client.on_metrics = self._on_metrics
        client.on_departure = self._on_departure

    @property
    def world(self) -> World:
        return self.cluster.running_world

    @property
    def gone(self) -> bool:
        """True when the cluster was stopped, or another one has its name."""
        return self.cluster.world is None or self.cluster.files.gone

    def close(self) -> None:
        """Let go of the cluster."""
        with contextlib.suppress(MaclusterError):
            self._ask_for_metrics(0.0)
        self.cluster.disconnect()

    # -- what comes ----------------------------------------------------------------------------

    def want(self, period: float) -> None:
        """Have the ranks send every `period` seconds for some time; to be called again."""
        now = time.monotonic()
        late = [rank for rank in self.world.alive if self._age(rank) > 2 * self._period + 1]
        due = now >= self._asked_at + (1.0 if late else RENEW)
        if period == self._period and not due:
            return
        if period < self._period:
            self._slack = (self._period, now + SILENCE + PERIODS * self._period)
        self._period, self._asked_at = period, now
        self._ask_for_metrics(TERM)

    def _ask_for_metrics(self, seconds: float) -> None:
        content = {
            "name": "metrics.watch",
            "watcher": self._id,
            "seconds": seconds,
            "period": self._period,
        }
        # Nobody waits for the answers: one that is missing shows in the rank's silence.
        self.world.client.request(self.world.alive, "ask", content, channel="control")

    def _age(self, rank: int) -> float:
        """Seconds since a rank was heard of."""
        heard = self._heard.get(rank)
        since = self._expected.get(rank, self._opened_at) if heard is None else heard.at
        return time.time() - since

    def _silent(self, rank: int) -> bool:
        longer, until = self._slack
        period = max(self._period, longer) if time.monotonic() < until else self._period
        return self._age(rank) > SILENCE + PERIODS * period

    def _on_metrics(self, content: dict[str, Any]) -> None:
        """A message of a rank (called in the client's IO thread)."""
        now, rank, world = time.time(), content["rank"], self.cluster.world
        if world is None:
            return  # closed meanwhile
        with self._lock:
            last = self._heard.get(rank)
            elapsed = content["elapsed"]
            began = None if elapsed is None else now - elapsed
            if began is not None and last is not None and last.began is not None:
                # The way here takes longer one time than another: the same request, the same time.
                same = last.content["cell"] == content["cell"]
                began = last.began if same and abs(last.began - began) < 0.5 else began
            self._heard[rank] = Heard(content, now, began)
            world.client.pids[rank] = content["pid"]
            self._departed.pop(rank, None)
            self._note_failure(rank, content["failure"], now)
        self._on_change()

    def _note_failure(self, rank: int, failure: Mapping[str, Any] | None, now: float) -> None:
        if failure is None:
            return
        at = now - failure["ago"]
        if self.failure and at <= self.failure["at"] + SAME_TIME:
            return  # an older one, or another rank's of the same cell
        place = f"\nat {failure['place']}" if failure["place"] else ""
        words = f"rank {rank}: {failure['ename']}: {failure['evalue']}{place}"
        self.failure = {"words": words, "at": at}

    @contextlib.contextmanager
    def on_purpose(self) -> Iterator[None]:
        """While ranks are ended on purpose: these are no deaths."""
        with self._lock:
            self._purposes += 1
        try:
            yield
        finally:
            with self._lock:
                self._purposes -= 1

    def _on_departure(self, rank: int) -> None:
        with self._lock:
            if not self._purposes:
                self._departed[rank] = time.time()
            self._heard.pop(rank, None)
            self._expected[rank] = time.time()
        self._on_change()

    def _note_deaths(self, now: float) -> None:
        """Put ranks that have ended into words. All at once may have been meant."""
        settled = {rank: at for rank, at in self._departed.items() if now - at > SAME_TIME}
        for rank in settled:
            del self._departed[rank]
        if not settled or self.cluster.files.gone:
            return
        words = f"{describe_ranks(sorted(settled))} died"
        if len(settled) == self.world.size:
            ranks = "all ranks" if len(settled) > 1 else "rank 0"
            words = f"{ranks} ended: restarted from elsewhere, or killed"
        log = self.cluster.files.logs.get(f"rank {min(settled)}")
        said = _last_lines(log, LOG_LINES) if log is not None else ""
        last = [line for line in said.splitlines() if line.strip() and not _OWN_LINE.match(line)]
        words += "\nits last output:\n" + "\n".join(last[-DEATH_LINES:]) if last else ""
        self.failure = {"words": words, "at": max(settled.values())}

    # -- what there is to see ------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that is known, in values of JSON. Does not ask anybody."""
        with self._lock:
            return self._state(time.time())

    def _state(self, now: float) -> dict[str, Any]:
        cluster, world = self.cluster, self.world
        self._note_deaths(now)
        dead, lost = set(world.dead), world.client.lost
        ranks = {
            str(rank): self._rank(rank, rank in dead or lost is not None, now)
            for rank in world.ranks
        }
        # One that is silent does what it did when it was heard last.
        busy = [rank for rank in world.ranks if ranks[str(rank)]["since"] is not None]
        began = [ranks[str(rank)]["since"] for rank in busy]
        serving = next((h.content["serving"] for h in self._heard.values()), "")
        state, words = self._judge(ranks, busy, serving)
        if self._since[0] != state:
            self._since = (state, now)
        return {
            "name": self.name,
            "backend": cluster.backend_name,
            "reason": str(cluster.backend_reason),
            "size": world.size,
            "state": state,
            "words": words,
            "since": self._since[1],
            "owner": self._owner(),
            "kept": bool(cluster.keep),
            "checked": bool(cluster.checked),
            "serving": serving,
            "busy": {"since": min(began), "ranks": busy} if busy else None,
            "failure": self.failure,
            "ranks": ranks,
            "models": self._models(),
            "measured": self._taken(),
        }

    def _owner(self) -> str:
        pid = self.cluster.owner_pid
        if self.cluster.keep:
            return "nobody: it runs until it is stopped"
        return f"process {pid}" + ("" if runs(pid) else ", which has ended")

    def _rank(self, rank: int, dead: bool, now: float) -> dict[str, Any]:
        host = self.cluster.hosts.hosts[rank]
        name = socket.gethostname().removesuffix(".local") if host.is_local else host.ssh
        heard = self._heard.get(rank)
        if dead:
            self._expected[rank] = now
        found: dict[str, Any] = {
            "rank": rank,
            "host": name,
            "pid": None,
            "state": "dead" if dead else "starting",
            "doing": "",
            "since": None,
            "heard": None if heard is None else heard.at,
            "memory": dict.fromkeys(
                ("total", "used", "wired", "limit", "process", "arrays", "peak", "cache")
            ),
            "cpu": None,
            "host_cpu": None,
            "gpu": None,
            "collectives": None,
            "tokens": None,
        }
        if heard is None:
            if not dead and self._silent(rank):
                found["state"] = "silent"
            return found
        content = heard.content
        found["pid"] = content["pid"]
        if dead:
            return found
        busy = content["elapsed"] is not None
        found["state"] = "busy" if busy else "idle"
        if self._silent(rank):
            found["state"] = "silent"
        found["doing"] = (content["place"] or "") if busy else ""
        found["since"] = heard.began
        for key in ("memory", "cpu", "host_cpu", "gpu", "collectives", "tokens"):
            found[key] = content[key]
        return found

    def _judge(
        self, ranks: Mapping[str, Mapping[str, Any]], busy: list[int], serving: str
    ) -> tuple[str, str]:
        """The state of the cluster, and what is to be said about it."""
        lost = self.world.client.lost
        if lost is not None:
            return "lost", lost.what
        broken = [h.content["broken"] for h in self._heard.values() if h.content["broken"]]
        epochs = {h.content["epoch"] for h in self._heard.values()}
        dead = [rank["rank"] for rank in ranks.values() if rank["state"] == "dead"]
        if broken or len(epochs) > 1:
            return "repairing", broken[0] if broken else "the ranks form a new world"
        if dead:
            reasons = [self.world.client.absence(rank).what for rank in dead]
            return "broken", f"{' '.join(reasons)} The next cell, or Restart, mends that."
        silent = [rank["rank"] for rank in ranks.values() if rank["state"] == "silent"]
        words = ""
        if silent:
            # In steps, so that it is not news every second.
            age = 5 * int(max(self._age(rank) for rank in silent) / 5)
            verb = "has" if len(silent) == 1 else "have"
            words = f"{describe_ranks(silent)} {verb} not been heard of for over {age} s"
        if serving:
            return "serving", words
        if busy:
            return "busy", words or self._waiting(busy)
        self._watch = None
        return "idle", words

    def _waiting(self, busy: list[int]) -> str:
        """Who waits for whom, "" when nobody does."""
        cells = {self._heard[rank].content["cell"] for rank in busy if rank in self._heard}
        if len(cells) != 1 or None in cells:
            self._watch = None
            return ""
        [cell] = cells
        if self._watch is None or self._watch.cell != cell:
            self._watch = Watch(busy, cell)
        self._watch.targets = sorted({*self._watch.targets, *busy})
        return self._watch.look(busy, {rank: h.content for rank, h in self._heard.items()}).text

    def _models(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for rank, heard in sorted(self._heard.items()):
            for name, part in heard.content["models"].items():
                model = found.setdefault(
                    name,
                    {
                        "name": name,
                        "source": part["source"],
                        "strategy": part["strategy"],
                        "layers": part["of"],
                        "ranks": {},
                    },
                )
                held = {"bytes": part["bytes"], "layers": part["layers"]}
                model["ranks"][str(rank)] = held
        for model in found.values():
            total = sum(part["bytes"] for part in model["ranks"].values())
            for part in model["ranks"].values():
                part["share"] = round(part["bytes"] / total, 4) if total else 0.0
        return found

    # -- what is asked for ---------------------------------------------------------------------

    def stacks(self) -> str:
        """Where every rank stands, also while a cell runs."""
        return stacks_text(self.world.stacks())

    def at_work(self) -> bool:
        """Whether ranks do something just now, as they say themselves."""
        answers = self.world.ask_all("status", timeout=HOLD_TIMEOUT)
        return len(answers) < self.world.size or any(each["busy"] for each in answers.values())

    def interrupt(self) -> str:
        """Interrupt what runs, as Ctrl-C in the notebook that began it would."""
        world = self.world
        cells: dict[str, list[int]] = {}
        for rank, where in world.ask_all("where", timeout=HOLD_TIMEOUT).items():
            if where["cell"] is not None:
                cells.setdefault(where["cell"], []).append(rank)
        said = []
        for cell, ranks in cells.items():
            asked = world.interrupt(cell, ranks, "hold", timeout=HOLD_TIMEOUT)
            asked = {rank: each for rank, each in asked.items() if each["stage"] == "running"}
            if asked:
                how, _ = order_stop(world, cell, asked, len(asked) == len(ranks))
                said.append(f"{describe_ranks(sorted(asked))}: {how}")
        if not said:
            raise UsageError(
                f"No cell runs on the cluster {self.name!r}, so there is nothing to interrupt.",
                why="it has ended meanwhile, or the ranks do something else than a cell",
                do="Abort ends whatever they do",
            )
        return "; ".join(said) + f". Ranks that do not return within {RETURN:.0f} s need Abort."

    def topology(self) -> Topology:
        """The ranks and their links. Cables are looked at when they may have changed."""
        from ..topology.build import build

        with self._asking:
            self._learn_facts()
        with self._lock:
            heard, facts = dict(self._heard), dict(self._facts)
        states = {
            rank: "busy" if each.began is not None else "ok" for rank, each in heard.items()
        } | dict.fromkeys(self.world.dead, "dead")
        for rank, each in heard.items():
            if rank in facts:
                memory = each.content["memory"]
                facts[rank] = attrs.evolve(facts[rank], used=memory["used"], held=memory["arrays"])
        world = self.world
        return build(world.cluster.hosts, world.backend, facts, self.measurement(), states)

    def _learn_facts(self) -> None:
        from ..records import structured
        from ..topology.facts import Facts

        pids = tuple(sorted(self.world.client.pids.items()))
        known, at = self._facts_of
        busy = any(heard.began is not None for heard in self._heard.values())
        if known == pids and (busy or time.monotonic() < at + FACTS_AGE):
            return
        # One that is silent would keep all pictures waiting.
        asked = [rank for rank in self.world.alive if not self._silent(rank)]
        answers = self.world.ask_all(
            "topology", {"patience": PATIENCE, "age": FACTS_AGE}, asked, PATIENCE + 1
        )
        self._facts |= {rank: structured(Facts, each["facts"]) for rank, each in answers.items()}
        self._facts_of = (pids, time.monotonic())

    def measurement(self) -> Measurement | None:
        """What `measure` found last on these ranks, None when nobody has measured."""
        from ..measure.record import Measurement

        with self._asking:
            taken = self._taken()
            if taken and taken != self._measurement[0] and not self._silent(0):
                with contextlib.suppress(WorldError):
                    facts = self.world.ask("measurement", timeout=HOLD_TIMEOUT)["measurement"]
                    self._measurement = (taken, Measurement.from_json(facts))
            found = self._measurement[1]
        return found if found is not None and found.size == self.world.size else None

    def _taken(self) -> str:
        """When rank 0 took part in a measurement last, "" when it has not."""
        heard = self._heard.get(0)
        return "" if heard is None else str(heard.content["measured"])

    def shards(self, model: str) -> ShardMap:
        """Who holds what of a loaded model. Raises UsageError when it is not there (any more)."""
        from ..models.shards import Part, shard_map
        from ..models.splitting import read_split

        parts = [heard.content["models"].get(model) for _, heard in sorted(self._heard.items())]
        known = self._shards.get(model)
        if known is not None and known[0] == parts:
            return known[1]
        answers = self.world.ask_all("models.parts", {"model": model}, timeout=PATIENCE)
        if len(answers) < self.world.size or not all(each["parts"] for each in answers.values()):
            raise UsageError(
                f"The ranks do not hold the whole of a model named {model!r}.",
                why="its name was bound to something else, or a rank has started anew without it",
                do="load it again: model = macluster.load(...)",
            )
        first = answers[0]
        drawn = shard_map(
            first["kind"],
            read_split(first["split"]),
            first["whole"],
            [[Part(*part) for part in answers[rank]["parts"]] for rank in self.world.ranks],
        )
        self._shards[model] = (parts, drawn)
        return drawn


def read_logs(files: ClusterFiles) -> list[dict[str, str]]:
    """The last lines that each process of a cluster printed outside of cells. Asks nobody."""
    return [
        {"name": name, "text": _last_lines(path, LOG_LINES)} for name, path in files.logs.items()
    ]


def _last_lines(path: Path, lines: int) -> str:
    """The end of a text file; "" when there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 400 * lines))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "".join(text.splitlines(keepends=True)[-lines:])
