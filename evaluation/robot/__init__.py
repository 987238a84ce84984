"""`toto robot`: policies of a robot arm on a frozen Toto, from demonstrations to the control loop."""

from evaluation.robot.command import main

__all__ = ["main"]
