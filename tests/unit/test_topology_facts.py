"""What a host says about itself: recorded shapes of macOS and Linux, and commands that fail."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import attrs
import psutil
import pytest

from macluster.engine.records import structured
from macluster.engine.topology.facts import (
    Facts,
    Interface,
    Prober,
    Socket,
    hardware_ports,
    linux_chip,
    linux_interfaces,
    mac_interfaces,
    media_rates,
    output,
    port_kind,
    rdma_devices,
    thunderbolt,
)

PORTS = """
Hardware Port: Ethernet
Device: en0
Ethernet Address: 02:00:00:00:00:01

Hardware Port: Wi-Fi
Device: en1
Ethernet Address: 02:00:00:00:00:02

Hardware Port: Thunderbolt 3
Device: en2
Ethernet Address: 02:00:00:00:00:03

Hardware Port: Thunderbolt 1
Device: en5
Ethernet Address: 02:00:00:00:00:05

Hardware Port: Thunderbolt 2
Device: en6
Ethernet Address: 02:00:00:00:00:06

Hardware Port: Thunderbolt Bridge
Device: bridge0
Ethernet Address: 02:00:00:00:00:07

VLAN Configurations
===================
"""

IFCONFIG = """lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 16384
\tinet 127.0.0.1 netmask 0xff000000
en0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tinet 192.168.1.10 netmask 0xffffff00 broadcast 192.168.1.255
\tmedia: autoselect (10Gbase-T <full-duplex,flow-control>)
\tstatus: active
en1: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tmedia: autoselect
\tstatus: active
en5: flags=8963<UP,BROADCAST,SMART,RUNNING,PROMISC,SIMPLEX,MULTICAST> mtu 1500
\tmedia: autoselect <full-duplex>
\tstatus: active
en7: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tmedia: autoselect (2500Base-T <full-duplex>)
en8: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tmedia: autoselect (1000baseT <full-duplex>)
en9: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tmedia: autoselect (none)
"""

IBV = (
    "    device          \t   node GUID\n"
    "    ------          \t----------------\n"
    "    rdma_en2        \t8096a9d9edbaac05\n"
    "    rdma_en5        \t8096a9d9edbaac06\n"
)


def bus(number: int, *items: dict[str, Any], speed: str = "Up to 120 Gb/s") -> dict[str, Any]:
    """A bus as system_profiler describes it."""
    return {
        "_name": f"thunderboltusb4_bus_{number - 1}",
        "device_name_key": "Mac Studio",
        "domain_uuid_key": f"OWN-{number}",
        "receptacle_1_tag": {
            "current_speed_key": speed,
            "link_status_key": "0x2" if items else "0x100",
            "receptacle_id_key": str(number),
            "receptacle_status_key": (
                "receptacle_connected" if items else "receptacle_no_devices_connected"
            ),
        },
        "route_string_key": "0",
        "switch_uid_key": "0x05AC000000000001",
        "vendor_name_key": "Apple Inc.",
        **({"_items": list(items)} if items else {}),
    }


def peer(domain: str) -> dict[str, Any]:
    return {
        "_name": "Mac Studio",
        "device_id_key": "0xA",
        "device_name_key": "Mac15,14",
        "domain_uuid_key": domain,
        "services_title": [{"_name": "service_ip", "protocol_id_key": 1}],
    }


def dock(*items: dict[str, Any]) -> dict[str, Any]:
    return {
        "_name": "Dock",
        "device_name_key": "Dock",
        "mode_key": "usb4",
        "route_string_key": "1",
        "switch_uid_key": "0x0000000000000009",
        "receptacle_2_tag": {"current_speed_key": "Up to 40 Gb/s"},
        **({"_items": list(items)} if items else {}),
    }


def profile(*buses: dict[str, Any]) -> str:
    return json.dumps({"SPThunderboltDataType": list(buses)})


# -- parsing ---------------------------------------------------------------------------------------


def test_hardware_ports_are_read_and_their_order_means_nothing() -> None:
    assert hardware_ports(PORTS) == {
        "en0": "Ethernet",
        "en1": "Wi-Fi",
        "en2": "Thunderbolt 3",
        "en5": "Thunderbolt 1",
        "en6": "Thunderbolt 2",
        "bridge0": "Thunderbolt Bridge",
    }
    assert hardware_ports("") == {}
    assert hardware_ports("Device: en0\nHardware Port:\n") == {}


@pytest.mark.parametrize(
    ("port", "kind"),
    [
        ("Thunderbolt 2", "thunderbolt"),
        ("Thunderbolt Bridge", "thunderbolt"),
        ("Thunderbolt Ethernet Slot 1", "ethernet"),
        ("Wi-Fi", "wifi"),
        ("AirPort", "wifi"),
        ("Ethernet Adapter (en4)", "ethernet"),
        ("10 Gb Ethernet", "ethernet"),
        ("USB 10/100/1000 LAN", "ethernet"),
        ("iPhone USB", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_hardware_port_tells_what_it_is(port: str, kind: str) -> None:
    assert port_kind(port) == kind


def test_ethernet_rates_come_from_the_media_line() -> None:
    assert media_rates(IFCONFIG) == {"en0": 10e9, "en7": 2.5e9, "en8": 1e9}
    assert media_rates("") == {}


def test_sockets_know_their_peers_and_docks_are_none() -> None:
    text = profile(
        bus(4, dock()),
        bus(3, dock(peer("THEIRS-9")), speed="40 Gb/s"),
        bus(2, peer("THEIRS-1"), speed="80 Gb/s"),
        bus(1),
    )
    assert thunderbolt(text) == (
        "Mac Studio",
        (
            Socket("1", "OWN-1", None, (), used=False),
            Socket("2", "OWN-2", 80e9, ("THEIRS-1",), used=True),
            Socket("3", "OWN-3", 40e9, ("THEIRS-9",), used=True),
            Socket("4", "OWN-4", None, (), used=True),
        ),
    )


def test_an_idle_socket_has_no_rate_in_any_language() -> None:
    found = thunderbolt(
        profile(bus(1, peer("X"), speed="Bis zu 120 Gb/s"), bus(2, speed="80 Gb/s"))
    )
    assert found is not None
    assert [each.rate for each in found[1]] == [None, None]


@pytest.mark.parametrize(
    "text",
    ["", "no JSON", "[]", "{}", '{"SPThunderboltDataType": 3}', "null", '"x"', "\x00{"],
)
def test_what_is_no_profile_is_not_known(text: str) -> None:
    assert thunderbolt(text) is None


def test_every_key_may_be_missing() -> None:
    whole = bus(1, peer("X"), speed="80 Gb/s")
    for key in list(whole):
        found = thunderbolt(profile({name: each for name, each in whole.items() if name != key}))
        assert found is not None
        assert len(found[1]) == (0 if key == "receptacle_1_tag" else 1)
    for key in list(whole["receptacle_1_tag"]):
        tag = {name: each for name, each in whole["receptacle_1_tag"].items() if name != key}
        found = thunderbolt(profile({**whole, "receptacle_1_tag": tag}))
        assert found is not None
        assert found[1][0].peers == ("X",)
    odd = [None, 3, {}, {"receptacle_1_tag": 5}, {"receptacle_1_tag": {}, "_items": "x"}]
    assert thunderbolt(json.dumps({"SPThunderboltDataType": odd})) == ("", (Socket(""),))


def test_rdma_devices_stand_below_the_dashes() -> None:
    assert rdma_devices(IBV) == ("rdma_en2", "rdma_en5")
    assert rdma_devices("".join(IBV.splitlines(keepends=True)[:2])) == ()
    assert rdma_devices("") == ()


def test_an_interface_gets_the_rate_of_its_socket() -> None:
    found = thunderbolt(profile(bus(2, peer("X"), speed="80 Gb/s"), bus(1), bus(3)))
    assert found is not None
    addresses = {"lo0": ("127.0.0.1/8",), "en0": ("192.168.1.10/24",), "en6": ("192.168.0.1/30",)}
    addresses |= {"en9": (), "utun3": ("10.8.0.2/32",)}
    interfaces = mac_interfaces(addresses, hardware_ports(PORTS), media_rates(IFCONFIG), found[1])
    by_name = {each.name: each for each in interfaces}
    # What has neither an address nor a Thunderbolt socket is of no use.
    assert sorted(by_name) == ["bridge0", "en0", "en2", "en5", "en6", "lo0", "utun3"]
    assert by_name["en6"] == Interface(
        "en6", "thunderbolt", ("192.168.0.1/30",), 80e9, "Thunderbolt 2"
    )
    assert by_name["en0"] == Interface("en0", "ethernet", ("192.168.1.10/24",), 10e9, "Ethernet")
    assert by_name["en5"].rate is None
    assert by_name["lo0"].kind == "loopback"
    assert by_name["utun3"].kind == "unknown"
    facts = Facts("studio", interfaces=interfaces, sockets=found[1])
    assert facts.free == ("en2", "en5")
    assert facts.port_of(found[1][1]) == "en6"
    assert attrs.evolve(facts, sockets=None).free is None
    assert structured(Facts, json.loads(json.dumps(attrs.asdict(facts)))) == facts


def interface(folder: Path, name: str, kind: str = "1", **files: str) -> None:
    """A folder of /sys/class/net."""
    (folder / name).mkdir()
    (folder / name / "type").write_text(f"{kind}\n")
    for file, text in files.items():
        if text:
            (folder / name / file).write_text(f"{text}\n")
        else:
            (folder / name / file).mkdir()


def test_linux_says_what_an_interface_is_in_its_folder(tmp_path: Path) -> None:
    interface(tmp_path, "lo", "772")
    interface(tmp_path, "eth0", device="", speed="10000")
    interface(tmp_path, "eth1", device="", speed="-1")
    interface(tmp_path, "wlan0", device="", wireless="")
    interface(tmp_path, "wlan1", device="", phy80211="", speed="broken")
    interface(tmp_path, "thunderbolt0", device="", speed="20000")
    interface(tmp_path, "docker0", speed="10000")
    interface(tmp_path, "ib0", "32", device="", speed="100000")
    interface(tmp_path, "idle0", device="")
    found = {name: (f"10.0.{at}.1/24",) for at, name in enumerate(os.listdir(tmp_path))}
    found |= {"idle0": (), "gone": ("10.1.0.1/24",)}
    assert {each.name: (each.kind, each.rate) for each in linux_interfaces(found, tmp_path)} == {
        "lo": ("loopback", None),
        "eth0": ("ethernet", 10e9),
        "eth1": ("ethernet", None),
        "wlan0": ("wifi", None),
        "wlan1": ("wifi", None),
        "thunderbolt0": ("thunderbolt", 20e9),
        "docker0": ("unknown", 10e9),
        "ib0": ("unknown", 100e9),
        "gone": ("unknown", None),
    }


def test_the_cpu_has_a_name_where_linux_knows_one() -> None:
    assert linux_chip("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t: a b\n") == (
        "Some CPU @ 3 GHz"
    )
    assert linux_chip("processor\t: 0\nBogoMIPS\t: 50.0\n") == ""


# -- commands --------------------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_command_that_fails_or_is_missing_says_nothing(programs: Path) -> None:
    program(programs, "tells", 'printf "%s," "$@"; echo complaint >&2')
    program(programs, "fails", "echo half; exit 3")
    (programs / "broken").write_text("no program")
    (programs / "broken").chmod(0o755)
    (programs / "odd").write_bytes(b"#!/bin/sh\nprintf '\\377'\n")
    (programs / "odd").chmod(0o755)
    assert output("tells", "a b", "c") == "a b,c,"
    assert output("fails") is None
    assert output("broken") is None
    assert output("no-such-command-at-all") is None
    assert output("odd") == "\N{REPLACEMENT CHARACTER}"


def test_a_command_that_hangs_is_ended(programs: Path) -> None:
    program(programs, "hangs", f"echo $$ > {programs}/pid; exec sleep 600")
    began = time.monotonic()
    assert output("hangs", limit=1.0) is None
    assert time.monotonic() - began < 30
    assert not psutil.pid_exists(int((programs / "pid").read_text()))


SAID = {
    "sysctl -n machdep.cpu.brand_string": "Apple M3 Ultra\n",
    "sysctl -n kern.bootsessionuuid": "BOOT-1\n",
    "sysctl -n hw.model": "Mac15,14\n",
    "networksetup -listallhardwareports": PORTS,
    "ifconfig": IFCONFIG,
    "system_profiler SPThunderboltDataType -json": profile(bus(2, peer("X"), speed="80 Gb/s")),
    "ibv_devices": IBV,
}


def test_a_mac_is_described_as_far_as_its_commands_answer() -> None:
    said = dict(SAID)
    prober = Prober(lambda *command: said.get(" ".join(command)), platform="darwin")
    assert prober.facts().sockets is None
    prober.begin().result(30)
    facts = prober.facts()
    assert (facts.model, facts.chip, facts.machine) == ("Mac Studio", "Apple M3 Ultra", "BOOT-1")
    assert facts.rdma == ("rdma_en2", "rdma_en5")
    assert facts.sockets == (Socket("2", "OWN-2", 80e9, ("X",), used=True),)
    assert facts.interface("en6") == Interface("en6", "thunderbolt", (), 80e9, "Thunderbolt 2")
    # What can change is asked again, and is not known any more when there is no answer.
    del said["system_profiler SPThunderboltDataType -json"], said["ibv_devices"]
    del said["sysctl -n machdep.cpu.brand_string"]
    prober.begin().result(30)
    facts = prober.facts()
    assert (facts.model, facts.chip) == ("Mac Studio", "Apple M3 Ultra")
    assert (facts.sockets, facts.rdma) == (None, ())


def test_a_mac_without_any_answer_is_still_described() -> None:
    prober = Prober(lambda *command: None, platform="darwin")
    prober.begin().result(30)
    facts = prober.facts()
    assert facts.host
    assert facts.memory == psutil.virtual_memory().total
    assert facts.used is not None
    assert 0 < facts.used < facts.memory
    assert facts.model == facts.chip == facts.machine == ""
    assert facts.sockets is None


def test_slow_commands_keep_nobody_waiting_and_run_once() -> None:
    gate, asked = threading.Event(), []

    def slow(*command: str) -> str | None:
        asked.append(command[0])
        gate.wait(60)
        return SAID.get(" ".join(command))

    prober = Prober(slow, platform="darwin")
    looking = prober.begin()
    assert prober.begin() is looking
    assert not looking.done()
    assert prober.facts().model == ""
    assert not looking.cancel()
    gate.set()
    looking.result(30)
    assert prober.facts().model == "Mac Studio"
    assert asked.count("system_profiler") == 1
    # A look may be as old as the one who asks says.
    assert prober.begin(age=3600) is looking
    assert prober.begin() is not looking


def test_this_machine_describes_itself() -> None:
    prober = Prober()
    prober.begin().result(60)
    facts = prober.facts()
    assert facts.host
    assert facts.machine
    assert any(each.kind == "loopback" for each in facts.interfaces)
    [loopback] = [each for each in facts.interfaces if "127.0.0.1/8" in each.addresses]
    assert loopback.kind == "loopback"
