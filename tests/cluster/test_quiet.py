"""What the ranks tell the notebook without anything being printed."""

from __future__ import annotations

import _thread
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import macluster
from macluster.engine.errors import CellError, ClusterNotFound
from macluster.engine.models.timing import read_time
from macluster.magics.quiet import told
from macluster.magics.session import Session
from macluster.widgets.timing import TimeView
from tests.cluster.models import ENV, TIMEOUT

SUM = "mx.distributed.all_sum(mx.array(rank + 1)).item()"


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    cluster = macluster.Cluster(2, backend="ring", name=f"test-quiet-{os.getpid()}", env=ENV)
    session = Session()
    try:
        cluster.start_sync()
        session.adopt(cluster, owned=True)
        yield session
    finally:
        cluster.stop_sync()


def test_rank_0_is_told_of_as_json(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(session, f"{{'rank': rank, 'sum': {SUM}, 'text': 'a\\nb'}}")
    assert found == {"rank": 0, "sum": 3, "text": "a\nb"}
    # A library that prints something is not in the way, and nothing of it is shown.
    assert told(session, "(print('loading'), [rank, None])[1]") == [0, None]
    assert capsys.readouterr().out == ""


def test_an_error_of_a_rank_is_raised(session: Session) -> None:
    with pytest.raises(CellError, match="only 1"):
        told(session, "{0: 1}[rank] if rank == 0 else [].index('only 1')")
    assert told(session, SUM) == 3


def test_an_interrupt_ends_it_on_all_ranks(session: Session, tmp_path: Path) -> None:
    there = tmp_path / "there"

    def interrupt() -> None:
        deadline = time.monotonic() + TIMEOUT
        while not there.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        _thread.interrupt_main()

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    began = time.monotonic()
    try:
        with pytest.raises(CellError):
            told(session, f"(open({str(there)!r}, 'w').close(), __import__('time').sleep(300))[1]")
    finally:
        watcher.join()
    assert time.monotonic() - began < 60
    assert told(session, SUM) == 3


def test_the_time_of_a_token_becomes_a_picture(session: Session) -> None:
    loaded = f"macluster.load({str(macluster.toy_path())!r})"
    found = read_time(told(session, f"macluster.token_time({loaded}, tokens=8).as_json()"))
    assert [(each.rank, each.collectives > 0) for each in found.ranks] == [(0, True), (1, True)]
    assert all(each.compute[1] >= each.compute[0] > 0 for each in found.ranks)
    view = TimeView(found)
    assert "rank 1: compute " in view.scene["label"]
    assert repr(view) == repr(found)


def test_without_a_cluster_it_says_what_to_do() -> None:
    with pytest.raises(ClusterNotFound, match="%cluster start"):
        told(Session(), "1")
