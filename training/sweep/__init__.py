"""`toto sweep`: the same training over a grid of widths or learning rates."""

from training.sweep.command import main

__all__ = ["main"]
