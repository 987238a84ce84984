"""`python -m evaluation.permanence`."""

from evaluation.permanence.command import main
from toto_cli import run

run(main)
