"""`toto probe`: accuracy of heads on frozen features, per layer, next to baselines."""

from evaluation.probe.command import main

__all__ = ["main"]
