"""`toto ngrams`: how often codes and short runs of codes occur in the tokens of a data set."""

from evaluation.ngrams.command import main

__all__ = ["main"]
