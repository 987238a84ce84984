"""Names and paths of LeRobotDataset's layouts, from its documentation.

v2.1 has a parquet and a video per episode, and meta/episodes.jsonl; v3.0 may put several episodes into one file, and
meta/episodes/ says in which file and from which second on an episode is.
"""

from __future__ import annotations

STATE, ACTION, ENVIRONMENT = "observation.state", "action", "observation.environment_state"
SUCCESS = "next.success"
CAMERA = "observation.images."
INFO, STATS = "meta/info.json", "meta/stats.json"
CARD = "README.md"
# Tells `datasets.load_dataset(folder)` which of the parquet files are rows; LeRobot's own cards say it in this way.
CARD_TEXT = """---
task_categories:
- robotics
tags:
- LeRobot
configs:
- config_name: default
  data_files: data/*/*.parquet
---

Episodes of a robot in LeRobotDataset's layout v3.0, written by `toto robot collect` (modeling-toto).
"""
TASKS, TASK_LINES = "meta/tasks.parquet", "meta/tasks.jsonl"
EPISODES, EPISODE_LINES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", "meta/episodes.jsonl"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
DATA_V2 = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_V2 = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
CHUNK = 1000  # files of a folder


def camera_name(key: str) -> str:
    """ "observation.images.front" -> "front"."""
    return key.removeprefix(CAMERA)


def flat_names(feature: dict) -> list[str] | None:
    """Names of a feature's numbers, which other tools write as a list or as a mapping with one list; None if none."""
    names = feature.get("names")
    if isinstance(names, dict):
        lists = list(names.values())
        names = lists[0] if len(lists) == 1 and isinstance(lists[0], list) else list(names)
    return [str(name) for name in names] if isinstance(names, list) else None
