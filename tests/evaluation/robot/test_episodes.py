"""Folders of episodes: v2.1 and v3.0 as the format's documentation has them, our own, and damaged ones."""

import json
from fractions import Fraction

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation.robot.episodes import EpisodeWriter, open_episodes
from evaluation.robot.observations import Episode
from tokenization.sampling import Sampling
from tokenization.sources import open_source

FPS, LENGTHS = 10, (5, 3, 4)
CAMERA = "observation.images.front"


def grey(episode: int, row: int) -> int:
    return 20 + 60 * episode + 10 * row


def film(path, greys):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for level in greys:
            picture = np.full((32, 48, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def rows(episode: int, start: int) -> dict:
    count = LENGTHS[episode]
    return {
        "observation.state": [[float(episode), float(row)] for row in range(count)],
        "action": [[float(row), 0.5, float(-episode)] for row in range(count)],
        "timestamp": [row / FPS for row in range(count)],
        "frame_index": list(range(count)),
        "episode_index": [episode] * count,
        "index": list(range(start, start + count)),
        "task_index": [episode % 2] * count,
    }


def info(version: str, data: str, video: str) -> dict:
    names = {"motors": ["shoulder", "elbow"]} if version == "v2.1" else ["shoulder", "elbow"]
    return {
        "codebase_version": version,
        "robot_type": "so100",
        "fps": FPS,
        "total_episodes": 3,
        "total_frames": 12,
        "chunks_size": 1000,
        "data_path": data,
        "video_path": video,
        "features": {
            "observation.state": {"dtype": "float32", "shape": [2], "names": names},
            "action": {"dtype": "float32", "shape": [3], "names": None},
            CAMERA: {"dtype": "video", "shape": [32, 48, 3], "names": ["height", "width", "channels"]},
        },
    }


def table(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_v2(folder):
    data = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    video = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info("v2.1", data, video)))
    lines = [{"episode_index": k, "tasks": [f"task {k % 2}"], "length": n} for k, n in enumerate(LENGTHS)]
    (folder / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    tasks = [{"task_index": k, "task": f"task {k}"} for k in range(2)]
    (folder / "meta/tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    for k, count in enumerate(LENGTHS):
        table(folder / f"data/chunk-000/episode_{k:06d}.parquet", rows(k, sum(LENGTHS[:k])))
        film(folder / f"videos/chunk-000/{CAMERA}/episode_{k:06d}.mp4", [grey(k, row) for row in range(count)])
    return folder


def write_v3(folder):
    """All three episodes in one data file and one video."""
    data = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    video = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info("v3.0", data, video)))
    columns, listed, start = {}, [], 0
    for k, count in enumerate(LENGTHS):
        for name, values in rows(k, start).items():
            columns.setdefault(name, []).extend(values)
        place = {"data/chunk_index": 0, "data/file_index": 0}
        place |= {f"videos/{CAMERA}/chunk_index": 0, f"videos/{CAMERA}/file_index": 0}
        place |= {f"videos/{CAMERA}/from_timestamp": start / FPS}
        place |= {f"videos/{CAMERA}/to_timestamp": (start + count) / FPS}
        listed.append({"episode_index": k, "tasks": [f"task {k % 2}"], "length": count, **place})
        start += count
    table(folder / "data/chunk-000/file-000.parquet", columns)
    episodes = {name: [row[name] for row in listed] for name in listed[0]}
    table(folder / "meta/episodes/chunk-000/file-000.parquet", episodes)
    table(folder / "meta/tasks.parquet", {"task_index": [0, 1], "__index_level_0__": ["task 0", "task 1"]})
    film(
        folder / f"videos/{CAMERA}/chunk-000/file-000.mp4",
        [grey(k, row) for k, count in enumerate(LENGTHS) for row in range(count)],
    )
    return folder


@pytest.mark.parametrize("write", [write_v2, write_v3])
def test_folders_of_other_tools(tmp_path, write):
    episodes = open_episodes(write(tmp_path / "arm"))
    assert (len(episodes), episodes.fps, episodes.cameras) == (3, FPS, ["front"])
    assert (episodes.state_size, episodes.action_size, episodes.environment_size) == (2, 3, None)
    assert episodes.state_names == ["shoulder", "elbow"] and episodes.action_names is None
    assert episodes.tasks == ["task 0", "task 1"]
    for k in (1, 2, 0):  # not in the order of the file
        episode = episodes.episode(k, None, 16)
        assert episode.images.shape == (LENGTHS[k], 16, 16, 3) and episode.images.dtype == np.uint8
        found = episode.images.mean((1, 2, 3))
        assert np.abs(found - [grey(k, row) for row in range(LENGTHS[k])]).max() < 4
        assert (episode.states[:, 0] == k).all() and (episode.actions[:, 0] == np.arange(LENGTHS[k])).all()
        assert episode.states.dtype == episode.actions.dtype == np.float32
        assert episode.task == f"task {k % 2}" and episode.success is None
    assert episodes.episode(1, CAMERA, 16).images.shape == episodes.episode(1, "front", 16).images.shape
    assert episodes.episode(1, "", 16).images.shape == (3, 0, 0, 3)


def change_info(folder, change):
    content = json.loads((folder / "meta/info.json").read_text())
    change(content)
    (folder / "meta/info.json").write_text(json.dumps(content))


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match=r"no meta/info\.json"):
        open_episodes(tmp_path)
    folder = write_v2(tmp_path / "a")
    with pytest.raises(ValueError, match="no camera 'wrist'; it has front"):
        open_episodes(folder).episode(0, "wrist", 16)
    with pytest.raises(ValueError, match="episodes 0 to 2, not 3"):
        open_episodes(folder).episode(3, None, 16)
    film(folder / f"videos/chunk-000/{CAMERA}/episode_000001.mp4", [9, 9])
    with pytest.raises(ValueError, match="too short: it ends before row 2 of 3"):
        open_episodes(folder).episode(1, None, 16)
    bad = rows(2, 8) | {"observation.state": [[0.0, 0.0], [0.0, float("nan")], [0.0, 0.0], [0.0, 0.0]]}
    table(folder / "data/chunk-000/episode_000002.parquet", bad)
    with pytest.raises(ValueError, match=r"observation\.state has a value that is not finite in row 1 of episode 2"):
        open_episodes(folder).episode(2, "", 16)
    (folder / f"videos/chunk-000/{CAMERA}/episode_000000.mp4").unlink()
    with pytest.raises(FileNotFoundError, match=r"episode_000000\.mp4, a file of episode 0, is missing"):
        open_episodes(folder).episode(0, None, 16)
    change_info(folder, lambda content: content["features"]["action"].update(shape=[4]))
    with pytest.raises(ValueError, match=r"action has 3 numbers in row 0 of episode 0; meta/info\.json says 4"):
        open_episodes(folder).episode(0, "", 16)
    table(folder / "data/chunk-000/episode_000000.parquet", rows(1, 0) | {"episode_index": [0, 0, 0]})
    with pytest.raises(ValueError, match="has 3 rows of episode 0; the meta files say 5"):
        open_episodes(folder).episode(0, "", 16)
    change_info(folder, lambda content: content["features"].update(other={"dtype": "video"}))
    with pytest.raises(ValueError, match=r"2 cameras \(front, other\); name one"):
        open_episodes(folder).episode(0, None, 16)
    (folder / "meta/episodes.jsonl").unlink()
    with pytest.raises(ValueError, match=r"meta/episodes\.jsonl is missing"):
        open_episodes(folder)
    change_info(folder, lambda content: content.pop("fps"))
    with pytest.raises(ValueError, match="damaged or incomplete"):
        open_episodes(folder)


