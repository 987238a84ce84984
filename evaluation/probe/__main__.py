"""`python -m evaluation.probe`."""

from evaluation.probe.command import main
from toto_cli import run

run(main)
