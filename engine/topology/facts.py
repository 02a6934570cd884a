"""What a host says about itself: its model, its memory, its network and what is plugged in.

Nothing here needs root, every command has a time limit, and nothing raises: what cannot be learnt
is None or left out.
"""

from __future__ import annotations

import ipaddress
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

import attrs
import psutil

InterfaceKind = Literal["thunderbolt", "ethernet", "wifi", "loopback", "unknown"]

LIMIT = 10.0  # seconds; system_profiler takes a few on a busy Mac
REAP = 1.0  # seconds that a killed command gets; one stuck in a driver never ends
# A login over ssh may lack the folders that these commands are in.
SYSTEM_FOLDERS = ("/usr/bin", "/bin", "/usr/sbin", "/sbin")
LOOPBACK_TYPE = "772"  # ARPHRD_LOOPBACK in Linux's if_arp.h

# Runs a command and returns what it prints, None when it fails or is not there.
Run = Callable[..., str | None]


@attrs.frozen
class Interface:
    """A network interface.

    `addresses` are its IPv4 addresses with their networks ("192.168.0.1/30"), `rate` is what it has
    negotiated in bits/s, and `port` what macOS calls the socket in the case ("Thunderbolt 2").
    """

    name: str
    kind: InterfaceKind = "unknown"
    addresses: tuple[str, ...] = ()
    rate: float | None = None
    port: str = ""


@attrs.frozen
class Socket:
    """A Thunderbolt socket of a Mac.

    `receptacle` is its number, `domain` the UUID of its bus, `rate` what it has negotiated in
    bits/s, None while idle. `peers` are the UUIDs of the buses of other Macs that can be reached
    from it. `used` is whether anything is plugged in, None when that is not known.
    """

    receptacle: str
    domain: str = ""
    rate: float | None = None
    peers: tuple[str, ...] = ()
    used: bool | None = None


@attrs.frozen
class Facts:
    """What a host says about itself.

    `machine` differs between hosts and between two starts of one. `memory` and `used` are in bytes,
    `held` the bytes of arrays in the process that was asked. `sockets` and `rdma` (names of
    devices) are None while they are not known, and empty when there are none.
    """

    host: str
    machine: str = ""
    model: str = ""
    chip: str = ""
    memory: int | None = None
    used: int | None = None
    held: int | None = None
    interfaces: tuple[Interface, ...] = ()
    sockets: tuple[Socket, ...] | None = None
    rdma: tuple[str, ...] | None = None

    def interface(self, name: str) -> Interface | None:
        """The interface of that name."""
        return next((each for each in self.interfaces if each.name == name), None)

    def port_of(self, found: Socket) -> str:
        """The name of the interface behind a Thunderbolt socket, "" when it has none."""
        name = f"Thunderbolt {found.receptacle}"
        return next((each.name for each in self.interfaces if each.port == name), "")

    @property
    def free(self) -> tuple[str, ...] | None:
        """The interfaces of Thunderbolt sockets with nothing plugged in, None when not known."""
        if self.sockets is None:
            return None
        ports = (self.port_of(each) for each in self.sockets if each.used is False)
        return tuple(sorted(port for port in ports if port))


# -- commands --------------------------------------------------------------------------------------


def output(*command: str, limit: float = LIMIT) -> str | None:
    """What a command prints. None when it fails, is not there, or takes longer than `limit`."""
    folders = os.pathsep.join([os.environ.get("PATH", os.defpath), *SYSTEM_FOLDERS])
    program = shutil.which(command[0], path=folders)
    if program is None:
        return None
    try:
        process = subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError:
        return None
    try:
        text, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        try:
            process.communicate(timeout=REAP)
        except subprocess.TimeoutExpired:
            # ibv_* can hang in the kernel, where no signal arrives.
            process.returncode = -1
        return None
    return text if process.returncode == 0 else None


