"""How long a token and a prompt take: the formulas, and their constants with their sources.

A token, in seconds:

    tensor     slowest rank of (weights + cache) / (eta x bandwidth) + layers x kappa,
               + each collective's latency + bytes / bandwidth of the link
    pipeline   the same, added up over the stages: a token passes one after the other

`weights` are the bytes of the parameters that a token visits, `cache` those of the tokens so far.
A prompt takes 2 x active parameters x tokens / FLOP/s, shared by the ranks of a tensor split and
added up over the stages of a pipeline, and the collectives of each chunk of 2048 tokens.

With what `calibrate` measured on running ranks: eta x bandwidth is the speed at which a rank reads
weights, kappa the time of a layer of this architecture, and the latency that of a sum in a chain.
What a token takes outside of its layers is added then. A prompt takes that, too, for each of its
chunks, and the first token is one more.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from ..measure.cost import steps
from ..models.dry import DryRun
from ..models.shards import ShardRow
from .hosts import Hosts, PlannedHost
from .macs import Link
from .measured import Case, Measured, RankSpeed

CHUNK = 2048  # tokens that mlx-lm reads at once (prefill_step_size)
# Without MLX_METAL_FAST_SYNCH=1 a crossing between CPU and GPU takes about 180 us, not 4: mlx#4438.
SLOW_FENCE = 176e-6


@attrs.frozen
class Constants:
    """What the formulas assume of any Mac and model.

    `eta` is the part of the memory bandwidth that is reached. `dense` and `experts` are the seconds
    that a layer takes beyond reading its weights, without and with a mixture of experts. `prefill`
    and `prefill_experts` are the parts of a chip's measured speed in reading a prompt. `case` says
    which end of what was measured, of a link or by `calibrate`, belongs to them.
    """

    eta: float
    dense: float
    experts: float
    prefill: float
    prefill_experts: float
    case: Case


# eta: 0.85 of 819 GB/s on M3 Ultra; 0.71 on an H200 with MLX is the lowest that was measured.
# dense: 0.03-0.05 ms. The small Qwen3-0.6B takes 0.08 on M3 Ultra (Rapid-MLX#633) and 0.03 on
# M4 Pro (vllm-mlx#531). experts: 0.2 ms from Qwen3-235B on one M3 Ultra, 0.37 is the most.
# prefill_experts: 0.33-0.41 GLM-5 (exo#1468), 0.49 M5 Max (Mac-MLX#24), 0.75 M3 Max (mlx-lm#92).
EXPECTED = Constants(0.85, 0.04e-3, 0.20e-3, 1.0, 0.50, "usual")
WORST = Constants(0.75, 0.08e-3, 0.37e-3, 0.85, 0.33, "worst")
BEST = Constants(0.90, 0.03e-3, 0.15e-3, 1.10, 0.75, "best")


@attrs.frozen
class Calibration:
    """What was measured here, to be used in place of constants. Give any of them.

    Args:
        tokens_per_second: of this very model, on one rank that holds all of it.
        effective_bandwidth: bytes/s of weights that one rank got through in all of the time of a
            token; the time of its layers is part of that.
        collective_latency: seconds that one all_sum of a token's hidden state takes in this world.
        link_bandwidth: bytes/s of one link in one direction, for large messages.
        prefill_tokens_per_second: tokens of a prompt that one rank with the whole model reads.
    """

    tokens_per_second: float | None = None
    effective_bandwidth: float | None = None
    collective_latency: float | None = None
    link_bandwidth: float | None = None
    prefill_tokens_per_second: float | None = None


NOTHING = Calibration()
# What is left of the range when a term was measured: runs of one model differ by about as much.
MEASURED_SPREAD = 0.05


@attrs.frozen
class Terms:
    """Where the time of a token goes, in seconds. With what `calibrate` measured, `layers` holds
    what a token takes outside of its layers, too.
    """

    weights: float
    cache: float
    layers: float
    wire: float

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.layers + self.wire


def digits(value: float) -> int:
    """How many places to show: two for small numbers, none for large ones."""
    return 2 if value < 0.95 else 1 if value < 100 else 0


@attrs.frozen
class Prediction:
    """A predicted figure and its range."""

    value: float
    low: float
    high: float

    def text(self, unit: str = "") -> str:
        """ "31.0 (25.3-36.1) tok/s"."""
        places = digits(self.value)
        numbers = f"{self.value:.{places}f} ({self.low:.{places}f}-{self.high:.{places}f})"
        return f"{numbers} {unit}".strip()


@attrs.frozen
class Work:
    """All that a prediction needs: the divided model and what it runs on.

    `scale` multiplies the time of weights, cache and layers; 1 without a calibration of it.
    `measured` is what `calibrate` found.
    """

    run: DryRun
    hosts: Hosts
    calibration: Calibration = NOTHING
    scale: float = 1.0
    measured: Measured | None = None

    def speed_of(self, rank: int) -> RankSpeed | None:
        """What was measured of a rank."""
        return None if self.measured is None else self.measured.rank(rank, len(self.run.ranks))

    @property
    def knows_sums(self) -> bool:
        """Whether sums of as many ranks were measured: those of more ranks take longer."""
        found = self.measured
        return found is not None and bool(found.latency) and found.size == len(self.run.ranks)


# -- a token ---------------------------------------------------------------------------------------


def token(work: Work, tokens: int, constants: Constants) -> Terms | None:
    """The time of one token after `tokens` others. None when a host's bandwidth is not known."""
    run = work.run
    layers = _layers_of(run)
    parts = []
    for rank, part in enumerate(run.ranks):
        speed = _reading(work, rank, constants)
        if speed is None:
            return None
        overhead = _layers_seconds(work, rank, layers[rank], constants)
        measured = work.speed_of(rank)
        plain = None if measured is None else measured.plain.speed(constants.case)
        weights = part.active / speed
        if run.split.strategy == "pipeline" and len(run.ranks) > 1:
            # All ranks compute the output layer, at once, after the last stage.
            weights -= _head_bytes(run, rank) / speed
        parts.append(
            Terms(
                work.scale * weights,
                work.scale * part.cache.bytes(tokens) / (plain or speed),
                work.scale * overhead,
                0.0,
            )
        )
    wire = _wire(work, 1, constants)
    besides = _besides(work, constants)
    if run.split.strategy == "pipeline" and len(run.ranks) > 1:
        head = max(_head_seconds(work, rank, constants) for rank in range(len(parts)))
        return Terms(
            sum(part.weights for part in parts) + head,
            sum(part.cache for part in parts),
            sum(part.layers for part in parts) + besides,
            wire,
        )
    slowest = max(parts, key=lambda part: part.total)
    return attrs.evolve(slowest, layers=slowest.layers + besides, wire=wire)


