"""`python -m evaluation.robot`."""

from evaluation.robot.command import main
from toto_cli import run

run(main)
