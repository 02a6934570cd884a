"""Quantities as people read them."""

from __future__ import annotations


def bytes_text(count: float) -> str:
    """ "512 B", "65.5 kB", "12.3 GB": decimal units, as macOS and MLX count."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.99995 * scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def size_label(count: float) -> str:
    """ "4 B", "64 KiB", "1.5 MiB": binary units, for sizes that are powers of two."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            value = count / scale
            return f"{value:.0f} {unit}" if value >= 99.5 else f"{value:.3g} {unit}"
    return f"{count:.0f} B"


def memory_text(count: float) -> str:
    """ "512 GB": memory is sold in binary units under decimal names."""
    size = count / (1 << 30)
    return f"{size:.0f} GB" if size >= 9.95 else f"{size:.1f} GB"


def number_text(value: float) -> str:
    """Three digits that count: "0.085", "8.21", "41.3", "1,250"."""
    if value == 0:
        return "0"
    for least, places in ((99.95, 0), (9.995, 1), (0.9995, 2), (0.09995, 3)):
        if value >= least:
            return f"{value:,.{places}f}"
    return f"{value:.2g}"


def time_text(seconds: float) -> str:
    """ "8.21 us", "1.25 ms", "3.40 s"."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= 0.9995 * scale:
            return f"{number_text(seconds / scale)} {unit}"
    return f"{number_text(1e6 * seconds)} us"


def rate_text(rate: float) -> str:
    """Bytes/s: "8.21 GB/s", "950 MB/s", in decimal units."""
    for unit, scale in (("GB/s", 1e9), ("MB/s", 1e6)):
        if rate >= 0.9995 * scale:
            return f"{number_text(rate / scale)} {unit}"
    return f"{number_text(rate / 1e3)} kB/s"


def headline(code: str) -> str:
    """The first line of a cell that says what it does."""
    lines = (line.strip() for line in code.splitlines())
    return next((line for line in lines if line and not line.startswith("#")), "")[:40]
