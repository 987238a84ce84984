"""The tasks of prompts, how their labels become frames and back, and prompt.json, which stores both next to a model.

A label is a frame: each of its numbers is drawn in the nearest of a few colours and read back as the nearest colour's
number. With a tokenizer that can show all greys, the colours are the 256 greys, and a pixel is read by the mean of its
channels (paper App. A.11: grey-coded). Otherwise they are the few colours that it can show (`calibration`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tokenization.files import write_json
from training.flags import require

FILE = "prompt.json"


@dataclass(frozen=True)
class Task:
    """A task: rows of `groups` times its input frames and its label frames.

    Fields:
        prompt_id: the id after the start token.
        inputs: frames before the labels of a group. labels: what each label frame shows.
        low, high: clipping range of the label's numbers, in `unit`.
    """

    name: str
    prompt_id: int
    inputs: int
    labels: tuple[str, ...]
    groups: int
    low: float
    high: float
    unit: str

    @property
    def group(self) -> int:
        """Frames of a group."""
        return self.inputs + len(self.labels)

    @property
    def frames(self) -> int:
        """Frames of a row."""
        return self.groups * self.group

    @property
    def is_label(self) -> np.ndarray:
        """Which frames of a row are labels: bool (frames,)."""
        return np.tile(np.arange(self.group) >= self.inputs, self.groups)

    @property
    def is_learnt(self) -> np.ndarray:
        """Which frames of a row are trained on: bool (frames,).

        All labels, except for the first mask: its colours are drawn at random, and no example before it shows them.
        """
        later = np.arange(self.frames) >= (self.group if self.name == "segmentation" else 0)
        return self.is_label & later

    def colour_values(self, count: int) -> np.ndarray:
        """The numbers of `count` colours, of which the first is the background: (count,), or fewer.

        The background is what most pixels are: the farthest depth, no motion, no class. Colours of a signed number are
        as many on either side.
        """
        if self.name == "depth":
            return np.linspace(self.high, self.low, count)
        if self.name == "segmentation":
            return np.arange(count, dtype=float)
        steps = (count - 1) // 2
        positive = np.linspace(0, self.high, steps + 1)[1:]
        return np.concatenate([[0.0], -positive, positive])


TASKS = {
    "depth": Task("depth", 4, 1, ("depth",), 4, 1.0, 6.0, "m"),
    "flow": Task("flow", 5, 2, ("flow x", "flow y"), 2, -16.0, 16.0, "px"),
    "segmentation": Task("segmentation", 6, 1, ("mask",), 4, 0.0, 5.0, "class"),
}


@dataclass(frozen=True)
class Coding:
    """Numbers as colours: the n-th number is drawn in the n-th colour.

    Fields:
        values: (n,). colours: uint8 (n, 3), the background first; all different.
    """

    values: np.ndarray
    colours: np.ndarray

    @property
    def is_grey(self) -> bool:
        """Whether it is all 256 greys."""
        return len(self.colours) == 256

    def paint(self, truth: np.ndarray) -> np.ndarray:
        """Numbers (..., H, W), nan where they are unknown -> uint8 (..., H, W, 3); unknown ones are background."""
        known = np.where(np.isnan(truth), self.values[0], truth)
        order = np.argsort(self.values)
        middles = (self.values[order][1:] + self.values[order][:-1]) / 2
        return self.colours[order[np.searchsorted(middles, known)]]

    def read(self, frames: np.ndarray) -> np.ndarray:
        """Frames uint8 (..., H, W, 3) -> the numbers of the nearest colours, float32 (..., H, W)."""
        if self.is_grey:  # the nearest grey is the mean of the channels
            return self.values[np.rint(frames.mean(-1)).astype(int)].astype(np.float32)
        found, least = np.zeros(frames.shape[:-1], np.float32), np.full(frames.shape[:-1], np.inf)
        for value, colour in zip(self.values, self.colours.astype(float), strict=True):
            distance = ((frames - colour) ** 2).sum(-1)
            found, least = np.where(distance < least, value, found), np.minimum(distance, least)
        return found.astype(np.float32)

    def clip(self, truth: np.ndarray) -> np.ndarray:
        """Numbers within the range; unknown ones stay nan."""
        return truth.clip(self.values.min(), self.values.max())

    def permuted(self, order: np.ndarray) -> Coding:
        """The same numbers, of which all but the background have each other's colours. order: a permutation (n - 1)."""
        return Coding(self.values, np.concatenate([self.colours[:1], self.colours[1:][order]]))


