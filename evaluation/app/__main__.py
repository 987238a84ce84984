"""`python -m evaluation.app`."""

from evaluation.app.command import main
from toto_cli import run

run(main)
