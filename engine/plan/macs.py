"""What is known of Macs and of the links between them, with the source of every figure.

Bandwidth, memory and ports are Apple's (the technical specifications page of each Mac). How fast a
prompt is read is not published by Apple; `prefill` is what people measured with MLX, and None where
nobody did.
"""

from __future__ import annotations

import difflib
import re
from typing import Literal

import attrs

from ..errors import UsageError

GIB = 2**30  # Apple's "128GB" of memory are 128 GiB
THUNDERBOLT_5 = 5

# Twice the parameters that a token visits, times the tokens of the prompt that were read a second.
_27B = "2 x 25.6 G parameters x {} tokens/s of a prompt, Qwen 27B in 4 bits: {}"


@attrs.frozen
class Chip:
    """One Apple chip.

    `bandwidth` maps each memory size in GB that it was sold with to GB/s: chips with fewer GPU
    cores have a part of the bandwidth, and other sizes of memory. `thunderbolt` is the generation
    and `ports` counts the ports of the Mac that has most. `prefill` is in FLOP/s, as measured.
    """

    name: str
    bandwidth: dict[int, float]
    thunderbolt: int
    ports: int
    source: str
    prefill: float | None = None
    prefill_source: str = ""


@attrs.frozen
class Link:
    """How the ranks reach each other.

    `latency` is the time of a collective of a few bytes between two ranks in seconds, `hop` that of
    each further step, `bandwidth` what one cable carries in one direction, in bytes/s. `spread`
    holds the factors of the latency in the best and the worst case that was published.
    """

    name: str
    backend: str
    shape: Literal["mesh", "ring"]
    latency: float
    hop: float
    bandwidth: float
    source: str
    spread: tuple[float, float] = (0.9, 1.7)


def _same(bandwidth: float, *sizes: int) -> dict[int, float]:
    return dict.fromkeys(sizes, bandwidth)


_CHIPS = (
    Chip("M1", _same(68.25, 8, 16), 3, 2, "Mac mini (M1, 2020)"),
    Chip("M1 Pro", _same(200, 16, 32), 4, 3, "MacBook Pro (14-inch, 2021)"),
    Chip("M1 Max", _same(400, 32, 64), 4, 4, "Mac Studio (2022)"),
    Chip("M1 Ultra", _same(800, 64, 128), 4, 6, "Mac Studio (2022)"),
    Chip("M2", _same(100, 8, 16, 24), 4, 2, "Mac mini (2023)"),
    Chip("M2 Pro", _same(200, 16, 32), 4, 4, "Mac mini (2023)"),
    Chip(
        "M2 Max", _same(400, 32, 64, 96), 4, 4, "Mac Studio (2023)",
        9.6e12, _27B.format(188, "omlx#1097"),
    ),
    Chip("M2 Ultra", _same(800, 64, 128, 192), 4, 8, "Mac Pro (2023)"),
    Chip("M3", _same(100, 8, 16, 24), 3, 2, "MacBook Pro (14-inch, M3, 2023)"),
    Chip(
        "M3 Pro", _same(150, 18, 36), 4, 3, "MacBook Pro (14-inch, M3 Pro, 2023)",
        4.9e12, "2 x 4.0 G parameters x 615 tokens/s of a prompt, Qwen3-4B: mlx-lm#1569",
    ),
    Chip(
        "M3 Max", {**_same(300, 36, 96), **_same(400, 48, 64, 128)}, 4, 3,
        "MacBook Pro (14-inch, M3 Max, 2023)", 10.2e12, _27B.format(199, "omlx#2656"),
    ),
    Chip(
        "M3 Ultra", _same(819, 96, 256, 512), 5, 6, "Mac Studio (2025)",
        22.5e12, "2 x 123 G parameters x 91.5 tokens/s of a prompt, Devstral 2: mlx#3094",
    ),
    Chip(
        "M4", _same(120, 16, 24, 32), 4, 3, "Mac mini (2024)",
        2.8e12, "a bfloat16 matrix product in MLX, MacBook Air: dev.to/tinyalg",
    ),
    Chip(
        "M4 Pro", _same(273, 24, 48, 64), 5, 3, "Mac mini (2024)",
        5.7e12, _27B.format(111, "MTPLX#128"),
    ),
    Chip(
        "M4 Max", {**_same(410, 36), **_same(546, 48, 64, 128)}, 5, 4, "Mac Studio (2025)",
        13.6e12, _27B.format(266, "mlx-serve#120"),
    ),
    Chip("M5", _same(153, 16, 24, 32), 4, 3, "MacBook Pro (14-inch, M5)"),
    Chip("M5 Pro", _same(307, 24, 48, 64), 5, 3, "MacBook Pro (14-inch, M5 Pro)"),
    Chip(
        "M5 Max", {**_same(460, 36), **_same(614, 48, 64, 128)}, 5, 3,
        "MacBook Pro (14-inch, M5 Max)", 33.9e12, _27B.format(662, "mlx-serve#120"),
    ),
)  # fmt: skip

