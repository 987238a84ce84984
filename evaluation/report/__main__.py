"""`python -m evaluation.report`."""

from evaluation.report.command import main
from toto_cli import run

run(main)
