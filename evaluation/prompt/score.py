"""`toto prompt score`: drawn labels of held-out scenes against the exact truth, next to controls and the ceiling."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenization.terminal.next_command import say_next
from training.flags import option, parse, require, require_choice, require_positive
from training.prompting.tasks import TASKS

if TYPE_CHECKING:
    from evaluation.prompt.drawing import Prompted
    from evaluation.prompt.results import TaskScores, WayScore
    from training.prompting.tasks import Coding, Prompting, Task

DESCRIPTION = (
    "Draw the labels of held-out scenes of toyworld:motion after examples from other held-out scenes, and measure them "
    "against the exact truth: AbsRel and delta 1 of depth, end-point error of flow, mIoU of masks, and the likelihood "
    "of the true label tokens. Controls on the same items: the true label through the tokenizer (ceiling), the mean "
    "map, the same steps from scratch, the untuned model, another task's prompt id, another task's prompt (its id and "
    "its labels of the examples), and examples with wrong labels. With --data, the pairs of a folder one by one, each "
    "after examples from the others: a row per pair, and no mean."
)
MEAN_SEED, MEAN_ROWS = 7, 128  # training episodes whose labels make the mean map


@dataclass(frozen=True)
class PromptScoreArgs:
    model: str | None = option(None, "a model of toto prompt train: run folder or Hugging Face folder")
    task: str = option("all", "depth, flow, segmentation, or all that the model was tuned on")
    scratch: str | None = option(None, "control: a model of toto prompt train --from_scratch")
    untuned: str | None = option(None, "control: the model before the tuning (default: from the run's recipe)")
    data: str | None = option(
        None, "folder of pairs of one task, as of toto prompt train --data, instead of scenes of toyworld:motion"
    )
    split: str = option("test", "validation or test; not of --data")
    items: int = option(96, "held-out episodes per task; no two share a scene; of --data it is every pair")
    batch_size: int = option(32, "rows drawn at a time")
    sheet: int = option(3, "episodes (or pairs) of each task in the picture next to --output; 0 draws none")
    seed: int = option(0, "seed of the scenes and of the colours of classes")
    output: str | None = option(None, "result file to write (.json); a sheet (.png) is written next to it")

    def __post_init__(self):
        require(bool(self.model), "--model MODEL is missing; name a model of toto prompt train.")
        require(
            self.output is not None and self.output.endswith(".json"),
            f"--output is '{self.output}'; name a file that ends in .json.",
        )
        require_choice(self, "task", (*TASKS, "all"))
        require_choice(self, "split", ("validation", "test"))
        require(
            self.data is None or self.task != "all",
            f"--data {self.data} holds the labels of one task; name it with --task {', '.join(TASKS)}.",
        )
        require_positive(self, "items", "batch_size")
        require(self.items >= 2, "--items is 1; an interval needs at least 2.")


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((PromptScoreArgs,), argv, "toto prompt score", DESCRIPTION)

    from evaluation.prompt.drawing import load
    from evaluation.prompt.figures import sheet
    from evaluation.prompt.pairs import score_pairs
    from evaluation.prompt.results import PairsResult, PromptResult
    from evaluation.prompt.tables import pairs_table, table
    from evaluation.results import command_line
    from tokenization.files import write_json, write_whole
    from training.engine.device import versions
    from training.find_model import resolve_model
    from training.prompting.tasks import read_prompting

    prompting = read_prompting(resolve_model(args.model))
    names = list(prompting.tasks) if args.task == "all" else [args.task]
    require(
        set(names) <= set(prompting.tasks),
        f"{args.model} was not tuned on {args.task}, only on {', '.join(prompting.tasks)}; choose one of these.",
    )
    untuned = args.untuned or origin(args.model)
    models = {"tuned": load(args.model)}
    for way, name in (("scratch", args.scratch), ("untuned", untuned)):
        if name is not None:
            models[way] = load(name)
            check_same(models["tuned"], models[way], name)
    processor, began = models["tuned"].processor, time.perf_counter()
    common = {
        "command": command_line("prompt", ["score", *argv]),
        "model": args.model,
        "scratch": args.scratch,
        "untuned": untuned,
        "steps": steps_of(args.model),
        "tokenizer": processor.fingerprint,
        "versions": versions(),
    }
    if args.data is not None:
        task, coding = prompting.tasks[args.task], prompting.codings[args.task]
        pairs, source, shown = score_pairs(args.task, args.data, args.seed, args.batch_size, prompting, models)
        result = PairsResult(
            **common,
            data=args.data,
            examples_from=source,
            task=args.task,
            low=task.low,
            high=task.high,
            unit=task.unit,
            levels=len(coding.values),
            side=processor.resolution,
            seed=args.seed,
            seconds=time.perf_counter() - began,
            pairs=pairs,
        )
        text = f"{pairs_table(result)}\nexamples: {source}"
    else:
        tasks, shown = {}, {}
        for name in names:
            tasks[name], shown[name] = score_task(name, args, prompting, models)
        result = PromptResult(
            **common,
            dataset="toyworld:motion",
            split=args.split,
            items=args.items,
            held_out_hues=list(prompting.held_out_hues),
            seeds={"scenes": args.seed, "mean_map": MEAN_SEED},
            seconds=time.perf_counter() - began,
            tasks=tasks,
        )
        text = table(result)
    output = Path(args.output)
    write_json(output, result.to_json())
    print(f"{text}\nwrote {output}")
    if args.sheet:
        picture = sheet(shown, args.sheet)
        write_whole(place := output.with_suffix(".png"), lambda file: picture.save(file, format="PNG"))
        print(f"wrote {place}")
    say_next("app", "--model", args.model)


def origin(model: str) -> str | None:
    """The model that a run was tuned from; None if it is no run folder, or the model is not there any more."""
    from training.flags import read_recipe

    if not (Path(model) / "recipe.yaml").is_file():
        return None
    named = read_recipe(Path(model)).get("model")
    return named if named and Path(named).is_dir() else None


def steps_of(model: str) -> int | None:
    """The optimiser steps of a run's newest checkpoint; None if it is no run folder."""
    from training.find_model import STEP, resolve_model

    found = STEP.search(Path(resolve_model(model)).name)
    return int(found[1]) if found else None


