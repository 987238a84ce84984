"""Write episodes as a LeRobotDataset v3.0 folder with one data file and one video per episode."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from evaluation.pictures import write_movie
from evaluation.robot.episodes import layout
from evaluation.robot.observations import Episode
from tokenization.files import write_json, write_whole


class EpisodeWriter:
    """Writes episodes one after the other; `len(writer)` is the number of the next one, also after a killed run.

    A file per episode, which v3.0 allows, so that `toto tokenize --dataset FOLDER/videos` sees a clip per episode. The
    meta files list an episode once its data and its video are whole.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        fps: float,
        camera: str,
        state_names: tuple[str, ...],
        action_names: tuple[str, ...],
        environment_names: tuple[str, ...] | None,
        robot_type: str,
    ):
        import pyarrow.parquet as pq

        self.folder, self.fps, self.robot_type = Path(folder), fps, robot_type
        self.video_key = layout.CAMERA + camera
        self.columns = {layout.STATE: list(state_names), layout.ACTION: list(action_names)}
        if environment_names is not None:
            self.columns[layout.ENVIRONMENT] = list(environment_names)
        self.rows: list[dict] = []
        file = self.folder / layout.EPISODES.format(chunk_index=0, file_index=0)
        if file.is_file():
            self.rows = pq.read_table(file, partitioning=None).to_pylist()
            known = json.loads((self.folder / layout.INFO).read_text())
            if self.video_key not in known["features"] or known["fps"] != fps:
                raise ValueError(f"{folder} holds episodes of another camera or rate; choose another folder.")
        for rest in self.folder.rglob("*.partial*"):  # of a killed run
            rest.unlink()

    def __len__(self) -> int:
        return len(self.rows)

    def write(self, index: int, episode: Episode) -> None:
        """Write episode `index`, which must be `len(writer)`.

        Raises:
            ValueError: the index, a length, or numbers that are not finite.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if index != len(self):
            raise ValueError(f"The next episode of {self.folder} is {len(self)}, not {index}.")
        given = {
            layout.STATE: episode.states,
            layout.ACTION: episode.actions,
            layout.ENVIRONMENT: episode.environment_states,
        }
        count = len(episode.states)
        for key, names in self.columns.items():
            if given[key] is None or given[key].shape != (count, len(names)):
                shape = None if given[key] is None else given[key].shape
                raise ValueError(f"{key} of episode {index} has the shape {shape}, not {(count, len(names))}.")
            if not np.isfinite(given[key]).all():
                raise ValueError(f"{key} of episode {index} has values that are not finite.")
        if count == 0 or len(episode.images) != count:
            raise ValueError(f"Episode {index} has {len(episode.images)} images and {count} rows.")
        tasks = [task for row in self.rows for task in row["tasks"]]
        tasks = list(dict.fromkeys([*tasks, episode.task]))
        places = {"chunk_index": index // layout.CHUNK, "file_index": index % layout.CHUNK}
        start = self.rows[-1]["dataset_to_index"] if self.rows else 0
        frame = np.arange(count)
        columns = {
            key: pa.FixedSizeListArray.from_arrays(pa.array(np.float32(given[key]).ravel()), len(names))
            for key, names in self.columns.items()
        }
        last = frame == count - 1
        columns |= {
            "timestamp": pa.array((frame / self.fps).astype(np.float32)),
            "frame_index": pa.array(frame),
            "episode_index": pa.array(np.full(count, index)),
            "index": pa.array(frame + start),
            "task_index": pa.array(np.full(count, tasks.index(episode.task))),
            "next.done": pa.array(last),
        }
        if episode.success is not None:
            columns[layout.SUCCESS] = pa.array(last & episode.success)
        video = self.folder / layout.VIDEO.format(video_key=self.video_key, **places)
        data = self.folder / layout.DATA.format(**places)
        for file in (video, data):
            file.parent.mkdir(parents=True, exist_ok=True)
        write_clip(video, episode.images, self.fps)
        write_whole(data, lambda path: pq.write_table(pa.table(columns), path))
        row = {"episode_index": index, "tasks": [episode.task], "length": count}
        row |= {f"data/{name}": value for name, value in places.items()}
        row |= {"dataset_from_index": start, "dataset_to_index": start + count}
        row |= {f"videos/{self.video_key}/{name}": value for name, value in places.items()}
        row |= {f"videos/{self.video_key}/from_timestamp": 0.0}
        row |= {f"videos/{self.video_key}/to_timestamp": count / self.fps}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        for key in self.columns:
            row |= _stats(key, given[key].astype(np.float64), (0,))
        row |= _stats(self.video_key, episode.images / np.float32(255), (0, 1, 2))
        self.rows.append(row)
        self._write_meta(tasks, list(episode.images.shape[1:]), episode.success is not None)

    def _write_meta(self, tasks: list[str], shape: list[int], has_success: bool) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        features = {
            key: {"dtype": "float32", "shape": [len(names)], "names": names} for key, names in self.columns.items()
        }
        features[self.video_key] = {
            "dtype": "video",
            "shape": shape,
            "names": ["height", "width", "channels"],
            "info": {"video.fps": self.fps, "video.codec": "h264", "video.pix_fmt": "yuv420p", "has_audio": False},
        }
        kinds = {"timestamp": "float32", "next.done": "bool"}
        kinds |= dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")
        kinds |= {layout.SUCCESS: "bool"} if has_success else {}
        features |= {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in kinds.items()}
        info = {
            "codebase_version": "v3.0",
            "robot_type": self.robot_type,
            "total_episodes": len(self),
            "total_frames": self.rows[-1]["dataset_to_index"],
            "total_tasks": len(tasks),
            "chunks_size": layout.CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self)}"},
            "data_path": layout.DATA,
            "video_path": layout.VIDEO,
            "features": features,
        }
        episodes = self.folder / layout.EPISODES.format(chunk_index=0, file_index=0)
        episodes.parent.mkdir(parents=True, exist_ok=True)
        numbered = pa.table({"task": tasks, "task_index": list(range(len(tasks)))})
        write_whole(self.folder / layout.TASKS, lambda path: numbered.to_pandas().set_index("task").to_parquet(path))
        write_whole(self.folder / layout.CARD, lambda path: path.write_text(layout.CARD_TEXT))
        write_json(self.folder / layout.INFO, info)
        write_whole(episodes, lambda path: pq.write_table(pa.Table.from_pylist(self.rows), path))

    def finish(self) -> None:
        """Write meta/stats.json: minimum, maximum, mean and standard deviation over all episodes."""
        if not self.rows:
            return
        stats = {}
        for key in (*self.columns, self.video_key):
            part = {name: np.array([row[f"stats/{key}/{name}"] for row in self.rows]) for name in ("min", "max")}
            mean, std = (np.array([row[f"stats/{key}/{name}"] for row in self.rows]) for name in ("mean", "std"))
            counts = np.array([row[f"stats/{key}/count"][0] for row in self.rows], np.float64)
            weight = (counts / counts.sum()).reshape(-1, *(1,) * (mean.ndim - 1))
            overall = (weight * mean).sum(0)
            variance = (weight * (std**2 + (mean - overall) ** 2)).sum(0)
            stats[key] = {
                "min": part["min"].min(0).tolist(),
                "max": part["max"].max(0).tolist(),
                "mean": overall.tolist(),
                "std": np.sqrt(variance).tolist(),
                "count": [int(counts.sum())],
            }
        write_json(self.folder / layout.STATS, stats)


def write_clip(file: Path, images: np.ndarray, fps: float) -> None:
    """Write frames, uint8 (T, H, W, 3) with even sides, as an mp4 that is complete whenever it exists."""
    if images.shape[1] % 2 or images.shape[2] % 2:
        raise ValueError(f"Frames are {images.shape[2]} x {images.shape[1]}; videos need even sides.")

    def write(path: Path) -> None:
        movie = path.with_name(path.name + ".mp4")  # PyAV chooses the container by the suffix
        write_movie(movie, images, fps)
        movie.replace(path)

    write_whole(file, write)


def _stats(key: str, values: np.ndarray, axes: tuple[int, ...]) -> dict:
    """Columns of meta/episodes: per number, or per colour with the shape (3, 1, 1) that LeRobot expects."""

    def shaped(numbers: np.ndarray) -> list:
        return (numbers if len(axes) == 1 else numbers.reshape(-1, 1, 1)).astype(np.float64).tolist()

    return {
        f"stats/{key}/min": shaped(values.min(axes)),
        f"stats/{key}/max": shaped(values.max(axes)),
        f"stats/{key}/mean": shaped(values.mean(axes, dtype=np.float64)),
        f"stats/{key}/std": shaped(values.std(axes, dtype=np.float64)),
        f"stats/{key}/count": [len(values)],
    }