def an_episode(count: int = 6, seed: int = 0) -> Episode:
    generator = np.random.default_rng(seed)
    levels = 40 + 20 * np.arange(count)
    images = np.broadcast_to(levels[:, None, None, None], (count, 16, 16, 3)).astype(np.uint8)
    states, actions = (generator.standard_normal((count, size)).astype(np.float32) for size in (2, 3))
    return Episode(images, states, actions, None, "push", True)


def a_writer(folder):
    names = {"state_names": ("x", "y"), "action_names": ("a", "b", "c"), "environment_names": None}
    return EpisodeWriter(folder, fps=10, camera="wrist", robot_type="toy", **names)


def test_what_is_written_is_read(tmp_path):
    import datasets

    folder = tmp_path / "made"
    for k in range(2):  # each from a new writer, as after a killed run
        writer = a_writer(folder)
        assert len(writer) == k
        writer.write(k, an_episode(6 + k, k))
    writer.finish()
    episodes = open_episodes(folder)
    for k in range(2):
        found, truth = episodes.episode(k, None, 16), an_episode(6 + k, k)
        assert np.array_equal(found.states, truth.states) and np.array_equal(found.actions, truth.actions)
        assert np.abs(found.images.astype(int) - truth.images).max() < 6
        assert found.task == "push" and found.success is True
    stats = json.loads((folder / "meta/stats.json").read_text())
    states = np.concatenate([an_episode(6 + k, k).states for k in range(2)])
    assert np.allclose(stats["observation.state"]["mean"], states.mean(0), atol=1e-6)
    assert np.allclose(stats["observation.state"]["std"], states.std(0), atol=1e-6)
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 13 and loaded["index"][:] == list(range(13))
    clips = list(open_source(str(folder / "videos"), sampling=Sampling(num_frames=4, stride=1, resolution=16)))
    assert len({clip.source for clip in clips}) == 2 and clips[0].frames.shape == (4, 16, 16, 3)


def test_what_cannot_be_written(tmp_path):
    writer, bad = a_writer(tmp_path), an_episode()
    with pytest.raises(ValueError, match="The next episode"):
        writer.write(1, bad)
    bad.states[2, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        writer.write(0, bad)
    with pytest.raises(ValueError, match=r"action of episode 0 has the shape"):
        writer.write(0, Episode(bad.images, an_episode().states, bad.actions[:, :2]))
    assert not list(tmp_path.rglob("*.mp4"))
