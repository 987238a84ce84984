"""`toto ngrams`: how often codes and short runs of codes occur in the tokens of a data set."""

from evaluation.ngrams.command import main
from evaluation.predictors import Predictors, fit

# The predictors had this module's name; evaluation/continuations imports them from here.
__all__ = ["Predictors", "fit", "main"]