def make_coding(task: Task, colours: np.ndarray) -> Coding:
    """The coding of a task in the colours that a tokenizer can show, background first (`calibration.colours_shown`).

    Greys are linear over the task's range, black being its lower end. Of few colours each stands for a number of its
    own (`Task.colour_values`).

    Raises:
        ValueError: too few colours for the task.
    """
    if len(colours) == 256 and task.name != "segmentation":
        return Coding(np.linspace(task.low, task.high, 256), colours)
    if len(colours) == 256:
        return _class_greys(task)
    values = task.colour_values(len(colours))
    require(
        len(values) > 2 and (task.name != "segmentation" or len(values) > task.high),
        f"The visual tokenizer shows only {len(colours)} colours, too few for {task.name} with numbers from "
        f"{task.low:g} to {task.high:g}; take a model with another tokenizer.",
    )
    return Coding(values, colours[: len(values)])


def _class_greys(task: Task) -> Coding:
    """Classes as greys at equal distances."""
    count = int(task.high) + 1
    require(count <= 32, f"{task.name} has {count} classes with the background; use at most 32.")
    levels = np.linspace(0, 255, count).round().astype(np.uint8)
    return Coding(np.arange(count, dtype=float), levels[:, None].repeat(3, 1))


@dataclass(frozen=True)
class Prompting:
    """What prompt.json holds: the tasks that a model was tuned on, and the coding of each.

    Fields:
        tokenizer: fingerprint of the visual tokenizer that the colours were chosen for.
        held_out_hues: hues of toyworld:motion that no row of segmentation had.
    """

    tokenizer: str
    tasks: dict[str, Task]
    codings: dict[str, Coding]
    held_out_hues: tuple[int, ...] = ()

    def write(self, folder: Path) -> None:
        """Write prompt.json into the folder."""
        content = {
            "tokenizer": self.tokenizer,
            "held_out_hues": list(self.held_out_hues),
            "tasks": {
                name: asdict(task)
                | {"values": self.codings[name].values.tolist(), "colours": self.codings[name].colours.tolist()}
                for name, task in self.tasks.items()
            },
        }
        write_json(Path(folder) / FILE, content)


def read_prompting(folder: str | Path) -> Prompting:
    """The prompt.json in a model's folder.

    Raises:
        FileNotFoundError: it has none. ValueError: it cannot be read.
    """
    file = Path(folder) / FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {FILE}, so the model was not tuned for prompts; run toto prompt train first."
        )
    try:
        content = json.loads(file.read_text())
        tasks, codings = {}, {}
        for name, entry in content["tasks"].items():
            codings[name] = Coding(np.array(entry.pop("values")), np.array(entry.pop("colours"), np.uint8))
            tasks[name] = Task(**entry | {"labels": tuple(entry["labels"])})
        return Prompting(content["tokenizer"], tasks, codings, tuple(content["held_out_hues"]))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} cannot be read ({error}); write it again with toto prompt train.") from error


def check_context(config, tasks: dict[str, Task]) -> None:
    """Raises ValueError if a row of a task does not fit the model's positions."""
    for task in tasks.values():
        needed = 3 + task.frames * config.tokens_per_frame  # start, prompt id, end
        require(
            needed <= config.max_position_embeddings,
            f"A row of {task.name} has {task.frames} frames, which is {needed} ids with its prompt id, but the model "
            f"has only {config.max_position_embeddings} positions; take a model with more.",
        )