def _reading(work: Work, rank: int, constants: Constants) -> float | None:
    """Bytes/s at which a rank reads weights."""
    measured = work.speed_of(rank)
    if measured is not None:
        return measured.bandwidth.speed(constants.case)
    if work.calibration.effective_bandwidth:
        return work.calibration.effective_bandwidth
    bandwidth = work.hosts.hosts[rank].bandwidth
    return None if bandwidth is None else constants.eta * bandwidth


def _layers_seconds(work: Work, rank: int, layers: tuple[int, int], constants: Constants) -> float:
    """What a rank's layers, without and with experts, take beyond reading their weights."""
    dense, experts = layers
    measured = work.speed_of(rank)
    if measured is not None:
        return (dense + experts) * measured.layer.time(constants.case)
    if work.calibration.effective_bandwidth:
        return 0.0  # part of the bandwidth
    return dense * constants.dense + experts * constants.experts


def _besides(work: Work, constants: Constants) -> float:
    """What a token takes outside of its layers, on the slowest rank, where that was measured."""
    found = [work.speed_of(rank) for rank in range(len(work.run.ranks))]
    return max(0.0 if each is None else each.token.time(constants.case) for each in found)


def _head_seconds(work: Work, rank: int, constants: Constants) -> float:
    speed = _reading(work, rank, constants) or 1.0
    return work.scale * _head_bytes(work.run, rank) / speed


def _head_bytes(run: DryRun, rank: int) -> int:
    """Bytes of the output layer on a rank: lm_head, or the embedding that serves as one."""
    outside = [row for row in run.shards.rows if row.rank == rank and row.layer is None]
    heads = [row for row in outside if row.module.endswith("lm_head")]
    tied = [row for row in outside if row.module.endswith(("embed_tokens", "word_embeddings"))]
    return sum(row.bytes for row in heads or tied)


def _layers_of(run: DryRun) -> list[tuple[int, int]]:
    """On each rank, how many layers are dense, and how many hold experts."""
    held: list[set[int]] = [set() for _ in run.ranks]
    experts: set[int] = set()
    for row in run.shards.rows:
        if row.layer is None or row.kind == "absent":
            continue
        held[row.rank].add(row.layer)
        if _is_expert(row):
            experts.add(row.layer)
    return [(len(each - experts), len(each & experts)) for each in held]


def _is_expert(row: ShardRow) -> bool:
    # What mlx-lm calls them: switch_mlp, or experts in gpt_oss and muse_spark.
    return "switch_mlp" in row.module or ".experts." in row.module


