"""Models of the Hugging Face hub: only the files that a rank needs, fetched once per host.

The weights lie in the hub's own cache. Beside it each revision of a model has a folder of ours:
links to those of its files that are on this host, and the tables of contents of the weight files
that are not. With these a model can be opened, divided and compared before any weight is fetched,
and a rank of a pipeline never fetches the others' layers.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import attrs

from ..errors import ModelError
from ..units import bytes_text
from .agree import exchange, together

# huggingface_hub is imported inside the functions: it is slow to import, and few models need it.

WEIGHTS = "model*.safetensors"  # what mlx-lm reads
# Everything else that mlx-lm or a tokenizer reads. Never *.py: no code of a checkpoint is run.
SMALL = ("*.json", "*.jsonl", "*.jinja", "*.txt", "*.model", "*.tiktoken")
TEMPLATES = "additional_chat_templates/"  # the only folder in a repository that is read
AT_ONCE = 8  # tables of contents that are fetched at the same time
TIMEOUT = 30.0  # seconds for the hub to answer
SPARE = 1 << 30  # bytes of the disk that are left free

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_MANIFEST = "hub.json"
_CONTENTS = ".contents"  # the folder of the tables of contents

Tensors = dict[str, dict[str, Any]]  # a table of contents: "dtype", "shape", "data_offsets"


@attrs.frozen
class Repo:
    """One revision of a repository: its id, the hash of the commit, and the bytes of each file."""

    id: str
    commit: str
    files: Mapping[str, int]

    @property
    def weights(self) -> list[str]:
        return sorted(name for name in self.files if fnmatchcase(name, WEIGHTS) and "/" not in name)

    @property
    def small(self) -> list[str]:
        return sorted(
            name
            for name in self.files
            if "/" not in name.removeprefix(TEMPLATES)
            and any(fnmatchcase(name, pattern) for pattern in SMALL)
        )

    @property
    def folder(self) -> Path:
        return _home(self.id) / self.commit


def repo_id(path: str | Path) -> str | None:
    """`path`, when it is no folder and reads like the id of a repository ("org/name")."""
    text = str(path)
    found = _REPO_ID.fullmatch(text) and not Path(path).expanduser().exists()
    return text if found else None


# -- all ranks together ----------------------------------------------------------------------------


def agree(name: str | None, rank: int) -> Repo | None:
    """The revision of the repository `name`, the same on every rank; None for a rank without one.

    One rank asks the hub, so that a new commit cannot come in between. A collective; raises
    ModelError on every rank.
    """
    names = exchange(name)
    mine = name is not None and names.index(name) == rank
    found = exchange(together(lambda: attrs.asdict(resolve(str(name))) if mine else None))
    return None if name is None else Repo(**found[names.index(name)])


def prepare_together(repo: Repo | None) -> None:
    """Run `prepare` on one rank of each host. A collective; raises ModelError on every rank."""
    places = exchange(_place(repo))
    first = repo is not None and places.index(_place(repo)) == _rank()
    together(lambda: prepare(repo) if first and repo is not None else None)


def fetch_together(repo: Repo | None, names: Sequence[str]) -> bool:
    """Fetch the files `names`, each once for every host. True when any rank had to.

    The ranks of a host share the work. A collective; raises ModelError on every rank.
    """
    missing = [] if repo is None else _missing(repo, names)
    asked = exchange([_place(repo), missing])
    if not any(each for _, each in asked):
        return False
    here = {rank: each for rank, (place, each) in enumerate(asked) if place == _place(repo)}

    def share() -> None:
        if repo is not None:
            require_disk(repo, {name for each in here.values() for name in each})
            fetch(repo, share_out(repo.files, here)[_rank()])

    def rest() -> None:
        if repo is not None:
            # What the others were to fetch is here, unless two hosts have the same name.
            fetch(repo, missing)
            _link(repo)

    together(share)
    together(rest)
    return True


def fetch_alone(repo: Repo, names: Sequence[str]) -> bool:
    """Fetch those of the files `names` that are not here, without the other ranks. True when any.

    Raises ModelError.
    """
    missing = _missing(repo, names)
    if missing:
        require_disk(repo, missing)
        fetch(repo, missing)
        _link(repo)
    return bool(missing)


def _missing(repo: Repo, names: Iterable[str]) -> list[str]:
    return [name for name in names if not (repo.folder / name).exists()]


def share_out(
    sizes: Mapping[str, int], wanted: Mapping[int, Sequence[str]]
) -> dict[int, list[str]]:
    """Who fetches what: every file once, and about as many bytes for each rank."""
    shares: dict[int, list[str]] = {rank: [] for rank in wanted}
    load = dict.fromkeys(wanted, 0)
    for name in sorted(
        {name for each in wanted.values() for name in each}, key=lambda n: (-sizes[n], n)
    ):
        rank = min(load, key=lambda rank: (load[rank], rank))
        shares[rank].append(name)
        load[rank] += sizes[name]
    return {rank: sorted(names) for rank, names in shares.items()}


def _rank() -> int:
    import mlx.core as mx

    return int(mx.distributed.init().rank())


def _place(repo: Repo | None) -> list[str]:
    """Ranks for which this is the same share the files of a repository."""
    from huggingface_hub import constants

    # Two hosts may have one name, but not one network address. (With this bit it is no address.)
    node = uuid.getnode()
    host = f"{socket.gethostname()} {0 if node >> 40 & 1 else node}"
    return [host, str(constants.HF_HUB_CACHE), "" if repo is None else repo.id]


# -- what there is ---------------------------------------------------------------------------------


def resolve(name: str) -> Repo:
    """The newest revision of a repository; without a network, the newest on this host.

    Raises ModelError when there is none.
    """
    from huggingface_hub import HfApi

    try:
        return _repo(HfApi().model_info(name, files_metadata=True, timeout=TIMEOUT))
    except Exception as error:
        found = _on_this_host(name) if _no_answer(error) else None
        if found is None:
            raise explain(name, error) from error
        print(
            f"The hub does not answer ({first_line(error)}): {name} is used as it is on "
            f"{socket.gethostname()}, commit {found.commit[:8]}."
        )
        return found


def at(name: str, commit: str) -> Repo:
    """A known revision of a repository; the hub is asked only where this host does not know it.

    Raises ModelError when the hub does not have it, or does not answer.
    """
    from huggingface_hub import HfApi

    found = _read_manifest(_home(name) / commit)
    if found is not None:
        return found
    try:
        api = HfApi()
        return _repo(api.model_info(name, revision=commit, files_metadata=True, timeout=TIMEOUT))
    except Exception as error:
        raise explain(name, error) from error


def of(folder: Path) -> Repo | None:
    """The revision that a folder stands for, or None for a plain folder."""
    return _read_manifest(folder)


def _repo(info: Any) -> Repo:
    return Repo(info.id, info.sha, {each.rfilename: each.size or 0 for each in info.siblings})


def _home(name: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "macluster" / name.replace("/", "--")


def _read_manifest(folder: Path) -> Repo | None:
    try:
        return Repo(**json.loads((folder / _CONTENTS / _MANIFEST).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _on_this_host(name: str) -> Repo | None:
    """The revision that was used last here, or what another program has left in the cache."""
    from huggingface_hub import try_to_load_from_cache

    found = sorted(
        _home(name).glob(f"*/{_CONTENTS}/{_MANIFEST}"), key=lambda file: file.stat().st_mtime
    )
    if found:
        return _read_manifest(found[-1].parent.parent)
    config = try_to_load_from_cache(name, "config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    files = (file for file in folder.rglob("*") if file.is_file())
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    # What the index names and the cache lacks must be missed by name, not by a strange error.
    with contextlib.suppress(OSError, ValueError, KeyError):
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        sizes = {**dict.fromkeys(index["weight_map"].values(), 0), **sizes}
    return Repo(name, folder.name, sizes)


def cached(repo: Repo, name: str) -> Path | None:
    """Where a file lies on this host, or None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo.id, name, revision=repo.commit)
    return Path(found) if isinstance(found, str) else None


