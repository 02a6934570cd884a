"""Quantities as people read them."""

from __future__ import annotations


def bytes_text(count: float) -> str:
    """ "512 B", "65.5 kB", "12.3 GB": decimal units, as macOS and MLX count."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.99995 * scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def headline(code: str) -> str:
    """The first line of a cell that says what it does."""
    lines = (line.strip() for line in code.splitlines())
    return next((line for line in lines if line and not line.startswith("#")), "")[:40]
