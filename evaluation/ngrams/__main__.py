"""`python -m evaluation.ngrams`."""

from evaluation.ngrams.command import main
from toto_cli import run

run(main)
