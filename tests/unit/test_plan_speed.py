"""The formulas of the planner, with numbers that can be checked by hand."""

import attrs
import pytest

from macluster.engine.models.dry import DryRun, RankPart
from macluster.engine.models.shards import ShardMap, ShardRow
from macluster.engine.models.splitting import Split, Strategy
from macluster.engine.models.trial import CacheSize
from macluster.engine.plan import macs, speed
from macluster.engine.plan.hosts import Hosts, PlannedHost
from macluster.engine.plan.speed import EXPECTED, SLOW_FENCE, Calibration, Constants, Work

# Simple numbers: all of the bandwidth, a millisecond a layer without and two with experts.
PLAIN = Constants(1.0, 1e-3, 2e-3, 1.0, 0.5, "usual")
HOST = PlannedHost("M", bandwidth=1e9, prefill=1e12)
LAYERS = 4  # one of them with experts
HEAD = 1000


def rows(rank: int, held: range) -> list[ShardRow]:
    """A layer has 1000 bytes on each rank, half of them copied; the last one has experts."""
    found = [ShardRow(rank, None, "lm_head", "lm_head.weight", HEAD, "replicated", None)]
    for layer in range(LAYERS):
        modules = ("self_attn.q_proj", "mlp.switch_mlp.up_proj" if layer == 3 else "mlp.up_proj")
        for module, kind in zip(modules, ("replicated", "split"), strict=True):
            here = layer in held
            found.append(
                ShardRow(
                    rank, layer, module, f"{layer}.{module}", 500 if here else 0,
                    kind if here else "absent", None,  # type: ignore[arg-type]
                )
            )  # fmt: skip
    return found


def work(
    size: int = 2,
    strategy: Strategy = "tensor",
    link: str = "mesh",
    calibration: Calibration = speed.NOTHING,
    fast_synch: bool = True,
) -> Work:
    if strategy == "tensor":
        held = [range(LAYERS)] * size
        wire = [(("all_sum", 2000),) * (2 * LAYERS)] * size
    else:
        # Rank 0 has the last layers.
        each = LAYERS // size
        held = [range(LAYERS - (rank + 1) * each, LAYERS - rank * each) for rank in range(size)]
        wire = [
            ((("send", 2000),) if rank else ()) + (("all_gather", 2000),) for rank in range(size)
        ]
    if size == 1:
        wire = [()]
    ranks = tuple(
        RankPart(0, 1000 * len(mine) + HEAD, CacheSize(block=256), messages)
        for mine, messages in zip(held, wire, strict=True)
    )
    listed = tuple(row for rank, mine in enumerate(held) for row in rows(rank, mine))
    split = Split(strategy, "as asked for")
    shards = ShardMap(listed, "", size, 0)
    run = DryRun("test", split, shards, ranks, LAYERS, 1000, 0)
    on = Hosts((HOST,) * size, macs.LINKS[link] if size > 1 else None, "", fast_synch)
    return Work(run, on, calibration)


def test_one_rank_reads_its_weights_and_its_cache() -> None:
    terms = speed.token(work(1), 256, PLAIN)
    assert terms is not None
    assert terms.weights == pytest.approx((1000 * LAYERS + HEAD) / 1e9)
    assert terms.cache == pytest.approx(256 / 1e9)
    assert terms.layers == pytest.approx(3 * 1e-3 + 2e-3)
    assert terms.wire == 0
    assert terms.total == terms.weights + terms.cache + terms.layers


def test_tensor_waits_for_the_slowest_and_for_every_collective() -> None:
    slow = attrs.evolve(HOST, bandwidth=0.5e9)
    even = work()
    uneven = attrs.evolve(even, hosts=attrs.evolve(even.hosts, hosts=(HOST, slow)))
    terms = speed.token(uneven, 256, PLAIN)
    assert terms is not None
    assert terms.weights == pytest.approx((1000 * LAYERS + HEAD) / 0.5e9)
    assert terms.layers == pytest.approx(5e-3)
    link = macs.LINKS["mesh"]
    assert terms.wire == pytest.approx(2 * LAYERS * (link.latency + 2000 / link.bandwidth))


def test_a_token_passes_all_stages_of_a_pipeline() -> None:
    terms = speed.token(work(strategy="pipeline"), 256, PLAIN)
    assert terms is not None
    # Both ranks compute the output layer at the same time: it counts once.
    assert terms.weights == pytest.approx((1000 * LAYERS + HEAD) / 1e9)
    assert terms.cache == pytest.approx(2 * 256 / 1e9)
    assert terms.layers == pytest.approx(3 * 1e-3 + 2e-3)
    link = macs.LINKS["mesh"]
    assert terms.wire == pytest.approx(2 * (link.latency + 2000 / link.bandwidth))


