"""Traffic on hosts and links that nobody has: what it would take."""

from .network import Network
from .simulation import Simulation, simulate
from .traffic import Flow, Traffic

__all__ = ["Flow", "Network", "Simulation", "Traffic", "simulate"]
