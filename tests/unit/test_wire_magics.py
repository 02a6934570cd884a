"""`%topology` and `%measure` without a cluster: their lines, and Macs that nobody has."""

from __future__ import annotations

from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

import macluster
from macluster.engine.errors import ClusterNotFound, UsageError
from macluster.magics.session import Session
from macluster.magics.wires import MEASURE, TOPOLOGY, WireMagics, measure_code, measure_view
from macluster.widgets.measure import MeasureView
from macluster.widgets.topology import TopologyView


@pytest.fixture
def wires(shell: InteractiveShell) -> WireMagics:
    return WireMagics(shell, Session())


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("", "macluster.measure()"),
        ("--quick", "macluster.measure(ops=('all_sum', 'barrier'), most=1048576)"),
        ("--quick --most 4M", "macluster.measure(ops=('all_sum', 'barrier'), most=4194304)"),
        ("--links none --ops barrier", "macluster.measure(links=False, ops=('barrier',))"),
        ("--links neighbours --ops ''", "macluster.measure(links='neighbours', ops=())"),
        ("--most 64kB --save x.json", "macluster.measure(most=64000)"),
    ],
)
def test_what_the_ranks_are_asked_to_do(line: str, code: str) -> None:
    assert measure_code(MEASURE.read(line)) == code


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--most many", "not a size like 64MiB"),
        ("--most -4", "-4 is not a size"),
        ("--ops all_reduce", "all_reduce is none of all_sum"),
        ("--links some", "invalid choice: 'some'"),
    ],
)
def test_wrong_lines_are_explained(line: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        MEASURE.read(line)


@pytest.mark.parametrize(
    ("magic", "line", "said"),
    [
        ("measure", '"4 x M3 Ultra" --quick', "simulated whole: leave --quick out"),
        ("measure", "--load x.json --ops barrier", "measures nothing"),
        ("measure", '--load x.json "4 x M3 Ultra"', "measures nothing"),
        ("measure", "--load nowhere.json", "no measurement in nowhere.json"),
        ("measure", "--against nowhere.json", "no measurement in nowhere.json"),
        ("measure", '"4 x M3 Ultra" --save /nowhere/at/all.json', "Nothing can be saved"),
        ("measure", '"4 x M3 Ultra" --save /tmp', "Nothing can be saved"),
        ("topology", '"4 x M3 Ultra" --measured x.json', "are simulated"),
        ("topology", '"4 x M9"', "no chip 'M9'"),
    ],
)
def test_what_does_not_go_together_is_refused(
    wires: WireMagics, magic: str, line: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        getattr(wires, magic)(line)


@pytest.mark.parametrize("magic", ["measure", "topology"])
def test_without_a_cluster_and_without_hosts_it_says_so(wires: WireMagics, magic: str) -> None:
    with pytest.raises(ClusterNotFound):
        getattr(wires, magic)("")


def test_simulated_macs_are_shown(wires: WireMagics) -> None:
    network = wires.topology('"4 x M3 Ultra 512GB, mesh"')
    assert isinstance(network, TopologyView)
    assert network.topology.simulated == "4 x M3 Ultra 512GB, mesh"
    assert len(network.topology.links) == 6
    shown = wires.measure('"4 x M3 Ultra 512GB, mesh"')
    assert isinstance(shown, MeasureView)
    assert shown.measurement.simulated == "4 x M3 Ultra 512GB, mesh"


def test_what_was_saved_is_shown_again_and_a_simulation_is_no_baseline(
    wires: WireMagics, tmp_path: Path
) -> None:
    path = tmp_path / "wires.json"
    wires.measure(f'"4 x M3 Ultra 512GB, mesh" --save {path}')
    again = wires.measure(f"--load {path}")
    assert again.measurement == macluster.Measurement.load(path)
    with pytest.raises(UsageError, match="no baseline"):
        wires.measure(f"--load {path} --against {path}")


def test_a_ring_and_a_mesh_are_drawn_beside_what_was_measured() -> None:
    found = macluster.simulate("4 x M3 Ultra 512GB, mesh").measure()
    data = measure_view(found, None).data
    assert "mesh is faster" in data["notes"][-1]
    names = [each["name"] for each in data["series"]]
    assert names[-2:] == ["ring, predicted", "mesh, predicted"]
    pair = macluster.simulate("2 x M3 Ultra 512GB, mesh").measure()
    assert "predicted" not in str([x["name"] for x in measure_view(pair, None).data["series"]])


def test_both_explain_themselves() -> None:
    for magic, parser in ((WireMagics.measure, MEASURE), (WireMagics.topology, TOPOLOGY)):
        for option in parser.option_names():
            assert option in str(magic.__doc__)