@pytest.mark.parametrize(
    ("link", "size", "op", "count", "steps", "sent"),
    [
        ("mesh", 2, "all_sum", 100_000, 1, 100_000),
        ("mesh", 4, "all_sum", 20_000, 1, 20_000),
        # Larger sums are shared out, then gathered.
        ("mesh", 4, "all_sum", 100_000, 2, 50_000),
        ("mesh", 4, "all_gather", 100_000, 1, 100_000),
        ("thunderbolt", 4, "all_sum", 20_000, 6, 30_000),
        ("jaccl-ring", 4, "all_gather", 20_000, 3, 60_000),
        ("10gbe", 4, "send", 20_000, 1, 20_000),
    ],
)
def test_collectives_take_the_steps_of_their_shape(
    link: str, size: int, op: str, count: int, steps: int, sent: float
) -> None:
    on = macs.LINKS[link]
    took = speed.collective(work(size, link=link), op, count, on, PLAIN)
    assert took == pytest.approx(on.latency + (steps - 1) * on.hop + sent / on.bandwidth)


def rate(made: Work, constants: Constants = EXPECTED) -> float:
    terms = speed.token(made, 256, constants)
    assert terms is not None
    return 1 / terms.total


def test_slower_links_give_fewer_tokens() -> None:
    for size in (2, 4):
        rates = [rate(work(size, link=name)) for name in ("mesh", "thunderbolt", "10gbe", "1gbe")]
        assert rates == sorted(rates, reverse=True)
        assert len(set(rates)) == len(rates)
    assert rate(work(4, link="mesh")) > rate(work(4, link="jaccl-ring"))


def test_the_slow_fence_costs_every_collective() -> None:
    fast, slow = speed.token(work(), 1, PLAIN), speed.token(work(fast_synch=False), 1, PLAIN)
    assert fast is not None
    assert slow is not None
    assert slow.wire - fast.wire == pytest.approx(2 * LAYERS * SLOW_FENCE)


def test_the_range_holds_what_is_expected() -> None:
    for strategy in ("tensor", "pipeline"):
        made = work(strategy=strategy)
        assert rate(made, speed.WORST) < rate(made) < rate(made, speed.BEST)


def test_measured_figures_take_the_place_of_constants() -> None:
    measured = Calibration(effective_bandwidth=2e9, collective_latency=1e-3, link_bandwidth=1e6)
    terms = speed.token(work(calibration=measured), 256, PLAIN)
    assert terms is not None
    assert terms.weights == pytest.approx((1000 * LAYERS + HEAD) / 2e9)
    # What layers take is part of the measured bandwidth.
    assert terms.layers == 0
    assert terms.wire == pytest.approx(2 * LAYERS * (1e-3 + 2000 / 1e6))


def test_nothing_is_predicted_for_an_unknown_speed() -> None:
    made = work()
    blind = attrs.evolve(made, hosts=attrs.evolve(made.hosts, hosts=(HOST, PlannedHost("?"))))
    assert speed.token(blind, 1, PLAIN) is None
    assert speed.first_token(blind, 10, 100, PLAIN) is None


def test_a_prompt_is_shared_by_tensor_and_not_by_a_pipeline() -> None:
    """Half of each layer is copied, so two ranks do not halve the time."""
    parameters, prompt = 10**6, 100
    alone = 2 * parameters * prompt / (0.5 * 1e12)
    single = speed.first_token(work(1), prompt, parameters, PLAIN)
    assert single == pytest.approx(alone)
    link = macs.LINKS["mesh"]
    wire = link.latency + 2000 * prompt / link.bandwidth
    tensor = speed.first_token(work(), prompt, parameters, PLAIN)
    # 1000 bytes a layer here would be 1500 on one rank.
    assert tensor == pytest.approx(alone * 1000 / 1500 + 2 * LAYERS * wire)
    pipeline = speed.first_token(work(strategy="pipeline"), prompt, parameters, PLAIN)
    # The stage without experts reads a prompt at full speed; the final gather is not computed.
    assert pipeline == pytest.approx(alone / 2 + alone / 4 + wire)
    measured = Calibration(prefill_tokens_per_second=50)
    calibrated = speed.first_token(work(1, calibration=measured), prompt, parameters, PLAIN)
    assert calibrated == pytest.approx(prompt / 50)


def test_a_cache_grows_by_blocks() -> None:
    size = CacheSize(fixed=70, block=30)
    assert [size.bytes(n) for n in (1, 256, 257, 512, 513)] == [100, 100, 130, 130, 160]


def test_a_window_is_full_at_some_time() -> None:
    size = CacheSize(windows=((10, 128),)) + CacheSize(windows=((1, 1000),))
    assert [size.bytes(n) for n in (1, 500, 5000)] == [1280 + 256, 1280 + 755, 1280 + 1000]
