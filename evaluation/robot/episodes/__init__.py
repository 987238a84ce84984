"""Folders of robot episodes in LeRobotDataset's layouts v2.1 and v3.0."""

from evaluation.robot.episodes.reading import Episodes, open_episodes
from evaluation.robot.episodes.writing import EpisodeWriter

__all__ = ["EpisodeWriter", "Episodes", "open_episodes"]
