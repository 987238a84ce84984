"""`toto app`: a page on this machine that shows what a Toto sees, predicts and has learnt."""

from evaluation.app.command import main

__all__ = ["main"]