# -- the folder ------------------------------------------------------------------------------------


def prepare(repo: Repo) -> Path:
    """Fetch the small files and the tables of contents of the weights, and return the folder.

    What is on this host already is not fetched again, and then the hub is not asked. Raises
    ModelError when something cannot be had.
    """
    if "config.json" not in repo.files:
        raise ModelError(
            f"{repo.id} on the hub has no config.json, so there is no model to load.",
            why="it holds a dataset, an adapter, or weights of another format such as GGUF",
            do="choose a repository with config.json and model*.safetensors",
        )
    fetch(repo, repo.small, quiet=True)
    folder = repo.folder
    try:
        (folder / _CONTENTS).mkdir(parents=True, exist_ok=True)
        _link(repo)
        lacking = [
            name
            for name in _missing(repo, repo.weights)
            if not (folder / _CONTENTS / name).exists()
        ]
        if lacking:
            _fetch_contents(repo, lacking)
        _write(folder / _CONTENTS / _MANIFEST, json.dumps(attrs.asdict(repo)).encode())
    except OSError as error:
        raise explain(repo.id, error) from error
    return folder


def _link(repo: Repo) -> None:
    """Link what the cache has, and nothing else."""
    for name in [*repo.small, *repo.weights]:
        link, target = repo.folder / name, cached(repo, name)
        if target is not None and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            # Another rank may be at it, too: a link appears whole, or not at all.
            fresh = link.with_name(f".{uuid.uuid4().hex}")
            fresh.symlink_to(target)
            fresh.replace(link)


