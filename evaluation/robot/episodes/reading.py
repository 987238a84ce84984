"""Episodes of a folder in LeRobotDataset's layout v2.1 or v3.0, written by `toto robot collect` or any other tool."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from pathlib import Path

import numpy as np

from evaluation.robot.episodes import layout
from evaluation.robot.observations import Episode


def open_episodes(folder: str | Path) -> Episodes:
    """The episodes of a folder; only its meta files are read at once.

    Raises:
        ValueError: it is not such a folder, or its meta files are damaged, incomplete or of another version.
    """
    return Episodes(Path(folder))


class Episodes:
    """A folder of episodes.

    fps: rows per second. cameras: their names, without "observation.images.". state_size, action_size,
    environment_size: lengths (the last may be None). state_names, action_names: of the numbers, or None.
    tasks: every task of the folder, in words. codebase_version: as the folder states it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        if not (folder / layout.INFO).is_file():
            raise ValueError(f"{folder} is not a folder of episodes (LeRobotDataset): it has no {layout.INFO}.")
        try:
            self.info = json.loads((folder / layout.INFO).read_text())
            self.features, self.fps = self.info["features"], float(self.info["fps"])
            self.codebase_version = str(self.info["codebase_version"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder / layout.INFO} is damaged or incomplete ({error}); it needs codebase_version, fps, features."
            ) from error
        if not self.codebase_version.startswith(("v2", "v3")):
            raise ValueError(f"{folder} has version {self.codebase_version}; only v2.1 and v3.0 can be read.")
        self.is_v3 = self.codebase_version.startswith("v3")
        for key in (layout.STATE, layout.ACTION):
            if key not in self.features:
                raise ValueError(f"{folder} has no feature {key}; it has {', '.join(sorted(self.features))}.")
        self.keys = {
            layout.camera_name(key): key
            for key, feature in self.features.items()
            if feature.get("dtype") in ("video", "image")
        }
        self.cameras = list(self.keys)
        self.state_size, self.action_size = self._size(layout.STATE), self._size(layout.ACTION)
        has_environment = layout.ENVIRONMENT in self.features
        self.environment_size = self._size(layout.ENVIRONMENT) if has_environment else None
        self.state_names = layout.flat_names(self.features[layout.STATE])
        self.action_names = layout.flat_names(self.features[layout.ACTION])
        self.rows = sorted(self._episode_rows(), key=lambda row: row["episode_index"])
        if not self.rows:
            raise ValueError(f"{folder} has no episodes.")
        self._names = self._task_names()
        named = [task for row in self.rows for task in (row.get("tasks") or [])]
        self.tasks = list(dict.fromkeys(named or self._names.values()))
        self._film: _Film | None = None
        self._table: tuple | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def _size(self, key: str) -> int:
        shape = self.features[key].get("shape")
        if not isinstance(shape, list) or len(shape) != 1:
            raise ValueError(f"{self.folder}: {key} has the shape {shape}; one length is needed.")
        return int(shape[0])

    def _episode_rows(self) -> list[dict]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            if not self.is_v3:
                return _lines(self.folder / layout.EPISODE_LINES)
            files = sorted((self.folder / "meta/episodes").glob("*/*.parquet"))
            return [row for file in files for row in _without_stats(pq.read_table(file, partitioning=None)).to_pylist()]
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            where = "meta/episodes/" if self.is_v3 else layout.EPISODE_LINES
            raise ValueError(f"{self.folder}: {where} is missing or damaged.") from error

    def _task_names(self) -> dict[int, str]:
        """Number of a task -> its words; the file is optional for us."""
        import pyarrow.parquet as pq

        if (self.folder / layout.TASKS).is_file():
            table = pq.read_table(self.folder / layout.TASKS, partitioning=None)
            words = next((name for name in table.column_names if name != "task_index"), None)
            if words is not None and "task_index" in table.column_names:
                return dict(zip(table["task_index"].to_pylist(), table[words].to_pylist(), strict=True))
        elif (self.folder / layout.TASK_LINES).is_file():
            return {row["task_index"]: row["task"] for row in _lines(self.folder / layout.TASK_LINES)}
        return {}

    def episode(self, index: int, camera: str | None, resolution: int) -> Episode:
        """One episode, frames resized along the shorter side and cropped at the centre, as everywhere in the project.

        Args:
            index: 0 to len - 1.
            camera: name of a camera; None takes the only one; "" reads no frames, images are then (T, 0, 0, 3).
        Raises:
            ValueError: no such camera or episode, rows of other lengths than the folder states, numbers that are not
                finite, or a video that is damaged or shorter than the rows.
            FileNotFoundError: a file of the episode is missing.
        """
        if not 0 <= index < len(self):
            raise ValueError(f"{self.folder} has episodes 0 to {len(self) - 1}, not {index}.")
        key = self._key(camera)
        row = self.rows[index]
        number = int(row["episode_index"])
        table = self._data(row, number)
        states = self._numbers(table, layout.STATE, self.state_size, number)
        actions = self._numbers(table, layout.ACTION, self.action_size, number)
        environment = None
        if self.environment_size is not None:
            environment = self._numbers(table, layout.ENVIRONMENT, self.environment_size, number)
        images = np.zeros((len(states), 0, 0, 3), np.uint8)
        if key is not None:
            is_video = self.features[key]["dtype"] == "video"
            read = self._video_frames if is_video else self._stored_pictures
            images = read(table, key, row, number, resolution)
        success = None
        if layout.SUCCESS in table.column_names:
            success = any(bool(np.any(value)) for value in table[layout.SUCCESS].to_pylist())
        words = row.get("tasks") or []
        if not words and "task_index" in table.column_names:
            words = [self._names.get(table["task_index"][0].as_py(), "")]
        return Episode(images, states, actions, environment, words[0] if words else "", success)

    def _key(self, camera: str | None) -> str | None:
        if camera == "":
            return None
        listed = ", ".join(self.cameras) or "none"
        if camera is None:
            if len(self.cameras) != 1:
                raise ValueError(f"{self.folder} has {len(self.cameras)} cameras ({listed}); name one of them.")
            return self.keys[self.cameras[0]]
        name = layout.camera_name(camera)
        if name not in self.keys:
            raise ValueError(f"{self.folder} has no camera '{camera}'; it has {listed}.")
        return self.keys[name]

    def _place(self, template: str, row: dict, number: int, prefix: str, key: str = "") -> Path:
        """A file's path by the folder's own template."""
        if self.is_v3:
            try:
                values = {"chunk_index": row[f"{prefix}/chunk_index"], "file_index": row[f"{prefix}/file_index"]}
            except KeyError as error:
                raise ValueError(f"{self.folder}: meta/episodes/ lacks {error} of episode {number}.") from error
        else:
            values = {"episode_chunk": number // int(self.info.get("chunks_size", layout.CHUNK))}
            values["episode_index"] = number
        try:
            path = self.folder / template.format(video_key=key, **values)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"{self.folder / layout.INFO} has a path that cannot be filled in: {template}.") from error
        if not path.is_file():
            raise FileNotFoundError(f"{path}, a file of episode {number}, is missing.")
        return path

    def _data(self, row: dict, number: int):
        """The rows of one episode in the order of time."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        template = self.info.get("data_path") or (layout.DATA if self.is_v3 else layout.DATA_V2)
        path = self._place(template, row, number, "data")
        if self._table is None or self._table[0] != path:
            try:
                self._table = path, pq.read_table(path, partitioning=None)
            except pa.ArrowInvalid as error:
                raise ValueError(f"{path} is damaged: {error}") from error
        table = self._table[1]
        if "episode_index" in table.column_names:
            table = table.filter(pc.equal(table["episode_index"], number))
        if "frame_index" in table.column_names:
            table = table.sort_by("frame_index")
        length = row.get("length")
        if len(table) == 0 or (length is not None and length != len(table)):
            raise ValueError(f"{path} has {len(table)} rows of episode {number}; the meta files say {length}.")
        return table

    def _numbers(self, table, key: str, size: int, number: int) -> np.ndarray:
        """float32 (T, size)."""
        if key not in table.column_names:
            raise ValueError(f"{self.folder}: the data of episode {number} has no column {key}.")
        rows = [value if isinstance(value, list) else [value] for value in table[key].to_pylist()]
        for place, values in enumerate(rows):
            if len(values) != size:
                raise ValueError(
                    f"{self.folder}: {key} has {len(values)} numbers in row {place} of episode {number}; "
                    f"{layout.INFO} says {size}."
                )
        numbers = np.asarray(rows, np.float32)
        if not np.isfinite(numbers).all():
            place = int(np.flatnonzero(~np.isfinite(numbers).all(1))[0])
            raise ValueError(
                f"{self.folder}: {key} has a value that is not finite in row {place} of episode {number}; "
                "repair or leave out the episode."
            )
        return numbers

    def _video_frames(self, table, key: str, row: dict, number: int, resolution: int) -> np.ndarray:
        template = self.info.get("video_path") or (layout.VIDEO if self.is_v3 else layout.VIDEO_V2)
        path = self._place(template, row, number, f"videos/{key}", key)
        start = float(row.get(f"videos/{key}/from_timestamp") or 0)
        if "timestamp" in table.column_names:
            times = [start + float(np.ravel(time)[0]) for time in table["timestamp"].to_pylist()]
        else:
            times = [start + place / self.fps for place in range(len(table))]
        if self._film is None or self._film.path != path or self._film.time > times[0]:
            if self._film is not None:
                self._film.close()
            self._film = _Film(path)
        try:
            return self._film.at(times, 0.5 / self.fps, resolution)
        except ValueError as error:
            self._film.close()
            self._film = None
            raise ValueError(f"{path}, episode {number}: {error}") from error

    def _stored_pictures(self, table, key: str, row: dict, number: int, resolution: int) -> np.ndarray:
        """Cameras of dtype image: encoded pictures in the data file."""
        from PIL import Image

        from tokenization.image_processing_toto import resize_and_crop

        if key not in table.column_names:
            raise ValueError(f"{self.folder}: the data of episode {number} has no column {key}.")
        pictures = [Image.open(io.BytesIO(value["bytes"])) for value in table[key].to_pylist()]
        return np.stack([resize_and_crop(picture, resolution) for picture in pictures])


class _Film:
    """A video that is read forwards, so that the episodes of one file are decoded once in all.

    time: seconds up to which it has been read.
    """

    def __init__(self, path: Path):
        from tokenization.playback import Playback

        self.path, self.time = path, -1.0
        self.playback = Playback(path)
        self.ticks = self.playback.ticks()
        self.frames = self.playback.frames(self.ticks)
        self.shown = None

    def close(self) -> None:
        self.playback.__exit__()

    def at(self, times: list[float], slack: float, resolution: int) -> np.ndarray:
        """The frames nearest to `times`, seconds that do not fall: uint8 (T, R, R, 3).

        slack: half the time from a frame to the next; times of rows and of frames are rounded differently.
        """
        from tokenization.playback import crop_of

        found, last = [], None
        for place, time in enumerate(times):
            wanted = Fraction(time + slack) * self.ticks
            while self.shown is None or self.shown.until <= wanted:
                following = next(self.frames, None)
                if following is None:
                    raise ValueError(f"the video is too short: it ends before row {place} of {len(times)}.")
                self.shown = following
            if last is None or last[0] != self.shown.index:
                last = self.shown.index, crop_of(self.playback.picture(self.shown.frame), resolution)
            found.append(last[1])
            self.time = time
        return np.stack(found)


def _lines(path: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _without_stats(table):
    return table.select([name for name in table.column_names if not name.startswith("stats/")])
