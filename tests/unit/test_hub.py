"""Files of a repository on the hub: which are read, who fetches them, what is said of failures."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
from huggingface_hub import constants, errors

from macluster.engine.errors import ModelError
from macluster.engine.models import hub

COMMIT = "c" * 40
FILES = {
    "config.json": 10,
    "tokenizer.json": 20,
    "merges.txt": 5,
    "chat_template.jinja": 5,
    "additional_chat_templates/tools.jinja": 5,
    "tokenizer.model": 9,
    "qwen.tiktoken": 9,
    "model-00001-of-00003.safetensors": 100,
    "model-00002-of-00003.safetensors": 100,
    "model-00003-of-00003.safetensors": 100,
    "consolidated.safetensors": 300,
    "onnx/model.safetensors": 300,
    "onnx/config.json": 3,
    "modeling_evil.py": 3,
    "pytorch_model.bin": 300,
    "README.md": 3,
}


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> hub.Repo:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return hub.Repo("org/name", COMMIT, FILES)


def test_only_what_a_model_needs_is_read(repo: hub.Repo) -> None:
    assert repo.weights == [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert repo.small == [
        "additional_chat_templates/tools.jinja",
        "chat_template.jinja",
        "config.json",
        "merges.txt",
        "qwen.tiktoken",
        "tokenizer.json",
        "tokenizer.model",
    ]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("org/name", "org/name"),
        ("mlx-community/Qwen3-0.6B-4bit", "mlx-community/Qwen3-0.6B-4bit"),
        ("name", None),
        ("/org/name", None),
        ("./org/name", None),
        ("~/name", None),
        ("org/name/file", None),
        ("there/is", None),
    ],
)
def test_a_folder_is_no_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, found: str | None
) -> None:
    (tmp_path / "there" / "is").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.repo_id(path) == found


# -- who fetches what ------------------------------------------------------------------------------


def test_every_file_is_fetched_by_one_rank_and_the_bytes_are_shared() -> None:
    sizes = {"a": 50, "b": 30, "c": 30, "d": 10}
    wanted = {0: ["a", "b", "d"], 2: ["b", "c", "d"], 3: []}
    shares = hub.share_out(sizes, wanted)
    assert shares == {0: ["a"], 2: ["b", "d"], 3: ["c"]}
    assert hub.share_out(sizes, {1: ["d", "a"]}) == {1: ["a", "d"]}


def put_contents(repo: hub.Repo, tables: dict[str, dict[str, list[int]]]) -> None:
    """Write tables of contents: for each file, the tensors with their shapes, in float32."""
    folder = repo.folder / ".contents"
    folder.mkdir(parents=True)
    for name, tensors in tables.items():
        table: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
        end = 0
        for tensor, shape in tensors.items():
            size = 4 * shape[0]
            table[tensor] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
            end += size
        data = json.dumps(table).encode()
        (folder / name).write_bytes(len(data).to_bytes(8, "little") + data)
    (folder / "hub.json").write_text(json.dumps(attrs.asdict(repo)))


def test_a_rank_needs_the_files_of_its_layers_and_of_no_layer(repo: hub.Repo) -> None:
    one, two, three = repo.weights
    put_contents(
        repo,
        {
            one: {"model.embed_tokens.weight": [4], "model.layers.0.mlp.weight": [4]},
            two: {"model.layers.1.mlp.weight": [4], "model.layers.10.mlp.weight": [4]},
            three: {"model.layers.2.mlp.weight": [4]},
        },
    )
    assert hub.needed(repo, None) == [one, two, three]
    assert hub.needed(repo, ["model.layers.2.mlp.weight", "model.norm.weight"]) == [one, three]
    assert hub.needed(repo, ["language_model.model.layers.10.mlp.down.weight"]) == [one, two]
    # A model whose layers go by another name.
    assert hub.needed(repo, ["h.0.weight"]) == [one, two, three]


def test_a_file_that_is_not_here_can_be_opened_but_not_read(repo: hub.Repo) -> None:
    one, two, three = repo.weights
    put_contents(repo, {name: {f"{name[:11]}.weight": [1000]} for name in repo.weights})
    here = repo.folder / two
    here.write_bytes(b"here")
    (repo.folder / three).symlink_to(repo.folder / "gone")
    assert hub.of(repo.folder) == repo
    with hub.opened(repo.folder) as folder:
        assert (folder / two).read_bytes() == b"here"
        for name in (one, three):
            head = (repo.folder / ".contents" / name).read_bytes()
            assert (folder / name).stat().st_size == len(head) + 4000
            assert (folder / name).read_bytes().startswith(head)
        held = (folder / one).open("rb")
    with held:
        # Whoever still has it open finds nothing behind the table.
        assert held.read() == (repo.folder / ".contents" / one).read_bytes()
    assert not folder.exists()
    assert here.read_bytes() == b"here"
    assert not (repo.folder / "gone").exists()


def test_a_folder_that_is_whole_is_opened_as_it_is(repo: hub.Repo, tmp_path: Path) -> None:
    put_contents(repo, {})
    for name in repo.weights:
        (repo.folder / name).write_bytes(b"")
    for folder in (repo.folder, tmp_path):
        with hub.opened(folder) as opened:
            assert opened == folder
    assert hub.of(tmp_path) is None


def test_a_known_commit_asks_nobody(repo: hub.Repo) -> None:
    put_contents(repo, {})
    # pytest has no hub, so this would fail.
    assert hub.at("org/name", COMMIT) == repo


def test_a_repository_without_a_configuration_is_no_model(repo: hub.Repo) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        hub.prepare(attrs.evolve(repo, files={"model.gguf": 10}))


def test_a_disk_that_is_too_small_is_named(
    repo: hub.Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "SPARE", 0)
    hub.require_disk(repo, repo.weights)
    huge = attrs.evolve(repo, files={"a": 1 << 60, "b": 1})
    with pytest.raises(ModelError, match=r"There is no room for org/name") as caught:
        hub.require_disk(huge, ["a", "b"])
    assert caught.value.why is not None
    assert f"and {tmp_path} has" in caught.value.why


# -- what a person sees ----------------------------------------------------------------------------


def test_progress_is_shown_once_a_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(hub.time, "monotonic", lambda: now)
    progress = hub.Progress("rank 1", 4_000_000)
    shown = []
    for step in range(1, 5):
        now = 100.0 + 0.6 * step
        shown.append(progress.add(1_000_000))
    progress.close()
    assert shown == [False, True, False, True]
    lines = capsys.readouterr().out.split("\r")
    assert lines[:2] == ["", "rank 1: 2.0 MB of 4.0 MB, 1.7 MB/s, 1 s left"]
    assert lines[-1].rstrip(" \n") == "rank 1: 4.0 MB in 2.4 s, 1.7 MB/s"
    assert lines[-1].endswith("\n")
    hub.Progress("rank 1", 4, shown=False).close()
    assert capsys.readouterr().out == ""


def answered(kind: type[errors.HfHubHTTPError], status: int) -> Exception:
    return kind("no", response=_response(status))


def _response(status: int) -> Any:
    return httpx.Response(status, request=httpx.Request("GET", "https://hub/org/name"))


def cause(error: Exception, root: Exception) -> Exception:
    error.__cause__ = root
    return error


@pytest.mark.parametrize(
    ("error", "what", "do"),
    [
        (answered(errors.GatedRepoError, 403), "org/name is gated", "hf auth login"),
        (answered(errors.RepositoryNotFoundError, 401), "org/name is neither", "hf auth login"),
        (answered(errors.HfHubHTTPError, 403), "org/name is neither", "HF_TOKEN"),
        (
            answered(errors.RemoteEntryNotFoundError, 404),
            "x of org/name is not on the hub",
            "newest",
        ),
        (answered(errors.RevisionNotFoundError, 404), "x of org/name is not on the hub", "newest"),
        (answered(errors.HfHubHTTPError, 429), "The hub could not give x of org/name", "minute"),
        (answered(errors.HfHubHTTPError, 502), "The hub could not give x of org/name", "minute"),
        (
            cause(errors.LocalEntryNotFoundError("?"), answered(errors.HfHubHTTPError, 503)),
            "The hub could not give x of org/name",
            "minute",
        ),
        (
            cause(errors.LocalEntryNotFoundError("?"), httpx.ConnectError("refused")),
            "and the hub does not answer",
            "HF_ENDPOINT",
        ),
        (errors.OfflineModeIsEnabled("off"), "and the hub does not answer", "HF_HUB_OFFLINE"),
        (OSError(errno.ENOSPC, "full"), "is full, so x of org/name", "free some space"),
        (PermissionError(errno.EACCES, "no", "/cache"), "cannot be kept", "HF_HOME"),
        (ValueError("odd"), "x of org/name could not be fetched", "hf download org/name"),
    ],
)
def test_what_goes_wrong_is_said_in_words(error: Exception, what: str, do: str) -> None:
    said = hub.explain("org/name", error, "x")
    assert what in said.what
    assert said.why
    assert said.do is not None
    assert do in said.do
    assert hub.explain("org/name", said) is said