CHIPS: dict[str, Chip] = {chip.name: chip for chip in _CHIPS}

# TCP: all-reduce of 2 GB on four M2 Ultra took 1.3 s over 10 Gb/s Ethernet and 0.27 s over
# Thunderbolt (mlx#1784). Each rank then sends 2 x 3/4 of it, half of that in each direction.
_TCP_LATENCY = 300e-6
_TCP_SOURCE = "latency: Geerling 2025-12-18, about 300 us; bandwidth: all-reduce of 2 GB, mlx#1784"

LINKS: dict[str, Link] = {
    link.name: link
    for link in (
        Link(
            "mesh", "jaccl", "mesh", 30e-6, 7e-6, 6.3e9,
            "27-31 us and 6.1-6.5 GB/s between an M3 Ultra and an M5 Max: omlx#3118; "
            "below 50 us: Geerling 2025-12-18",
        ),
        Link(
            "jaccl-ring", "jaccl-ring", "ring", 30e-6, 7e-6, 6.3e9,
            "as mesh; 7 us for each further step: ib_write_lat on the same controllers, Hellas",
        ),
        Link(
            "thunderbolt", "ring", "ring", _TCP_LATENCY, 290e-6, 5.5e9,
            _TCP_SOURCE + "; step: half of 0.58 ms there and back, exo#2063", (0.6, 1.6),
        ),
        Link(
            "10gbe", "ring", "ring", _TCP_LATENCY, 290e-6, 1.15e9,
            _TCP_SOURCE + "; step: as over Thunderbolt", (0.6, 2.5),
        ),
        Link(
            "1gbe", "ring", "ring", _TCP_LATENCY, 290e-6, 0.115e9,
            _TCP_SOURCE + " and a tenth of it; step: as over Thunderbolt", (0.6, 2.5),
        ),
    )
}  # fmt: skip

# What else people call them.
_LINK_WORDS = {
    "jaccl": "mesh", "rdma": "mesh", "ring": "thunderbolt", "tb": "thunderbolt",
    "thunderbolt ring": "thunderbolt", "ethernet": "10gbe", "10 gbe": "10gbe", "10g": "10gbe",
    "1 gbe": "1gbe", "gigabit": "1gbe", "jaccl ring": "jaccl-ring", "rdma ring": "jaccl-ring",
}  # fmt: skip


def chip(text: str) -> Chip:
    """The chip of that name, in any case: "m3 ultra", "Apple M3Ultra". Raises UsageError."""
    words = re.sub(r"^apple\s+", "", text.strip().lower())
    key = re.sub(r"[\s_-]+", "", words)
    for name, found in CHIPS.items():
        if key == name.lower().replace(" ", ""):
            return found
    near = difflib.get_close_matches(words.upper(), [name.upper() for name in CHIPS], 1, 0.5)
    names = {name.upper(): name for name in CHIPS}
    raise UsageError(
        f"There is no chip {text.strip()!r} in the table.",
        why="the planner knows " + ", ".join(CHIPS),
        do=f"did you mean {names[near[0]]}?" if near else 'write it as in "M3 Ultra 512GB"',
    )


def link(text: str) -> Link:
    """The link of that name: mesh, jaccl-ring, thunderbolt, 10gbe, 1gbe, or another word for one.

    Raises UsageError.
    """
    word = " ".join(text.lower().split())
    word = _LINK_WORDS.get(word, word)
    if word in LINKS:
        return LINKS[word]
    near = difflib.get_close_matches(word, [*LINKS, *_LINK_WORDS], 1, 0.5)
    raise UsageError(
        f"There is no link {text.strip()!r}.",
        why="mesh and jaccl-ring are RDMA over Thunderbolt 5; thunderbolt (or ring), 10gbe (or "
        "ethernet) and 1gbe are MLX's ring over TCP",
        do=f"did you mean {near[0]}?" if near else 'for example: "4 x M3 Ultra 512GB, mesh"',
    )