def _write(file: Path, data: bytes) -> None:
    fresh = file.with_name(f".{uuid.uuid4().hex}")
    fresh.write_bytes(data)
    fresh.replace(file)


def _fetch_contents(repo: Repo, names: Sequence[str]) -> None:
    """Fetch the tables of contents of weight files: the first kilobytes of each."""
    from huggingface_hub import HfApi

    api = HfApi()

    def one(name: str) -> None:
        try:
            found = api.parse_safetensors_file_metadata(repo.id, name, revision=repo.commit)
        except Exception as error:
            raise explain(repo.id, error, name) from error
        tensors: dict[str, Any] = {
            key: {
                "dtype": each.dtype,
                "shape": list(each.shape),
                "data_offsets": list(each.data_offsets),
            }
            for key, each in found.tensors.items()
        }
        if found.metadata:
            tensors["__metadata__"] = found.metadata
        head = json.dumps(tensors).encode()
        data = len(head).to_bytes(8, "little") + head
        _write(repo.folder / _CONTENTS / name, data)

    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        list(pool.map(one, names))
    finally:
        pool.shutdown(cancel_futures=True)


def contents(folder: Path, name: str) -> Tensors:
    """The table of contents of a weight file, whether it is on this host or not."""
    file = folder / name
    with (file if file.exists() else folder / _CONTENTS / name).open("rb") as opened:
        found: Tensors = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    found.pop("__metadata__", None)
    return found


