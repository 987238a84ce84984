"""Runs killed at random places and resumed: how many are lost, and how many differ from an uninterrupted run.

The kills are made as in the tests, but more often: tests/training/kill_resume.py.
"""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "tests" / "training" / "kill_resume.py"


def add_flags(parser) -> None:
    parser.add_argument("--kills", type=int, default=200, help="number of kills (200: half an hour)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the places of the kills and of the training")


def measure(args) -> dict:
    command = [sys.executable, str(SCRIPT), "--kills", str(args.kills), "--seed", str(args.seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if not done.stdout:
        raise SystemExit(done.returncode)  # its reason is on stderr
    values = json.loads(done.stdout)
    return {"ratios": {"runs_exact": 1 - values["not_exact"] / values["runs"]}, "values": values}
