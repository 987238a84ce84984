"""The embedded world: endless rendered clips with exact labels, and pictures, made from a seed on any machine."""

from tokenization.toyworld.world import MOTIONS, ToyWorld

__all__ = ["MOTIONS", "ToyWorld"]