def needed(repo: Repo, kept: Iterable[str] | None) -> list[str]:
    """The weight files that a rank needs, which keeps the parameters `kept`; None for all.

    Layers go by their number, which is the same in the files and in the model; whatever belongs to
    no layer is on every rank.
    """
    if kept is None:
        return repo.weights
    layers = {found[1] for name in kept if (found := _LAYER.search(name))}

    def here(name: str) -> bool:
        found = _LAYER.search(name)
        return found is None or not layers or found[1] in layers

    return [name for name in repo.weights if any(map(here, contents(repo.folder, name)))]


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Path]:
    """A folder in which every weight file can be opened, also those that are not on this host.

    Reading a weight of such a file later is an error: it must never be taken for zeros.
    """
    repo = of(folder)
    lacking = [] if repo is None else _missing(repo, repo.weights)
    if repo is None or not lacking:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="macluster-") as name, contextlib.ExitStack() as stack:
        whole = Path(name)
        for file in folder.iterdir():
            if file.name[0] != "." and file.name not in lacking:
                (whole / file.name).symlink_to(file.resolve())
        for each in lacking:
            table = (folder / _CONTENTS / each).read_bytes()
            ends = [tensor["data_offsets"][1] for tensor in contents(folder, each).values()]
            stand_in = stack.enter_context((whole / each).open("wb"))
            stand_in.write(table)
            stand_in.flush()
            # MLX opens no file that is too short for its table. The hole takes no space.
            os.truncate(stand_in.fileno(), len(table) + max(ends, default=0))
            # The arrays hold the file open: from here on there is nothing to read in it.
            stack.callback(os.truncate, stand_in.fileno(), len(table))
        yield whole


# -- fetching --------------------------------------------------------------------------------------


def fetch(repo: Repo, names: Collection[str], *, quiet: bool = False) -> None:
    """Fetch files into the hub's cache and link them, one after the other.

    An interrupt ends it at once, and leaves whole files. Raises ModelError.
    """
    from huggingface_hub import hf_hub_download

    lacking = [name for name in names if cached(repo, name) is None]
    if not lacking:
        return
    total = sum(repo.files[name] for name in lacking)
    progress = None if quiet else Progress(f"rank {_rank()}, from the hub", total)
    for name in lacking:
        try:
            hf_hub_download(repo.id, name, revision=repo.commit, tqdm_class=_bar(progress))
        except Exception as error:
            raise explain(repo.id, error, name) from error
    if progress is not None:
        progress.close()


def require_disk(repo: Repo, names: Collection[str]) -> None:
    """Raise ModelError when the cache's disk has no room for these files."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    total = sum(repo.files[name] for name in names)
    if total + SPARE > free:
        raise ModelError(
            f"There is no room for {repo.id} on {socket.gethostname()}.",
            why=f"{bytes_text(total)} are to be fetched, and {folder} has {bytes_text(free)} free, "
            f"of which {bytes_text(SPARE)} are kept",
            do="free some space (`hf cache ls` shows what the cache holds, `hf cache rm` removes "
            "it), or set HF_HOME to a folder on a larger disk",
        )


def _bar(progress: Progress | None) -> Any:
    """The progress bar that huggingface_hub wants: a class, which shows nothing by itself."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            if progress is not None:
                progress.add(int(n or 0))

        # With these two there is one bar for a file that comes over Xet, not one for the bytes of
        # the network and another for those of the disk.
        def update_transfer(self, n: float | None = 1) -> None:
            pass

        def set_transfer_postfix_str(self, *args: Any, **options: Any) -> None:
            pass

    return Bar


class Progress:
    """One line on how far a rank is, shown at most once a second; `shown` is False for none.

    `label` begins the line, `total` is in bytes.
    """

    def __init__(self, label: str, total: int, *, shown: bool = True) -> None:
        self.label = label
        self.total = total
        self.done = 0
        self._shown = shown
        self._start = self._last = time.monotonic()
        self._line = ""

    def add(self, count: int) -> bool:
        """So many bytes more. True when a second has passed since it was last True."""
        self.done += count
        now = time.monotonic()
        if now - self._last < 1:
            return False
        self._last = now
        took = now - self._start
        left = took * max(self.total - self.done, 0) / max(self.done, 1)
        self._print(
            f"{bytes_text(self.done)} of {bytes_text(self.total)}, "
            f"{bytes_text(self.done / took)}/s, {left:.0f} s left"
        )
        return True

    def close(self) -> None:
        """Say what it came to, in place of the line."""
        seconds = max(time.monotonic() - self._start, 1e-3)
        speed = f"{bytes_text(self.done / seconds)}/s"
        self._print(f"{bytes_text(self.done)} in {seconds:.1f} s, {speed}", last=True)

    def _print(self, text: str, *, last: bool = False) -> None:
        if self._shown:
            before = "\r" if self._line or not last else ""
            self._line = f"{self.label}: {text}".ljust(len(self._line))
            print(f"{before}{self._line}", end="\n" if last else "", flush=True)


