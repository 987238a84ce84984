"""`toto prompt run`: draws the labels of pictures, after examples."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokenization.terminal.next_command import beside, say_next
from training.flags import option, parse, require, require_choice
from training.prompting.tasks import TASKS

DESCRIPTION = (
    "Draw the labels of pictures with a model of toto prompt train. Examples come first in the prompt: pairs of your "
    "own, or scenes of toyworld:motion. A picture of inputs and labels is written, and the labels' numbers next to it "
    "(.npy, of shape pictures x labels x side x side)."
)


@dataclass(frozen=True)
class PromptDrawArgs:
    model: str | None = option(None, "a model of toto prompt train: run folder or Hugging Face folder")
    task: str | None = option(None, "depth, flow or segmentation; needed only if the model was tuned on several")
    inputs: list[str] = option([], "pictures; for flow two for each label, the first and the second")
    examples: str | None = option(
        None, "folder of pairs for the prompt, as of toto prompt train --data (default: scenes of toyworld:motion)"
    )
    seed: int = option(0, "which examples, and which colours of classes")
    output: str | None = option(None, "picture to write (.png)")

    def __post_init__(self):
        require(bool(self.model), "--model MODEL is missing; name a model of toto prompt train.")
        require(bool(self.inputs), "--inputs FILE is missing; name a picture.")
        require_choice(self, "task", TASKS)
        require(
            self.output is not None and self.output.endswith(".png"),
            f"--output is '{self.output}'; name a file that ends in .png.",
        )


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((PromptDrawArgs,), argv, "toto prompt run", DESCRIPTION)
    for file in args.inputs:
        if not Path(file).is_file():
            raise FileNotFoundError(f"There is no picture '{file}'; check the path.")

    from evaluation.prompt.drawing import load
    from evaluation.prompt.figures import sheet
    from tokenization.files import write_whole
    from tokenization.image_processing_toto import resize_and_crop

    prompted = load(args.model)
    side = prompted.processor.resolution
    pictures = np.stack([resize_and_crop(file, side) for file in args.inputs])
    task, rows, numbers, frames = label_pictures(prompted, pictures, args.task, args.examples, args.seed)
    picture = sheet({task.name: {"task": task, "rows": rows, "frames": {"tuned": frames}}}, len(rows))
    output = Path(args.output)
    write_whole(output, lambda file: picture.save(file, format="PNG"))
    write_whole(output.with_suffix(".npy"), lambda file: _save(file, numbers))
    print(
        f"wrote {output} and {output.with_suffix('.npy')}: {task.name} from {task.low:g} to {task.high:g} {task.unit}"
    )
    score = ["--task", task.name, "--output", beside(output, "score.json")]
    say_next("prompt", "score", "--model", args.model, *score)


def _save(file: Path, numbers: np.ndarray) -> None:
    with file.open("wb") as opened:  # np.save would add a suffix to a path
        np.save(opened, numbers)


def label_pictures(
    prompted, pictures: np.ndarray, name: str | None = None, examples: str | None = None, seed: int = 0
) -> tuple:
    """Draw the labels of pictures.

    Args:
        prompted: of `drawing.load`. pictures: uint8 (N * inputs, R, R, 3). name: of the task.
        examples: a folder of pairs; None takes training scenes of toyworld:motion.
    Returns:
        (task, rows, numbers, frames): the task; the prompts with the drawn labels, uint8 (N, frames, R, R, 3); the
        labels as float32 (N, labels, R, R), and as frames uint8 (N, labels, R, R, 3).
    Raises:
        ValueError: an unknown task, or pictures that do not make whole groups. FileNotFoundError: no prompt.json.
    """
    from evaluation.prompt.drawing import decoded, draw, encoded
    from training.prompting.examples import PairExamples, WorldExamples
    from training.prompting.tasks import read_prompting
    from training.rows.prompted_rows import episode_coding, episode_frames

    prompting, side = read_prompting(prompted.path), prompted.processor.resolution
    known = ", ".join(prompting.tasks)
    if name is None:
        require(len(prompting.tasks) == 1, f"The model knows several tasks; name one with --task: {known}.")
        name = next(iter(prompting.tasks))
    require(name in prompting.tasks, f"The model was not tuned on {name}, only on {known}; choose one of these.")
    task = prompting.tasks[name]
    require(
        len(pictures) % task.inputs == 0,
        f"{name} needs {task.inputs} pictures for each label, but {len(pictures)} were given; give whole groups.",
    )
    source = WorldExamples(task, "train", seed, side) if examples is None else PairExamples(task, examples, seed, side)
    coding = episode_coding(task, prompting.codings[name], seed, 0)
    before = episode_frames(source.episode(0)[:-1], coding)
    groups = pictures.reshape(-1, task.inputs, *pictures.shape[1:])
    empty = np.zeros((len(task.labels), side, side, 3), np.uint8)
    rows = np.stack([np.concatenate([before, group, empty]) for group in groups])
    codes = draw(
        prompted.model, encoded(prompted.processor, rows), task, task.prompt_id, batch_size=32, label=f"{name} labels"
    )
    frames = decoded(prompted.processor, codes)
    rows[:, -len(task.labels) :] = frames
    return task, rows, np.stack([coding.read(each) for each in frames]), frames
