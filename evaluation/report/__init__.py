"""`toto report`: results and runs as one page, and comparisons of probes."""

from evaluation.report.command import main

__all__ = ["main"]
