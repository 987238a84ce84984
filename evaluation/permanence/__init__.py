"""`toto permanence`: is a hidden object still there for a frozen Toto? Attention to its last sighting, and cups."""

from evaluation.permanence.command import main

__all__ = ["main"]
