"""`python -m evaluation.prompt`."""

from evaluation.prompt.command import main
from toto_cli import run

run(main)
