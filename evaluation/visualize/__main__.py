"""`python -m evaluation.visualize`."""

from evaluation.visualize.command import main
from toto_cli import run

run(main)
