"""`python -m training.sweep`."""

from toto_cli import run
from training.sweep.command import main

run(main)
