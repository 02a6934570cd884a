"""MLX's hostfile: read it, check it, write it.

The format is exactly the one of `mlx.launch` and `mlx.distributed_config`, in both of its forms:
a list of hosts, or `{"backend": ..., "envs": [...], "hosts": [...]}`. A host is
`{"ssh": name, "ips": [address, ...], "rdma": [device or null, ...]}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from .errors import HostfileError, UsageError

RdmaEntry = None | str | tuple[str, ...]

MOST_RANKS = 10_000  # more than any world; a typing error must not fill the memory
LOCAL_NAMES = ("127.0.0.1", "localhost")
EXAMPLE = '[{"ssh": "mac-0", "ips": ["192.168.1.10"]}, {"ssh": "mac-1", "ips": ["192.168.1.11"]}]'


@attrs.frozen
class Host:
    """One machine: its ssh name, its addresses, and its RDMA device towards each rank."""

    ssh: str
    ips: tuple[str, ...] = ()
    rdma: tuple[RdmaEntry, ...] = ()

    @property
    def is_local(self) -> bool:
        """True when ranks of this host are plain child processes, without ssh."""
        return self.ssh in LOCAL_NAMES

    def to_json(self) -> dict[str, Any]:
        rdma = [list(entry) if isinstance(entry, tuple) else entry for entry in self.rdma]
        return {"ssh": self.ssh, "ips": list(self.ips), "rdma": rdma}


@attrs.frozen
class Hostfile:
    """The hosts of a world, one entry per rank, in rank order."""

    hosts: tuple[Host, ...]
    backend: str = ""
    envs: tuple[str, ...] = ()
    source: str = ""

    def __len__(self) -> int:
        return len(self.hosts)

    @property
    def is_local(self) -> bool:
        return all(host.is_local for host in self.hosts)

    def environment(self) -> dict[str, str]:
        """The variables of `envs`, which every rank gets."""
        return dict(split_assignment(entry) for entry in self.envs)

    def to_json(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "envs": list(self.envs),
            "hosts": [host.to_json() for host in self.hosts],
        }

    def save(self, path: str | Path) -> None:
        """Write the `{backend, envs, hosts}` form, which `mlx.launch --hostfile` reads."""
        Path(path).write_text(json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def local(cls, n: int) -> Hostfile:
        """`n` ranks on this machine.

        Raises UsageError when `n` is less than 1.
        """
        if n < 1:
            raise UsageError(
                f"A cluster needs at least 1 rank, not {n}.",
                why="the number of ranks counts the processes to start",
                do="%cluster start 2",
            )
        return cls(tuple(Host("127.0.0.1", ("127.0.0.1",)) for _ in range(n)))

    @classmethod
    def load(cls, path: str | Path) -> Hostfile:
        """Read a hostfile. Raises HostfileError naming the file, the entry and the remedy."""
        path = Path(path)
        try:
            path = path.expanduser()
            text = path.read_text()
        except FileNotFoundError:
            raise HostfileError(
                f"There is no hostfile at {path}.",
                why=f"the path is relative to {Path.cwd()}, or the file has another name",
                do="give the path of an existing file, or a number of ranks: %cluster start 2\n"
                "mlx.distributed_config writes a hostfile for Macs with Thunderbolt cables",
            ) from None
        except (OSError, RuntimeError, UnicodeDecodeError) as error:
            raise HostfileError(
                f"The hostfile {path} cannot be read: {error}",
                why="it is a folder, not readable by you, or not a text file",
                do=f"check it with: ls -l {path}",
            ) from None
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise HostfileError(
                f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.",
                why="a comma, a quote or a bracket is missing or left over near that place",
                do=f"correct that line; `python -m json.tool {path}` checks the file",
            ) from None
        return cls.from_json(data, source=str(path))

    @classmethod
    def from_json(cls, data: object, *, source: str = "hostfile") -> Hostfile:
        """Check parsed JSON and build a Hostfile. Raises HostfileError."""
        backend: object = ""
        envs: object = []
        entries = data
        if isinstance(data, Mapping):
            if "hosts" not in data:
                raise _malformed(source, 'the object has no "hosts" list')
            entries, backend, envs = data["hosts"], data.get("backend", ""), data.get("envs", [])
        if not isinstance(entries, list) or not entries:
            raise _malformed(source, "there is no list of hosts in it, or the list is empty")
        if not isinstance(backend, str):
            raise _malformed(source, f'"backend" is {backend!r}, not a name')
        if not isinstance(envs, list) or not all(isinstance(e, str) and "=" in e for e in envs):
            raise _malformed(source, f'"envs" must be a list of "NAME=value" texts, not {envs!r}')
        for entry in envs:
            try:
                split_assignment(entry)
            except UsageError as error:
                raise _malformed(source, f'"envs": {error.what.rstrip(".")}') from None
        hosts = tuple(_host(source, i, entry, len(entries)) for i, entry in enumerate(entries))
        return cls(hosts, backend, tuple(envs), source)


def _host(source: str, index: int, entry: object, n: int) -> Host:
    where = f"host {index}"
    if not isinstance(entry, Mapping):
        raise _malformed(source, f"{where} is {entry!r}, not an object")
    ssh = entry.get("ssh")
    if not isinstance(ssh, str) or not ssh:
        raise _malformed(source, f'{where} has no "ssh" name')
    if ssh.startswith("-"):
        raise _malformed(source, f'the "ssh" name {ssh!r} of {where} would be read as an option')
    ips = entry.get("ips", [])
    if not isinstance(ips, list) or not all(isinstance(ip, str) and ip for ip in ips):
        raise _malformed(source, f'"ips" of {where} ({ssh}) must be a list of addresses')
    rdma = entry.get("rdma", [])
    if not isinstance(rdma, list) or not all(_is_rdma_entry(device) for device in rdma):
        raise _malformed(
            source, f'"rdma" of {where} ({ssh}) must list a device name, names or null per host'
        )
    if rdma and len(rdma) != n:
        raise HostfileError(
            f'"rdma" of {where} ({ssh}) in {source} has {len(rdma)} entries for {n} hosts.',
            why="entry i of a row names the device that leads to host i, with null for the host "
            "itself,\nso every row is as long as the list of hosts",
            do="make every row as long as the list of hosts, or delete every row to use TCP (ring)",
        )
    if rdma and rdma[index] is not None:
        raise HostfileError(
            f'"rdma" of {where} ({ssh}) in {source} names {rdma[index]!r} for the host itself.',
            why="the rows were written in another order than the hosts",
            do=f"entry {index} of that row must be null",
        )
    row = tuple(tuple(device) if isinstance(device, list) else device for device in rdma)
    return Host(ssh, tuple(ips), row)


def _is_rdma_entry(device: object) -> bool:
    if isinstance(device, list):
        return bool(device) and all(isinstance(name, str) and name for name in device)
    return device is None or (isinstance(device, str) and bool(device))


def _malformed(source: str, problem: str) -> HostfileError:
    return HostfileError(
        f"{source} is not a hostfile: {problem}.",
        why="a hostfile is MLX's list of hosts, in rank order",
        do=f"the smallest one is {EXAMPLE}",
    )


def split_assignment(text: str) -> tuple[str, str]:
    """Split "NAME=value". Raises UsageError when it is no such text."""
    name, equals, value = text.partition("=")
    if "\0" in text or not equals or not name.replace("_", "a").isalnum() or name[0].isdigit():
        raise UsageError(
            f"{text!r} does not set an environment variable.",
            why="a variable is given as NAME=value, and a name has letters, digits and _ only",
            do="for example: --env MLX_METAL_FAST_SYNCH=1",
        )
    return name, value


def parse_ranks(text: str, size: int) -> list[int]:
    """Ranks of "0,2-3" or "all", sorted and without repeats. Raises UsageError."""
    if text.strip().lower() == "all":
        return list(range(size))
    ranks: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low = int(first)
            high = int(last) if dash else low
        except ValueError:
            low, high = 0, -1
        if low > high or high >= MOST_RANKS:
            raise UsageError(
                f"{text!r} does not name ranks.",
                why="ranks are given as numbers and ranges",
                do="for example: 0,2-3, or all for every rank",
            )
        ranks.update(range(low, high + 1))
    outside = sorted(rank for rank in ranks if not 0 <= rank < size)
    if outside:
        raise UsageError(
            f"The world has no {describe_ranks(outside)}, only ranks 0 to {size - 1}.",
            why="ranks are counted from 0",
            do="`%cluster status` lists the ranks",
        )
    return sorted(ranks)


def describe_ranks(ranks: Iterable[int]) -> str:
    """ "rank 2", "ranks 1-3", "ranks 0, 2-3"."""
    numbers = sorted(ranks)
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    text = ", ".join(f"{low}-{high}" if high > low else f"{low}" for low, high in spans)
    return f"rank{'s' if len(numbers) != 1 else ''} {text}"