# -- words -----------------------------------------------------------------------------------------


def explain(repo: str, error: Exception, file: str = "") -> ModelError:
    """What went wrong with a repository, in words."""
    from huggingface_hub import errors

    if isinstance(error, ModelError):
        return error
    here = socket.gethostname()
    what = f"{file} of {repo}" if file else repo
    status = _status(error)
    if isinstance(error, errors.GatedRepoError):
        return ModelError(
            f"{repo} is gated on the hub, and {here} has no access.",
            why="its conditions were not accepted, or this host is not logged in",
            do=f"accept them at {_page(repo)}, then `hf auth login` on each host, or HF_TOKEN in "
            "the environment of the ranks",
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return ModelError(
            f"{repo} is neither a folder on {here} nor a repository on the hub that it may read.",
            why="the name is misspelt, or the repository is private and this host is not logged in",
            do=f"check the name at {_page(repo)}; for a private one `hf auth login` on each host, "
            "or HF_TOKEN in the environment of the ranks",
        )
    if isinstance(error, errors.RevisionNotFoundError | errors.RemoteEntryNotFoundError):
        return ModelError(
            f"{what} is not on the hub any more.",
            why="the repository was changed while it was read",
            do="load it again: that takes the newest revision",
        )
    if status == 429 or status >= 500:
        return ModelError(
            f"The hub could not give {what} to {here}.",
            why=f"it answered {status}: "
            + ("too many requests" if status == 429 else "an error of the hub itself"),
            do="try again in a minute; what is fetched already is kept",
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return ModelError(
            f"The disk of {here} is full, so {what} could not be fetched.",
            why="something else has filled it meanwhile",
            do="free some space, and load it again; what is fetched already is kept",
        )
    if isinstance(error, PermissionError):
        return ModelError(
            f"{what} cannot be kept on {here}.",
            why=f"no permission: {error.filename}",
            do="mend the folder's owner, or set HF_HOME to a folder that you may write to",
        )
    if _no_answer(error):
        return ModelError(
            f"{what} is not on {here}, and the hub does not answer.",
            why=f"{type(error).__name__}: {first_line(_root(error))}",
            do=f"check the network and HF_ENDPOINT, unset HF_HUB_OFFLINE; or run `hf download "
            f"{repo}` where there is a network, and copy the cache",
        )
    return ModelError(
        f"{what} could not be fetched to {here}.",
        why=f"{type(error).__name__}: {first_line(error)}",
        do=f"try `hf download {repo}` in a terminal on {here}",
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that led to it."""
    seen: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in seen:
        seen.append(each)
        yield each
        each = each.__cause__ or each.__context__


def _root(error: BaseException) -> BaseException:
    return list(_chain(error))[-1]


def _status(error: BaseException) -> int:
    """The status of the hub's answer, 0 without one."""
    for each in _chain(error):
        response = getattr(each, "response", None)
        if response is not None:
            return int(response.status_code)
    return 0


def _no_answer(error: BaseException) -> bool:
    """True where there is no network, no hub, or it is out of order."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    if status := _status(error):
        return status >= 500
    return any(
        isinstance(each, ConnectionError | TimeoutError | LocalEntryNotFoundError)
        # The HTTP library, of which huggingface_hub has had three.
        or type(each).__module__.partition(".")[0] in ("httpx", "httpx2", "requests")
        for each in _chain(error)
    )


def _page(repo: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repo}"


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