def check_same(tuned: Prompted, other: Prompted, name: str) -> None:
    """Raises ValueError if a control has other tokens than the tuned model."""
    require(
        tuned.processor.fingerprint == other.processor.fingerprint and tuned.processor.grid == other.processor.grid,
        f"{name} has another visual tokenizer or frame size than --model, so it cannot be compared; name a control "
        "of the same tokenizer.",
    )


@dataclass(frozen=True)
class Items:
    """The held-out episodes of a task.

    Fields:
        codings: of each episode. frames: uint8 (N, frames, R, R, 3). codes: (N, frames, h, w). truth: of the queries,
            (N, labels, R, R), within the range.
    """

    task: Task
    codings: list[Coding]
    frames: np.ndarray
    codes: np.ndarray
    truth: np.ndarray

    def read(self, frames: np.ndarray) -> np.ndarray:
        """The numbers of label frames (N, labels, R, R, 3)."""
        return np.stack([coding.read(each) for coding, each in zip(self.codings, frames, strict=True)])


def open_items(name: str, args: PromptScoreArgs, prompting: Prompting, processor) -> Items:
    """The episodes to score; hues held out of the tuning are among them."""
    from evaluation.prompt.drawing import encoded
    from training.prompting.examples import WorldExamples
    from training.rows.prompted_rows import episode_coding, episode_frames

    task, coding = prompting.tasks[name], prompting.codings[name]
    world = WorldExamples(task, args.split, args.seed, processor.resolution)
    episodes = [world.episode(k) for k in range(args.items)]
    codings = [episode_coding(task, coding, args.seed, k) for k in range(args.items)]
    frames = np.stack([episode_frames(*each) for each in zip(episodes, codings, strict=True)])
    truth = np.stack([coding.clip(each[-1].truth) for each in episodes])
    return Items(task, codings, frames, encoded(processor, frames), truth)


