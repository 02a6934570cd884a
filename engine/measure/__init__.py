"""Measuring the wires: latency, bandwidth and collectives of running ranks, and what follows."""
