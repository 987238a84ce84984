"""The embedded world: endless rendered clips with exact labels, and pictures, both determined by a seed."""

from tokenization.toyworld.world import MOTIONS, ToyWorld

__all__ = ["MOTIONS", "ToyWorld"]
