"""`toto probe`: what frozen features know, per layer and head, next to their floors."""

from evaluation.probe.command import main

__all__ = ["main"]
