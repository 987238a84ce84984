"""`toto track`: masks of a video's first frame, propagated through it by frozen features (DAVIS)."""

from evaluation.track.command import main

__all__ = ["main"]
