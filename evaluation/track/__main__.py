"""`python -m evaluation.track`."""

from evaluation.track.command import main
from toto_cli import run

run(main)
