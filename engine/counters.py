"""What this process has done so far, for whoever watches it."""

from __future__ import annotations


class Counters:
    """Counts that only grow. Written in the main thread, read in any."""

    def __init__(self) -> None:
        self.tokens = 0  # generated, of all answers together
        self.collectives = 0  # started, over all worlds and groups
        self.bytes = 0  # that were handed to them


counters = Counters()
