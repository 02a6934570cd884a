"""Models of the hub: who fetches what, and what goes wrong. The hub is a stand-in on loopback."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import macluster
from macluster.engine.models import tiny
from tests.cluster.faults import KILL, SUM, end_of
from tests.cluster.models import ENV, TIMEOUT, answers, fails

TOY = tiny.toy_path()
LAYERS = 4  # of the toy
TOKENS = (
    "print(json.dumps([part.token for part in macluster.stream_generate(loaded, "
    "[5, 99, 300, 42, 7], max_tokens=24)]))"
)
FIRST, SECOND = "a" * 40, "b" * 40


class Hub:
    """A hub: `repos` are {id: {commit: folder}}, the last of them is `main`; `log` is what came in.

    An entry of the log is (place, method, repository, commit, file, range); `place` is the first
    part of the endpoint's path, so that one hub can tell who asks.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Path]] = {}
        self.refused: dict[str, tuple[int, str]] = {}  # repository -> status, X-Error-Code
        self.broken: dict[str, int] = {}  # file -> status
        self.held: dict[str, threading.Event] = {}  # file -> when its second half may go
        self.asked = threading.Event()  # a held file is under way
        self.connections: list[socket.socket] = []
        self.log: list[tuple[str, str, str, str, str, str]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def setup(self) -> None:
                super().setup()
                hub.connections.append(self.connection)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def do_GET(self) -> None:
                hub.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        for event in self.held.values():
            event.set()
        self.server.shutdown()
        self.server.server_close()
        # Clients keep theirs, and would still be answered.
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        if found := re.fullmatch(r"/(\w+)/api/models/([^/]+/[^/]+)(?:/revision/(\w+))?", path):
            place, repo, commit = found.groups()
            self.log.append((place, request.command, repo, commit or "main", "", ""))
            if self.refuse(request, repo):
                return
            commit = commit or list(self.repos[repo])[-1]
            folder = self.repos[repo][commit]
            files = [
                {"rfilename": file.relative_to(folder).as_posix(), "size": file.stat().st_size}
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            ]
            facts = {"id": repo, "modelId": repo, "sha": commit, "siblings": files, "tags": []}
            self.send(request, 200, json.dumps(facts).encode(), {})
        elif found := re.fullmatch(r"/(\w+)/([^/]+/[^/]+)/resolve/(\w+)/(.+)", path):
            place, repo, commit, name = found.groups()
            span = request.headers.get("Range", "")
            self.log.append((place, request.command, repo, commit, name, span))
            if not self.refuse(request, repo):
                self.give(request, self.repos[repo][commit] / name, commit, span)
        else:
            self.send(request, 404, b"", {})

    def refuse(self, request: BaseHTTPRequestHandler, repo: str) -> bool:
        status, code = self.refused.get(repo, (0, ""))
        if repo not in self.repos and not status:
            status, code = 401, "RepoNotFound"
        if status:
            self.send(request, status, b"", {"X-Error-Code": code} if code else {})
        return bool(status)

    def give(self, request: BaseHTTPRequestHandler, file: Path, commit: str, span: str) -> None:
        if file.name in self.broken and request.command == "GET" and not span:
            self.send(request, self.broken[file.name], b"", {})
            return
        if not file.is_file():
            self.send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        headers = {
            "ETag": f'"{digest}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes",
            "X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{digest}"',
        }  # fmt: skip
        status = 200
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", span):
            first, last = int(found[1]), min(int(found[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        self.send(request, status, data, headers, self.held.get(file.name) if not span else None)

    def send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        data: bytes,
        headers: dict[str, str],
        held: threading.Event | None = None,
    ) -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "HEAD":
            return
        try:
            if held is not None:
                request.wfile.write(data[: len(data) // 2])
                request.wfile.flush()
                self.asked.set()
                held.wait()
                data = data[len(data) // 2 :]
            request.wfile.write(data)
        except OSError:
            request.close_connection = True

    def fetched(self, repo: str) -> dict[str, Counter[str]]:
        """How often each place fetched each whole file."""
        found: dict[str, Counter[str]] = {}
        for place, method, name, _, file, span in self.log:
            if name == repo and method == "GET" and file and not span:
                found.setdefault(place, Counter())[file] += 1
        return found


def weights(found: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in found.items() if name.endswith(".safetensors")}


def sharded(folder: Path, *, scale: bytes = b"") -> Path:
    """The toy with a file for each layer and one for the rest; something that must not be fetched.

    `scale` is appended to its tokenizer's configuration, so that the commit differs.
    """
    shutil.copytree(TOY, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    data = (TOY / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    table = {name: each for name, each in json.loads(data[8:end]).items() if name[0] != "_"}
    files: dict[str, list[str]] = {}
    for name in table:
        layer = re.search(r"layers\.(\d+)\.", name)
        number = int(layer[1]) + 1 if layer else LAYERS + 1
        files.setdefault(f"model-{number:05d}-of-{LAYERS + 1:05d}.safetensors", []).append(name)
    for file, names in files.items():
        parts, contents, offset = [], {}, 0
        for name in names:
            first, last = table[name]["data_offsets"]
            parts.append(data[end + first : end + last])
            span = [offset, offset + last - first]
            contents[name] = {**table[name], "data_offsets": span}
            offset = span[1]
        head = json.dumps(contents).encode()
        head = head.ljust(-(-len(head) // 8) * 8)
        (folder / file).write_bytes(len(head).to_bytes(8, "little") + head + b"".join(parts))
    index = {"metadata": {}, "weight_map": {n: file for file, ns in files.items() for n in ns}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "modeling_toy.py").write_text("raise SystemExit('never run')\n")
    (folder / "README.md").write_text("a toy\n")
    config = folder / "generation_config.json"
    config.write_text(json.dumps({"_name": scale.decode()}))
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    hub = Hub()
    folder = sharded(tmp_path_factory.mktemp("hub") / "toy")
    for name in (
        "pipeline",
        "tensor",
        "one-host",
        "moved",
        "missing",
        "slow",
        "again",
        "stays",
        "planned",
    ):
        hub.repos[f"org/{name}"] = {FIRST: folder}
    try:
        yield hub
    finally:
        hub.close()


@pytest.fixture(scope="module")
def two(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[macluster.World]:
    """Ranks that ask the same hub at different addresses: /rank0 and /rank1."""
    env = {**ENV, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    cluster = macluster.Cluster(2, backend="ring", name=f"test-hub-{os.getpid()}", env=env)
    try:
        world = cluster.start_sync()
        code = "import os, sys\nassert 'huggingface_hub' not in sys.modules\n"
        code += f"os.environ['HF_ENDPOINT'] = f'{hub.url}/rank{{rank}}'"
        world.run(code).result(TIMEOUT)
        yield world
    finally:
        cluster.stop_sync()


def homes(world: macluster.World, *folders: Path) -> None:
    """Give each rank a cache: as if it were on a host of its own, or all on one."""
    world.run(
        f"from huggingface_hub import constants\nhome = {[str(each) for each in folders]}[rank]\n"
        "constants.HF_HOME, constants.HF_HUB_CACHE = home, home + '/hub'"
    ).result(TIMEOUT)


@pytest.fixture
def apart(two: macluster.World, tmp_path: Path) -> macluster.World:
    homes(two, tmp_path / "one", tmp_path / "two")
    return two


@pytest.fixture(scope="module")
def plain(two: macluster.World) -> Any:
    """What the toy says when it is loaded from a folder."""
    return answers(two, f"loaded = macluster.load({str(TOY)!r}, 'tensor')\n{TOKENS}")[0]


def file(number: int) -> str:
    return f"model-{number:05d}-of-{LAYERS + 1:05d}.safetensors"


REST = file(LAYERS + 1)  # the embedding and the norm
ALL = [file(number) for number in range(1, LAYERS + 2)]


# -- only what is needed ---------------------------------------------------------------------------


def test_a_pipeline_fetches_the_files_of_its_own_layers(
    apart: macluster.World, hub: Hub, plain: Any
) -> None:
    load = "loaded = macluster.load('org/pipeline', split=[3, 1])"
    cell = apart.run(load)
    cell.result(TIMEOUT)
    assert answers(apart, TOKENS) == [plain] * 2
    found = hub.fetched("org/pipeline")
    # Rank 0 has the last layers.
    assert weights(found["rank0"]) == {file(2): 1, file(3): 1, file(4): 1, REST: 1}
    assert weights(found["rank1"]) == {file(1): 1, REST: 1}
    for each in found.values():
        assert "config.json" in each
        assert "tokenizer.json" in each
        assert set(each.values()) == {1}
        assert not any(name.endswith((".py", ".md")) for name in each)
    # Of the other files the tables of contents came, and rank 0 alone asked for the revision.
    revisions = [each for each in hub.log if each[2] == "org/pipeline" and not each[4]]
    assert [(each[0], each[3]) for each in revisions] == [("rank0", "main")]
    assert {each[3] for each in hub.log if each[2] == "org/pipeline" and each[4]} == {FIRST}
    for rank in (0, 1):
        lines = cell.runs[rank].text("stdout").splitlines()
        assert re.fullmatch(rf"rank {rank}, from the hub: [\d.]+ kB in [\d.]+ s, .+/s", lines[0])
    # All of the map is known; what is not here is never taken for zeros.
    shards = "print(json.dumps(macluster.shards(loaded).whole_bytes))"
    assert answers(apart, shards)[0] > 0
    code = (
        "from macluster.engine.models.folder import arrays, lazy_model\n"
        "whole, count = arrays(lazy_model(loaded.path)[0]), 0\n"
        "for value in whole.values():\n"
        "    try:\n        mx.eval(value)\n"
        "    except RuntimeError as error:\n"
        "        count += 'Unable to read' in str(error)\n"
        "print(json.dumps([count, len(whole)]))"
    )
    (one, total), (three, _) = answers(apart, code)
    assert 0 < one == three / 3 < total
    # Whoever wants all of it gets the rest, and no rank is asked to divide without a hub.
    rest = (
        "from macluster.engine.models import dry\n"
        "print(json.dumps([macluster.check(loaded, lengths=(5,)).ok, "
        "dry.dry_run(loaded.path, 2, 'tensor').parameters == loaded.parameters]))"
    )
    assert answers(apart, rest) == [[True, True]] * 2
    assert weights(hub.fetched("org/pipeline")["rank0"]) == dict.fromkeys(ALL, 1)
    assert len(weights(hub.fetched("org/pipeline")["rank1"])) == 2


def test_a_plan_needs_no_weights(hub: Hub, tmp_path: Path) -> None:
    code = (
        "import macluster, sys\n"
        "plans = [macluster.plan(each, 2).to_json()['options'] for each in sys.argv[1:]]\n"
        "assert plans[0] == plans[1], plans\n"
        "macluster.plan('org/nothing', 2)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "org/planned", str(TOY)],
        env={
            **os.environ, **ENV,
            "HF_ENDPOINT": f"{hub.url}/plan", "HF_HOME": str(tmp_path),
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )  # fmt: skip
    # Nothing is wrong but the last line.
    assert "ModelError: org/nothing is neither a folder" in done.stderr
    assert "the catalogue has DeepSeek" in done.stderr
    found = hub.fetched("org/planned")["plan"]
    assert "config.json" in found
    assert weights(found) == {}


def test_what_is_fetched_is_not_asked_for_again(
    apart: macluster.World, hub: Hub, plain: Any
) -> None:
    code = f"loaded = macluster.load('org/again', 'pipeline')\n{TOKENS}"
    assert answers(apart, code) == [plain] * 2
    before = len(hub.log)
    assert answers(apart, code) == [plain] * 2
    assert [each[:4] for each in hub.log[before:]] == [("rank0", "GET", "org/again", "main")]
    # The other way round needs the rest, and no more.
    before = len(hub.log)
    assert answers(apart, code.replace("pipeline", "tensor")) == [plain] * 2
    late = Counter(each[4] for each in hub.log[before:] if each[1] == "GET" and each[4])
    assert late == {file(number): 1 for number in range(1, LAYERS + 1)}


def test_every_host_fetches_all_of_it_for_tensor(
    apart: macluster.World, hub: Hub, plain: Any
) -> None:
    code = f"loaded = macluster.load('org/tensor', 'tensor')\n{TOKENS}"
    assert answers(apart, code) == [plain] * 2
    found = hub.fetched("org/tensor")
    assert weights(found["rank0"]) == weights(found["rank1"]) == dict.fromkeys(ALL, 1)


def test_the_ranks_of_a_host_fetch_each_file_once(
    two: macluster.World, hub: Hub, plain: Any, tmp_path: Path
) -> None:
    homes(two, tmp_path, tmp_path)
    code = f"loaded = macluster.load('org/one-host', 'tensor')\n{TOKENS}"
    assert answers(two, code) == [plain] * 2
    found = hub.fetched("org/one-host")
    assert set((found["rank0"] + found["rank1"]).values()) == {1}
    assert sorted([*weights(found["rank0"]), *weights(found["rank1"])]) == ALL
    # They share the work.
    assert weights(found["rank0"])
    assert weights(found["rank1"])


def test_all_ranks_take_the_commit_that_rank_0_was_told(
    apart: macluster.World, hub: Hub, tmp_path: Path
) -> None:
    load = "loaded = macluster.load('org/moved', 'pipeline')\nprint(json.dumps(loaded.commit))"
    assert answers(apart, load) == [FIRST] * 2
    hub.repos["org/moved"][SECOND] = sharded(tmp_path / "newer", scale=b"newer")
    # A rank that comes later takes what the others have, whatever is the newest.
    code = (
        "from macluster.engine.models.load import load_alone\n"
        "alone = load_alone('org/moved', loaded.split, None, commit=loaded.commit)\n"
        "print(json.dumps([alone.commit, str(alone.path) == str(loaded.path)]))"
    )
    assert answers(apart, code) == [[FIRST, True]] * 2
    assert answers(apart, load) == [SECOND] * 2


# -- without a hub ---------------------------------------------------------------------------------


def test_a_rank_that_is_started_anew_needs_no_network(plain: Any, tmp_path: Path) -> None:
    hub = Hub()
    hub.repos["org/stays"] = {FIRST: sharded(tmp_path / "toy")}
    env = {**ENV, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    env["HF_ENDPOINT"] = f"{hub.url}/all"
    cluster = macluster.Cluster(2, backend="ring", name=f"test-hub-stays-{os.getpid()}", env=env)
    try:
        world = cluster.start_sync()
        load = f"loaded = macluster.load('org/stays', split=[3, 1], draft='org/stays')\n{TOKENS}"
        assert answers(world, load) == [plain] * 2
        hub.close()
        cell = world.run(f"import os, signal\nif rank == 1:\n    {KILL.code}\n{SUM}")
        end_of(cell)
        look = f"assert loaded.commit == loaded.draft.commit == {FIRST!r}\n"
        assert answers(world, look + TOKENS) == [plain] * 2
        # Loading by name goes on with what is here, and says so.
        again = world.run(f"{load.replace('3, 1', '2, 2')}\nhome = str(loaded.path)")
        said = again.result(TIMEOUT).runs[0].text("stdout")
        assert said.startswith("The hub does not answer (")
        assert f"commit {FIRST[:8]}" in said
        # What is not here is named.
        link = next((tmp_path / "home" / "hub").glob(f"**/snapshots/*/{file(2)}"))
        link.resolve().unlink()
        link.unlink()
        offline = "from huggingface_hub import constants\nconstants.HF_HUB_OFFLINE = True\n"
        text = fails(world, offline + load)
        assert f"{file(2)} of org/stays is not on " in text
        assert "the hub does not answer" in text
        assert "HF_HUB_OFFLINE" in text
        text = fails(world, "macluster.load('org/other')")
        assert "org/other is not on " in text
    finally:
        cluster.stop_sync()
        hub.close()


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "what", "do"),
    [
        (401, "RepoNotFound", "nor a repository on the hub that it may read", "hf auth login"),
        (404, "RepoNotFound", "nor a repository on the hub that it may read", "hf auth login"),
        (403, "GatedRepo", "is gated on the hub", "accept them at"),
        (503, "", "The hub could not give org/refused", "try again"),
        (429, "", "The hub could not give org/refused", "try again"),
    ],
)
def test_a_repository_that_is_refused_is_an_error_in_words(
    apart: macluster.World, hub: Hub, status: int, code: str, what: str, do: str
) -> None:
    hub.refused["org/refused"] = (status, code)
    text = fails(apart, "macluster.load('org/refused')")
    assert what in text
    assert do in text


def test_a_file_that_disappears_is_an_error_on_all_ranks(apart: macluster.World, hub: Hub) -> None:
    try:
        hub.broken[file(1)] = 404
        text = fails(apart, "macluster.load('org/missing', 'pipeline')")
        assert f"Rank 1: {file(1)} of org/missing" in text
        hub.broken[file(1)] = 500
        text = fails(apart, "macluster.load('org/missing', 'pipeline')")
        assert f"Rank 1: The hub could not give {file(1)} of org/missing" in text
        assert "it answered 500" in text
    finally:
        del hub.broken[file(1)]
    assert answers(apart, "print(json.dumps(macluster.load('org/missing', 'pipeline').rank))")


def test_a_full_disk_is_seen_before_anything_is_fetched(apart: macluster.World, hub: Hub) -> None:
    code = """
from macluster.engine.models import hub as hubs
spare, hubs.SPARE = hubs.SPARE, 1 << 62 if rank else 0
try:
    macluster.load('org/full', 'pipeline')
finally:
    hubs.SPARE = spare
"""
    hub.repos["org/full"] = hub.repos["org/pipeline"]
    text = fails(apart, code)
    assert "Rank 1: There is no room for org/full" in text
    assert "hf cache rm" in text
    assert "rank1" not in {p for p, each in hub.fetched("org/full").items() if weights(each)}


def test_weights_that_are_not_here_are_never_read_as_zeros(
    apart: macluster.World, hub: Hub
) -> None:
    code = """
from macluster.engine.models import hub as hubs
needed, hubs.needed = hubs.needed, lambda repo, kept: needed(repo, kept)[rank:]
try:
    macluster.load('org/pipeline', 'pipeline')
finally:
    hubs.needed = needed
"""
    text = fails(apart, code)
    assert text.startswith("Rank 1: The model in ")
    assert "Unable to read from file" in text


def test_an_interrupt_while_files_come_leaves_the_world_whole(
    apart: macluster.World, hub: Hub, plain: Any
) -> None:
    hub.held[file(1)] = threading.Event()
    cell = apart.run("loaded = macluster.load('org/slow', 'pipeline')")
    assert hub.asked.wait(TIMEOUT)
    cell.cancel()
    end_of(cell)
    hub.held.pop(file(1)).set()
    assert (
        answers(apart, f"loaded = macluster.load('org/slow', 'pipeline')\n{TOKENS}") == [plain] * 2
    )