def score_task(name: str, args: PromptScoreArgs, prompting: Prompting, models: dict) -> tuple[TaskScores, dict]:
    """(the scores of a task, its label frames of every way for the sheet)."""
    from evaluation.prompt.drawing import decoded, draw, nats
    from evaluation.prompt.measures import MEASURES, measure
    from evaluation.prompt.results import TaskScores

    processor = models["tuned"].processor
    items = open_items(name, args, prompting, processor)
    task, count = items.task, len(items.task.labels)
    other = other_task(prompting, name)
    swapped_id = other.prompt_id if other else max(each.prompt_id for each in TASKS.values()) + 1
    held_out = tuple(hue + 1 for hue in prompting.held_out_hues) if name == "segmentation" else ()
    ways = {
        "tuned": ("tuned", items.codes, task.prompt_id),
        "wrong_examples": ("tuned", wrong_labels(items.codes, task), task.prompt_id),
        "swapped": ("tuned", items.codes, swapped_id),
    }
    if other:
        ways["swapped_prompt"] = ("tuned", labels_of(other, items, args, prompting, processor), swapped_id)
    ways |= {way: (way, items.codes, task.prompt_id) for way in ("scratch", "untuned") if way in models}
    frames = {"ceiling": decoded(processor, items.codes[:, -count:])}
    likelihood = {}
    for way, (which, codes, prompt_id) in ways.items():
        model = models[which].model
        drawn = draw(model, codes, task, prompt_id, args.batch_size, f"{name}, {way}")
        frames[way] = decoded(processor, drawn)
        likelihood[way] = nats(model, codes, task, prompt_id, args.batch_size)
    values = {way: measure(items.read(each), items.truth, task, held_out) for way, each in frames.items()}
    mean = mean_map(name, prompting, processor.resolution)
    values["mean_map"] = measure(np.broadcast_to(mean, items.truth.shape), items.truth, task, held_out)
    frames["mean_map"] = np.stack([coding.paint(mean) for coding in items.codings])
    for way, each in likelihood.items():
        values[way]["nats"] = each
    scores = {
        key: {way: way_score(each[key], values["tuned"][key], way) for way, each in values.items() if key in each}
        for key in MEASURES[name]
    }
    shown = {"task": task, "rows": items.frames, "frames": {"truth": items.frames[:, -count:], **frames}}
    coding = prompting.codings[name]
    found = TaskScores(
        prompt_id=task.prompt_id,
        swapped_id=swapped_id,
        low=task.low,
        high=task.high,
        unit=task.unit,
        levels=len(coding.values),
        scores=scores,
    )
    return found, shown


def other_task(prompting: Prompting, name: str) -> Task | None:
    """The next task that the model knows; None if it knows one task only."""
    names = list(prompting.tasks)
    other = names[(names.index(name) + 1) % len(names)]
    return prompting.tasks[other] if other != name else None


def labels_of(other: Task, items: Items, args: PromptScoreArgs, prompting: Prompting, processor) -> np.ndarray:
    """The same rows, in which the examples have the labels of another task, in its colours: (N, frames, h, w).

    A task with one label shows it in place of both of the other's; of one with two, the first is shown.
    """
    from evaluation.prompt.drawing import encoded
    from training.prompting.examples import WorldExamples
    from training.rows.prompted_rows import episode_coding

    world = WorldExamples(items.task, args.split, args.seed, processor.resolution)
    coding, count = prompting.codings[other.name], len(items.task.labels)
    examples = np.flatnonzero(items.task.is_label)[:-count]
    rows = []
    for k in range(args.items):
        colours = episode_coding(other, coding, args.seed, k)
        painted = [colours.paint(each.truth) for each in world.episode(k, other)[:-1]]
        rows.append(np.concatenate([[labels[i % len(labels)] for i in range(count)] for labels in painted]))
    found = items.codes.copy()
    found[:, examples] = encoded(processor, np.stack(rows))
    return found


def wrong_labels(codes: np.ndarray, task: Task) -> np.ndarray:
    """The same rows, in which the labels of the examples are those of the next item's examples."""
    found = codes.copy()
    examples = np.flatnonzero(task.is_label)[: -len(task.labels)]
    found[:, examples] = np.roll(codes, -1, axis=0)[:, examples]
    return found


def mean_map(name: str, prompting: Prompting, resolution: int) -> np.ndarray:
    """What is known without looking: the mean label of training scenes at every pixel, (labels, R, R).

    Of classes, it is the most frequent one.
    """
    from training.prompting.examples import WorldExamples

    task = prompting.tasks[name]
    world = WorldExamples(task, "train", MEAN_SEED, resolution, prompting.held_out_hues)
    truth = np.stack([each.truth for k in range(MEAN_ROWS // task.groups) for each in world.episode(k)])
    if name != "segmentation":
        return prompting.codings[name].clip(truth).mean(0)
    counts = np.stack([(truth == k).sum(0) for k in range(int(truth.max()) + 1)])
    return counts.argmax(0).astype(np.float32)


def way_score(values: np.ndarray, tuned: np.ndarray, way: str) -> WayScore:
    """The mean of the judged items, with its interval, and the tuned model's paired lead."""
    from evaluation.prompt.results import Difference, WayScore
    from training.scores import bootstrap_interval

    judged = ~np.isnan(values)
    if not judged.any():
        return WayScore(mean=None, ci95=None, items=0)
    found = values[judged]
    lead = None
    if way != "tuned":
        both = (tuned - values)[judged & ~np.isnan(tuned)]
        lead = Difference(mean=float(both.mean()), ci95=bootstrap_interval(both) if len(both) > 1 else None)
    interval = bootstrap_interval(found) if len(found) > 1 else None
    return WayScore(mean=float(found.mean()), ci95=interval, items=int(judged.sum()), tuned_minus=lead)
