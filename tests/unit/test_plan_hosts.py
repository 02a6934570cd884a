"""The hosts of a plan: what a description means, and what is said of one that means nothing."""

import psutil
import pytest

from macluster.engine.errors import UsageError
from macluster.engine.hostfile import Hostfile
from macluster.engine.plan import macs
from macluster.engine.plan.hosts import GIB, Hosts, parse


@pytest.mark.parametrize(
    ("text", "names", "link", "backend"),
    [
        ("4 x M3 Ultra 512GB, mesh", ["M3 Ultra 512GB"] * 4, "mesh", "jaccl"),
        ("2 x M4 Max 128GB, ring", ["M4 Max 128GB"] * 2, "thunderbolt", "ring"),
        (
            "M3 Ultra 512GB + M4 Max 128GB, ethernet",
            ["M3 Ultra 512GB", "M4 Max 128GB"],
            "10gbe",
            "ring",
        ),
        ("3× m4 pro 64 gb , 1 GbE", ["M4 Pro 64GB"] * 3, "1gbe", "ring"),
        ("2 * Apple M3Ultra 96GB, JACCL-ring", ["M3 Ultra 96GB"] * 2, "jaccl-ring", "jaccl-ring"),
        # Without a link: RDMA where all can, a ring of it where the ports are too few.
        ("2 x M4 Max 64GB", ["M4 Max 64GB"] * 2, "mesh", "jaccl"),
        ("5 x M4 Pro 24GB", ["M4 Pro 24GB"] * 5, "jaccl-ring", "jaccl-ring"),
        (
            "M3 Ultra 96GB + M2 Ultra 64GB",
            ["M3 Ultra 96GB", "M2 Ultra 64GB"],
            "thunderbolt",
            "ring",
        ),
    ],
)
def test_a_description_names_macs_and_a_link(
    text: str, names: list[str], link: str, backend: str
) -> None:
    hosts = parse(text)
    assert [host.name for host in hosts.hosts] == names
    assert hosts.link is macs.LINKS[link]
    assert hosts.link.backend == backend
    assert hosts.fast_synch


def test_a_mac_has_the_bandwidth_of_its_memory_size() -> None:
    """The chips with fewer GPU cores have less of both."""
    small, large = parse("M4 Max 36GB"), parse("M4 Max 128GB")
    assert small.link is None
    assert small.hosts[0].memory == 36 * GIB
    assert small.hosts[0].bandwidth == 410e9
    assert large.hosts[0].bandwidth == 546e9


def test_a_description_can_ask_for_the_slow_fence() -> None:
    hosts = parse("2 x M4 Max 128GB, mesh, no fast synch")
    assert not hosts.fast_synch
    assert hosts.link is macs.LINKS["mesh"]


def test_a_description_reads_back() -> None:
    hosts = parse("2 x M3 Ultra 512GB + M4 Max 128GB, mesh")
    assert str(hosts) == "2 x M3 Ultra 512GB + M4 Max 128GB, mesh"
    assert parse(str(hosts)) == hosts
    assert parse(hosts) is hosts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("M3 Ulta 512GB", "did you mean M3 Ultra?"),
        ("M9 Max 64GB", "M4 Max, M5"),
        ("M3 Ultra 500GB", '"M3 Ultra 512GB"'),
        ("M3 Ultra", "96GB or 256GB or 512GB"),
        ("0 x M4 16GB", '"4 x M3 Ultra 512GB, mesh"'),
        ("", '"4 x M3 Ultra 512GB, mesh"'),
        ("2 x M4 Pro 64GB, mash", "did you mean mesh?"),
        ("2 x M4 Pro 64GB, mesh, ethernet", "names two links"),
        ("2 x M2 Ultra 192GB, mesh", "M2 Ultra has Thunderbolt 4"),
        ("5 x M4 Pro 64GB, mesh", "at most 3 ports"),
        ("99 x M4 16GB", "more than a plan can be made for"),
    ],
)
def test_a_description_that_means_nothing_is_explained(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert said in str(caught.value)
    assert caught.value.why
    assert caught.value.do


def test_a_number_is_ranks_that_share_this_machine() -> None:
    hosts = parse(4)
    assert len(hosts) == 4
    assert {host.memory for host in hosts.hosts} == {psutil.virtual_memory().total // 4}
    assert {host.bandwidth for host in hosts.hosts} == {None}
    with pytest.raises(UsageError, match="not 0"):
        parse(0)


def rdma_hostfile(envs: list[str]) -> Hostfile:
    rows = [[None, "rdma_en5"], ["rdma_en5", None]]
    entries = [{"ssh": f"mac-{i}", "ips": [], "rdma": row} for i, row in enumerate(rows)]
    return Hostfile.from_json({"backend": "jaccl", "envs": envs, "hosts": entries})


def test_a_hostfile_says_the_link_and_the_fence_but_not_the_macs() -> None:
    hosts = parse(rdma_hostfile([]))
    assert [host.name for host in hosts.hosts] == ["mac-0", "mac-1"]
    assert {host.memory for host in hosts.hosts} == {None}
    assert hosts.link is macs.LINKS["mesh"]
    assert not hosts.fast_synch
    assert parse(rdma_hostfile(["MLX_METAL_FAST_SYNCH=1"])).fast_synch


def test_the_macs_of_a_hostfile_can_be_named() -> None:
    named = parse(rdma_hostfile([]), macs_are="M3 Ultra 512GB + M4 Max 128GB")
    assert [host.memory for host in named.hosts] == [512 * GIB, 128 * GIB]
    assert named.link is macs.LINKS["mesh"]
    with pytest.raises(UsageError, match="names 3 Macs"):
        parse(rdma_hostfile([]), macs_are="3 x M3 Ultra 512GB")
    with pytest.raises(UsageError, match="RDMA needs Thunderbolt 5"):
        parse(rdma_hostfile([]), macs_are="2 x M2 Ultra 192GB")
    with pytest.raises(UsageError, match="leave macs_are out"):
        parse("M4 16GB", macs_are="M4 16GB")


def test_a_local_hostfile_is_this_machine() -> None:
    assert parse(Hostfile.local(2)) == parse(2)


def test_one_more_host_takes_a_link_that_is_possible() -> None:
    alone = parse("M4 Pro 64GB")
    two = alone.with_one_more()
    assert two.link is macs.LINKS["mesh"]
    assert len(two) == 2
    with pytest.raises(UsageError, match="cannot be a mesh"):
        parse("4 x M4 Pro 64GB, mesh").with_one_more()
    assert isinstance(two, Hosts)


def test_every_figure_has_its_source() -> None:
    for chip in macs.CHIPS.values():
        assert chip.source
        assert bool(chip.prefill) == bool(chip.prefill_source)
        assert all(bandwidth > 0 for bandwidth in chip.bandwidth.values())
    for link in macs.LINKS.values():
        assert link.source
        assert link.spread[0] <= 1 <= link.spread[1]
