"""Tracks the objects of one sequence by all kinds of features at once, and scores every frame."""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evaluation.backbones.contract import Backbone
from evaluation.track.floors import places, raw_patches
from evaluation.track.metric import Truth, statistics
from evaluation.track.propagation import Propagator, decode, grid_labels
from evaluation.track.reading import Sequence
from evaluation.track.results import ObjectScore, SequenceScores
from evaluation.track.settings import Setting
from tokenization.files import write_json, write_whole
from tokenization.precision import bf16_is_fast

FORMAT = 1  # of the files of finished sequences; to be raised when scores or their meaning change
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass
class Tracker:
    """What is run on every sequence.

    twin: the untrained model, or None. layers: of both. floors: of `args.BASELINES`. frames_per_row: that the
    backbone reads at a time, the frame itself last.
    """

    backbone: Backbone
    twin: Backbone | None
    layers: list[int]
    setting: Setting
    floors: list[str]
    frames_per_row: int

    def key(self) -> str:
        """A hash of all that decides the scores of a sequence, apart from the sequence."""
        device = self.backbone.device
        facts = {
            "format": FORMAT,
            "setting": asdict(self.setting),
            "layers": self.layers,
            "floors": sorted(self.floors),
            "row": self.frames_per_row,
            "models": [each.fingerprint() for each in (self.backbone, self.twin) if each is not None],
            "bf16": bf16_is_fast(device),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def reader(self) -> FeatureReader:
        return FeatureReader(self)

    def track(
        self, sequence: Sequence, watch: Callable[[], object] = lambda: None, keep: Callable | None = None
    ) -> SequenceScores:
        """Propagate the first mask and score frames 1 to N - 2.

        Args:
            watch: called after each frame. keep: called as keep(t, {kind: object numbers (H, W)}) for each frame.
        Raises:
            ValueError, OSError: a frame that cannot be read.
        """
        began, reader, resolution = time.perf_counter(), self.reader(), self.backbone.resolution
        propagators: dict[str, Propagator] = {}
        scores: dict[str, list] = {}
        for t, (frame, labels) in enumerate(sequence.frames()):
            if t == sequence.num_frames - 1:  # not scored
                break
            labels = np.where(labels > sequence.objects, 0, labels).astype(np.uint8)  # void too
            features = reader.read(frame)
            if t == 0:
                first = labels
                for kind, grid in features.items():
                    soft = grid_labels(labels, sequence.objects, grid.shape[:2], resolution, self.setting)
                    propagators[kind] = Propagator(self.setting, grid, soft.to(grid.device))
                drawn = dict.fromkeys(self._kinds(features), labels)
            else:
                soft = {kind: propagators[kind].step(grid) for kind, grid in features.items()}
                drawn = {kind: decode(each, sequence.size, resolution, self.setting) for kind, each in soft.items()}
                drawn |= self._without_features(first, labels, sequence, reader.grid)
                truth = Truth.of(labels, sequence.objects)
                for kind, numbers in drawn.items():
                    scores.setdefault(kind, []).append(truth.score(numbers))
            if keep is not None:
                keep(t, drawn)
            watch()
        return SequenceScores(
            name=sequence.name,
            frames=sequence.num_frames,
            size=list(sequence.size),
            seconds=round(time.perf_counter() - began, 1),
            scores={kind: _objects(np.array(each)) for kind, each in scores.items()},
        )

    def _kinds(self, features: dict) -> list[str]:
        return [*features, *(name for name in ("copy", "ceiling") if name in self.floors)]

    def _without_features(self, first, labels, sequence: Sequence, grid: tuple[int, int]) -> dict[str, np.ndarray]:
        found = {"copy": first} if "copy" in self.floors else {}
        if "ceiling" in self.floors:
            soft = grid_labels(labels, sequence.objects, grid, self.backbone.resolution, self.setting)
            found["ceiling"] = decode(soft, sequence.size, self.backbone.resolution, self.setting)
        return found


def _objects(scores: np.ndarray) -> list[ObjectScore]:
    """Scores (T, 2, O), J and F of every frame -> an entry per object."""
    found = []
    for number in range(scores.shape[2]):
        j, f = (statistics(scores[:, which, number]) for which in range(2))
        found.append(
            ObjectScore(j=j.mean, j_recall=j.recall, j_decay=j.decay, f=f.mean, f_recall=f.recall, f_decay=f.decay)
        )
    return found


class FeatureReader:
    """The features of a video's frames, one after another: {kind: (h, w, D)}. grid: (h, w) of the backbone's."""

    def __init__(self, tracker: Tracker):
        self.tracker = tracker
        self.row: deque[np.ndarray] = deque(maxlen=tracker.frames_per_row)
        self.grid: tuple[int, int] = (0, 0)

    def read(self, frame: np.ndarray) -> dict[str, torch.Tensor]:
        """Features of the next frame, uint8 (H, W, 3), in the row of the frames before it.

        The first frames are preceded by copies of the first one, so that every frame has the same place in its row.
        """
        tracker, backbone = self.tracker, self.tracker.backbone
        side, how = backbone.resolution, FILTERS[tracker.setting.resample]
        square = np.asarray(Image.fromarray(frame).resize((side, side), how))
        self.row.extend([square] * (1 if self.row else tracker.frames_per_row))
        inputs = backbone.prepare(np.stack(self.row)[None])
        found = {}
        for name, model in (("layer", backbone), ("untrained", tracker.twin)):
            if model is not None:
                grids = model.grids(inputs, tracker.layers, lambda grid: grid[0, -1].float().clone())
                found |= {f"{name} {layer}": grid for layer, grid in grids.items()}
        self.grid = tuple(found[f"layer {tracker.layers[0]}"].shape[:2])
        if "patches" in tracker.floors:
            found["patches"] = raw_patches(square, self.grid[0]).to(backbone.device)
        if "position" in tracker.floors:
            found["position"] = places(*self.grid).to(backbone.device)
        return found


class Finished:
    """The finished sequences of a run, a file each, so that a run that was killed goes on after them.

    folder: next to the result. key: of the tracker; files of another key or of other frames do not count.
    """

    def __init__(self, folder: Path, key: str):
        self.folder, self.key = folder, key

    def path(self, sequence: Sequence) -> Path:
        return self.folder / f"{sequence.name}.json"

    def pictures(self, sequence: Sequence) -> Path:
        """Folder of the drawn masks of a sequence, a PNG per frame with those of all kinds below each other."""
        return self.folder / sequence.name

    def read(self, sequence: Sequence, with_pictures: bool) -> SequenceScores | None:
        """The scores of a sequence that is finished, with its drawn masks if they are wanted."""
        try:
            content = json.loads(self.path(sequence).read_text())
        except (FileNotFoundError, ValueError):
            return None
        is_same = content.get("key") == self.key and content.get("fingerprint") == sequence.fingerprint
        if not is_same or (with_pictures and not content.get("pictures")):
            return None
        return SequenceScores.from_json(content["scores"])

    def write(self, sequence: Sequence, scores: SequenceScores, with_pictures: bool) -> None:
        facts = {"key": self.key, "fingerprint": sequence.fingerprint, "pictures": with_pictures}
        write_json(self.path(sequence), facts | {"scores": scores.to_json()})

    def keeper(self, sequence: Sequence) -> Callable[[int, dict[str, np.ndarray]], None]:
        """A function for `Tracker.track` that writes the drawn masks of each frame."""
        folder = self.pictures(sequence)
        folder.mkdir(parents=True, exist_ok=True)

        def keep(t: int, drawn: dict[str, np.ndarray]) -> None:
            stacked = Image.fromarray(np.concatenate(list(drawn.values())))
            write_whole(folder / f"{t:05d}.png", lambda file: stacked.save(file, format="PNG"))

        return keep

    def drawn(self, sequence: Sequence, kinds: list[str], t: int) -> dict[str, np.ndarray]:
        """{kind: object numbers (H, W)} of frame t. kinds: those that were drawn, in order."""
        with Image.open(self.pictures(sequence) / f"{t:05d}.png") as image:
            parts = np.split(np.asarray(image), len(kinds))
        return dict(zip(kinds, parts, strict=True))