def read(path: str | Path) -> str:
    """A small file without white space around it; "" when it cannot be read."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


# -- what macOS prints -----------------------------------------------------------------------------


def hardware_ports(text: str) -> dict[str, str]:
    """The hardware port of each device, of `networksetup -listallhardwareports`."""
    ports: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        key, _, value = line.partition(": ")
        if key == "Hardware Port":
            name = value.strip()
        elif key == "Device" and name and value.strip():
            ports[value.strip()] = name
            name = ""
    return ports


def port_kind(port: str) -> InterfaceKind:
    """What a hardware port is, by its name: "Thunderbolt 2", "Wi-Fi", "USB 10/100/1000 LAN"."""
    words = port.lower()
    if "wi-fi" in words or "airport" in words:
        return "wifi"
    # An adapter is called "Thunderbolt Ethernet": the cable behind it is Ethernet.
    if "ethernet" in words or re.search(r"\blan\b", words):
        return "ethernet"
    return "thunderbolt" if words.startswith("thunderbolt") else "unknown"


_MEDIA = re.compile(r"^\s+media:.*\((\d+)(g?)base", re.IGNORECASE)


def media_rates(text: str) -> dict[str, float]:
    """bits/s of each Ethernet interface that has a link, of `ifconfig`."""
    rates: dict[str, float] = {}
    name = ""
    for line in text.splitlines():
        if line[:1].strip():
            name = line.partition(":")[0]
        elif found := _MEDIA.match(line):
            rates[name] = float(found[1]) * (1e9 if found[2] else 1e6)
    return rates


def thunderbolt(text: str) -> tuple[str, tuple[Socket, ...]] | None:
    """The Mac's name ("Mac Studio") and its sockets, of `system_profiler SPThunderboltDataType
    -json`. None when the text is something else.
    """
    try:
        data = json.loads(text)
    except ValueError:
        return None
    buses = data.get("SPThunderboltDataType") if isinstance(data, dict) else None
    if not isinstance(buses, list):
        return None
    model, sockets = "", []
    for bus in buses:
        if not isinstance(bus, dict):
            continue
        model = model or _text(bus, "device_name_key")
        tags = [bus[key] for key in sorted(bus) if re.fullmatch(r"receptacle_\d+_tag", key)]
        tag = next((each for each in tags if isinstance(each, dict)), None)
        if tag is None:
            continue
        items = bus.get("_items")
        devices = items if isinstance(items, list) else []
        sockets.append(
            Socket(
                receptacle=_text(tag, "receptacle_id_key"),
                domain=_text(bus, "domain_uuid_key"),
                rate=_gigabits(_text(tag, "current_speed_key")) if _used(tag, devices) else None,
                peers=tuple(dict.fromkeys(_peers(devices))),
                used=_used(tag, devices),
            )
        )
    return model, tuple(sorted(sockets, key=lambda each: (len(each.receptacle), each.receptacle)))


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    return value if isinstance(value, str) else ""


def _used(tag: Mapping[str, Any], devices: Sequence[Any]) -> bool | None:
    status = _text(tag, "receptacle_status_key")
    if devices or status == "receptacle_connected":
        return True
    return False if status == "receptacle_no_devices_connected" else None


def _gigabits(text: str) -> float | None:
    # An idle socket has "Up to 120 Gb/s", which is in the language of the system.
    found = re.fullmatch(r"(\d+(?:[.,]\d+)?)\s*Gb/s", text.strip())
    return 1e9 * float(found[1].replace(",", ".")) if found else None


def _peers(devices: Sequence[Any]) -> Iterator[str]:
    """The buses of other Macs. Docks and disks have none; a Mac may be behind one of them."""
    for device in devices:
        if isinstance(device, dict):
            if domain := _text(device, "domain_uuid_key"):
                yield domain
            items = device.get("_items")
            yield from _peers(items if isinstance(items, list) else [])


def rdma_devices(text: str) -> tuple[str, ...]:
    """The devices that `ibv_devices` lists, below the line of dashes."""
    _, _, below = text.partition("---")
    lines = [line.split() for line in below.splitlines()[1:]]
    return tuple(words[0] for words in lines if words)


# -- putting it together ---------------------------------------------------------------------------


def addresses() -> dict[str, tuple[str, ...]]:
    """The IPv4 addresses of each interface, with their networks; interfaces without one, too."""
    try:
        found = psutil.net_if_addrs()
    except (OSError, psutil.Error):
        return {}
    return {
        name: tuple(
            text
            for each in entries
            if each.family == socket.AF_INET and (text := _with_network(each.address, each.netmask))
        )
        for name, entries in found.items()
    }


def _with_network(address: str, netmask: str | None) -> str:
    try:
        return ipaddress.IPv4Interface(f"{address}/{netmask or 32}").with_prefixlen
    except ValueError:
        return ""


def mac_interfaces(
    found: Mapping[str, tuple[str, ...]],
    ports: Mapping[str, str],
    rates: Mapping[str, float],
    sockets: Sequence[Socket] | None,
) -> tuple[Interface, ...]:
    """The interfaces of a Mac that have an address, or are behind a Thunderbolt socket."""
    speeds = {f"Thunderbolt {each.receptacle}": each.rate for each in sockets or ()}
    interfaces = []
    for name in sorted({*found, *ports}):
        port = ports.get(name, "")
        kind: InterfaceKind = "loopback" if name.startswith("lo") else port_kind(port)
        if found.get(name) or kind == "thunderbolt":
            rate = speeds.get(port) if kind == "thunderbolt" else rates.get(name)
            interfaces.append(Interface(name, kind, found.get(name, ()), rate, port))
    return tuple(interfaces)


def linux_interfaces(
    found: Mapping[str, tuple[str, ...]], folder: str | Path = "/sys/class/net"
) -> tuple[Interface, ...]:
    """The interfaces of a Linux host that have an address."""
    return tuple(
        Interface(name, linux_kind(Path(folder) / name), found[name], _linux_rate(folder, name))
        for name in sorted(found)
        if found[name]
    )


def linux_kind(folder: Path) -> InterfaceKind:
    """What the interface of this folder of /sys/class/net is."""
    if read(folder / "type") == LOOPBACK_TYPE:
        return "loopback"
    if (folder / "wireless").exists() or (folder / "phy80211").exists():
        return "wifi"
    # The kernel's thunderbolt-net names its interfaces so.
    if folder.name.startswith("thunderbolt"):
        return "thunderbolt"
    # Bridges and tunnels have no device.
    physical = read(folder / "type") == "1" and (folder / "device").exists()
    return "ethernet" if physical else "unknown"


def _linux_rate(folder: str | Path, name: str) -> float | None:
    megabits = read(Path(folder) / name / "speed")  # "-1", or an error, when it is not known
    return 1e6 * int(megabits) if megabits.isdigit() and int(megabits) > 0 else None


def linux_chip(cpuinfo: str) -> str:
    """The name of the CPU, of /proc/cpuinfo; "" where that has none, as on ARM."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else ""


@attrs.define
class _Known:
    """What the commands have said so far. The first three do not change."""

    machine: str = ""
    model: str = ""
    chip: str = ""
    ports: dict[str, str] = attrs.field(factory=dict)
    rates: dict[str, float] = attrs.field(factory=dict)
    sockets: tuple[Socket, ...] | None = None
    rdma: tuple[str, ...] | None = None


class Prober:
    """Asks the host that this process runs on.

    Commands may take seconds: `begin` runs them in a thread of its own, and `facts` says what is
    known so far. `run` is how a command is run, `platform` as in `sys.platform`.
    """

    def __init__(self, run: Run = output, platform: str = sys.platform) -> None:
        self._run = run
        self._mac = platform == "darwin"
        self._known = _Known()
        self._looking: Future[None] | None = None
        self._began = -math.inf  # the last look
        self._lock = threading.Lock()

    def begin(self, age: float = 0.0) -> Future[None]:
        """Look anew, as cables can be moved, unless the last look is at most `age` seconds old.

        Joins the look that is under way, if there is one.
        """
        with self._lock:
            old = time.monotonic() - self._began > age
            if self._looking is None or (self._looking.done() and old):
                self._began = time.monotonic()
                self._looking = Future()
                self._looking.set_running_or_notify_cancel()  # nobody who waits can cancel it
                threading.Thread(
                    target=self._look, args=(self._looking,), name="macluster-facts", daemon=True
                ).start()
            return self._looking

    def facts(self) -> Facts:
        """What is known. Memory, addresses and interfaces are read now, within milliseconds."""
        known, found = self._known, addresses()
        total, used = _memory()
        return Facts(
            host=socket.gethostname().removesuffix(".local"),
            machine=known.machine,
            model=known.model,
            chip=known.chip,
            memory=total,
            used=used,
            interfaces=(
                mac_interfaces(found, known.ports, known.rates, known.sockets)
                if self._mac
                else linux_interfaces(found)
            ),
            sockets=known.sockets,
            rdma=known.rdma,
        )

    def _look(self, done: Future[None]) -> None:
        known = self._known
        try:
            if self._mac:
                self._look_at_mac(known)
            else:
                known.machine = read("/proc/sys/kernel/random/boot_id")
                known.model = read("/sys/class/dmi/id/product_name")
                known.chip = known.chip or linux_chip(read("/proc/cpuinfo"))
                known.sockets = ()
            # Last: it can hang in a driver.
            known.rdma = rdma_devices(self._run("ibv_devices") or "")
        finally:
            done.set_result(None)

    def _look_at_mac(self, known: _Known) -> None:
        run = self._run
        known.machine = known.machine or (run("sysctl", "-n", "kern.bootsessionuuid") or "").strip()
        known.chip = known.chip or (run("sysctl", "-n", "machdep.cpu.brand_string") or "").strip()
        if text := run("networksetup", "-listallhardwareports"):
            known.ports = hardware_ports(text)
        if text := run("ifconfig"):
            known.rates = media_rates(text)
        found = thunderbolt(run("system_profiler", "SPThunderboltDataType", "-json") or "")
        # When it fails, what was known before may have changed.
        known.sockets = found[1] if found else None
        known.model = (found[0] if found else "") or known.model
        if not known.model:
            known.model = (run("sysctl", "-n", "hw.model") or "").strip()


def _memory() -> tuple[int | None, int | None]:
    """Bytes of memory, and how many of them are in use."""
    try:
        memory = psutil.virtual_memory()
    except (OSError, psutil.Error):
        return None, None
    return memory.total, memory.total - memory.available