# -- the wire --------------------------------------------------------------------------------------


def _wire(work: Work, tokens: int, constants: Constants) -> float:
    """Seconds on the wire for one step of so many tokens."""
    run, link = work.run, work.hosts.link
    if len(run.ranks) == 1 or (link is None and not work.knows_sums):
        return 0.0
    if run.split.strategy == "pipeline":
        sends = [each for part in run.ranks for each in part.wire if each[0] == "send"]
        shared = [each for each in run.ranks[0].wire if each[0] != "send"]
        messages: Iterable[tuple[str, int]] = [*sends, *shared]
    else:
        messages = run.ranks[0].wire
    total = 0.0
    for op, count in messages:
        # Of a prompt only the caches are computed: not the output layer, not the final gather.
        if tokens > 1 and op == "all_gather":
            continue
        total += collective(work, op, count * tokens, link, constants)
    return total


def collective(work: Work, op: str, count: int, link: Link | None, constants: Constants) -> float:
    """Seconds of one collective into which each rank puts `count` bytes.

    The steps are those of `measure.cost.steps`: a mesh over cables of its own for each pair, a ring
    one way round. Where `calibrate` measured sums of as many ranks, every collective is taken to be
    one.
    """
    size = len(work.run.ranks)
    measured = work.measured
    if work.knows_sums and measured and measured.latency and measured.sums:
        latency, rate = measured.latency, measured.sums
        return latency.time(constants.case) + count / rate.speed(constants.case)
    if link is None:
        return 0.0
    found = steps(op, count, size, link.shape)
    bandwidth = work.calibration.link_bandwidth or link.bandwidth
    if work.calibration.collective_latency is not None:
        return work.calibration.collective_latency + found.sent / bandwidth
    best, worst = link.spread
    factor = {"best": best, "usual": 1.0, "worst": worst}[constants.case]
    fence = 0.0 if work.hosts.fast_synch else SLOW_FENCE
    return factor * (link.latency + (found.count - 1) * link.hop) + fence + found.sent / bandwidth


# -- a prompt --------------------------------------------------------------------------------------


def first_token(work: Work, prompt: int, parameters: int, constants: Constants) -> float | None:
    """Seconds to read a prompt. `parameters` are those that a token visits in the whole model.

    None when nobody measured how fast a host reads prompts.
    """
    run = work.run
    layers = _layers_of(run)
    held = [part.active - _head_bytes(run, rank) for rank, part in enumerate(run.ranks)]
    pipeline = run.split.strategy == "pipeline" and len(run.ranks) > 1
    whole = sum(held) if pipeline else _whole_active(run, held[0])
    times = []
    for rank, host in enumerate(work.hosts.hosts):
        speed = _prefill_speed(work, rank, host, parameters, layers[rank][1] > 0, constants)
        if speed is None:
            return None
        times.append(2 * parameters * prompt * held[rank] / whole / speed)
    compute = sum(times) if pipeline else max(times)
    full, rest = divmod(prompt, CHUNK)
    chunks = [CHUNK] * full + ([rest] if rest else [])
    read = compute + sum(_wire(work, tokens, constants) for tokens in chunks)
    one = token(work, prompt, constants)
    if work.measured is None or one is None:
        return read
    each = [_layers_seconds(work, rank, layers[rank], constants) for rank in range(len(run.ranks))]
    overhead = (sum(each) if pipeline else max(each)) + _besides(work, constants)
    return read + len(chunks) * overhead + one.total


def _whole_active(run: DryRun, held: int) -> float:
    """What `held`, the active bytes of rank 0 in a tensor split, would be on a single rank.

    A part that is split is as many times larger there; a part that is copied is not.
    """
    mine = [row for row in run.shards.rows if row.rank == 0 and row.layer is not None]
    there = {False: 0, True: 0}
    here = dict(there)
    for row in mine:
        here[_is_expert(row)] += row.bytes
        there[_is_expert(row)] += row.bytes * (len(run.ranks) if row.kind == "split" else 1)
    visited = (held - here[False]) / here[True] if here[True] else 0.0
    return there[False] + visited * there[True]


def _prefill_speed(
    work: Work, rank: int, host: PlannedHost, parameters: int, experts: bool, constants: Constants
) -> float | None:
    found = work.speed_of(rank)
    if found is not None:
        part = constants.prefill_experts if experts else 1.0
        return found.prefill.speed(constants.case) * part
    measured = work.calibration.prefill_tokens_per_second
    if measured is not None:
        return 2 * parameters * measured
    if host.prefill is None:
        return None
    return host.prefill * constants.prefill * (constants.prefill_experts if experts else 1.0)
