"""`toto prompt score --data`: drawn labels of a folder's pairs, one by one, each after examples that it is not among.

A handful of pairs supports no mean and no interval, so there are none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from training.flags import require
from training.prompting.tasks import TASKS

if TYPE_CHECKING:
    from evaluation.prompt.results import PairScore
    from training.prompting.examples import Example
    from training.prompting.tasks import Coding, Prompting, Task

WORLD = "toyworld:motion"


@dataclass(frozen=True)
class Query:
    """A pair and what a prompt shows before it.

    Fields:
        name: of the pair. group: the examples, then the pair itself. names: of the examples.
        wrong: the same images, in which each example has the label of another; None if there is no other.
        mean: mean map of the other pairs, (labels, R, R); None without others.
    """

    name: str
    group: list[Example]
    names: list[str]
    wrong: list[Example] | None
    mean: np.ndarray | None


def open_queries(task: Task, coding: Coding, data: str, seed: int, resolution: int) -> tuple[list[Query], str]:
    """(each pair of a folder as a query, where the examples come from: the folder, or the embedded world).

    The examples of a pair are other pairs, in an order that is drawn by seed. If there are too few for a row, all
    examples of all pairs are training scenes of the embedded world. These show the colours of the world's classes, not
    of the folder's.

    Raises:
        FileNotFoundError, ValueError: the folder is not as `PairExamples` wants it; a class that the model does not
        know; too few pairs for a model whose numbers are not those of the embedded world.
    """
    from training.prompting.examples import PairExamples, WorldExamples

    pairs = PairExamples(replace(task, groups=1), data, seed, resolution)
    names = [each[0].stem if isinstance(each, tuple) else f"row {each}" for each in pairs.pairs]
    found = [pairs.read(k) for k in range(len(names))]
    for each in found:
        _check(each, task, coding)
    needed = task.groups - 1
    from_folder = len(found) > needed
    require(
        from_folder or task == TASKS[task.name],
        f"{data} holds {len(found)} pairs, but a row of {task.name} needs {task.groups}, and scenes of {WORLD} cannot "
        f"be the examples of a model with the range {task.low:g} to {task.high:g}; add pairs.",
    )
    queries = []
    for k, pair in enumerate(found):
        others = [i for i in range(len(found)) if i != k]
        order = np.random.default_rng([seed, task.prompt_id, k]).permutation(others).astype(int)
        pool, known = [found[i] for i in order], [names[i] for i in order]
        if not from_folder:
            pool = WorldExamples(task, "train", seed, resolution).episode(k)
            known = [each.name for each in pool]
        wrong = None
        if len(pool) > 1:
            after = pool[1:] + pool[:1]
            wrong = [replace(a, truth=b.truth) for a, b in zip(pool[:needed], after[:needed], strict=True)]
            wrong.append(pair)
        mean = mean_of(task, np.stack([coding.clip(found[i].truth) for i in others])) if others else None
        queries.append(Query(names[k], [*pool[:needed], pair], known[:needed], wrong, mean))
    return queries, data if from_folder else f"training scenes of {WORLD}"


def _check(example: Example, task: Task, coding: Coding) -> None:
    """Raises ValueError if there is nothing to judge, or a class that has no colour."""
    known = example.truth[~np.isnan(example.truth)]
    require(len(known) > 0, f"The label {example.name} has no known number in its central square; leave the pair out.")
    if task.name == "segmentation":
        unlike = sorted(set(np.unique(known)) - set(coding.values))
        require(
            not unlike,
            f"The label {example.name} has the class {unlike[0] if unlike else 0:g}, but the model knows the classes "
            f"{coding.values.min():g} to {coding.values.max():g}; number them so.",
        )


def mean_of(task: Task, truth: np.ndarray) -> np.ndarray:
    """The mean of labels at every pixel, of classes the most frequent one: (N, labels, R, R) -> (labels, R, R).

    Unknown numbers are left out. Where no label is known, it is the mean over all pixels.
    """
    if task.name == "segmentation":
        return np.stack([(truth == k).sum(0) for k in range(int(task.high) + 1)]).argmax(0).astype(np.float32)
    known = ~np.isnan(truth)
    numbers, count = np.where(known, truth, 0), known.sum(0)
    overall = (numbers.sum((0, 2, 3)) / known.sum((0, 2, 3)).clip(1))[:, None, None]
    return np.where(count > 0, numbers.sum(0) / count.clip(1), overall).astype(np.float32)


def shares(truth: np.ndarray, coding: Coding) -> tuple[float, float]:
    """(share of the pixels of a label (labels, R, R) that is known, share of these outside of the model's range)."""
    known = ~np.isnan(truth).any(0)
    outside = ((truth < coding.values.min()) | (truth > coding.values.max())).any(0)
    return float(known.mean()), float(outside[known].mean())


def known_tokens(truth: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Which tokens of label frames show known pixels only: (N, labels, R, R) -> bool (N, labels, h, w)."""
    count, labels, height, width = truth.shape
    patches = truth.reshape(count, labels, grid[0], height // grid[0], grid[1], width // grid[1])
    return ~np.isnan(patches).any((3, 5))


def score_pairs(
    name: str, data: str, seed: int, batch_size: int, prompting: Prompting, models: dict
) -> tuple[list[PairScore], str, dict]:
    """The scores of every pair.

    Args:
        name: of the task. data: folder of pairs. seed: of the order of examples, and of the colours of classes.
        models: "tuned" -> `drawing.Prompted`, and perhaps "scratch" and "untuned".
    Returns:
        (scores, where the examples come from, the label frames of every way for the sheet).
    """
    from evaluation.prompt.drawing import decoded, draw, encoded, token_nats
    from evaluation.prompt.measures import PAIR_MEASURES, measure
    from evaluation.prompt.results import PairScore
    from training.rows.prompted_rows import episode_coding, episode_frames

    task, coding, processor = prompting.tasks[name], prompting.codings[name], models["tuned"].processor
    queries, source = open_queries(task, coding, data, seed, processor.resolution)
    codings = [episode_coding(task, coding, seed, k) for k in range(len(queries))]
    rows = np.stack([episode_frames(each.group, colours) for each, colours in zip(queries, codings, strict=True)])
    codes, count = encoded(processor, rows), len(task.labels)
    truth = np.stack([coding.clip(each.group[-1].truth) for each in queries])
    ways = {"tuned": ("tuned", codes)} | {way: (way, codes) for way in ("scratch", "untuned") if way in models}
    if all(each.wrong for each in queries):
        wrong = [episode_frames(each.wrong, colours) for each, colours in zip(queries, codings, strict=True)]
        ways["wrong_examples"] = ("tuned", encoded(processor, np.stack(wrong)))
    frames, values = {"ceiling": decoded(processor, codes[:, -count:])}, {}
    judged, nats = known_tokens(truth, codes.shape[2:]), {}
    for way, (which, given) in ways.items():
        model = models[which].model
        frames[way] = decoded(processor, draw(model, given, task, task.prompt_id, batch_size, f"{name}, {way}"))
        losses = token_nats(model, given, task, task.prompt_id, batch_size)
        nats[way] = [
            float(each[known].mean()) if known.any() else None for each, known in zip(losses, judged, strict=True)
        ]
    for way, drawn in frames.items():
        numbers = np.stack([colours.read(each) for colours, each in zip(codings, drawn, strict=True)])
        values[way] = measure(numbers, truth, task)
    if all(each.mean is not None for each in queries):
        mean = np.stack([each.mean for each in queries])
        values["mean_map"] = measure(mean, truth, task)
        frames["mean_map"] = np.stack([colours.paint(each) for colours, each in zip(codings, mean, strict=True)])
    background = task.colour_values(3)[0]  # the farthest depth, no motion, no class
    values["background"] = measure(np.full_like(truth, background), truth, task)
    scores = []
    for k, query in enumerate(queries):
        known, clipped = shares(query.group[-1].truth, coding)
        own = {key: {way: _number(found[key][k]) for way, found in values.items()} for key in PAIR_MEASURES[name]}
        own["nats"] = {way: found[k] for way, found in nats.items()}
        scores.append(PairScore(pair=query.name, examples=query.names, known=known, clipped=clipped, scores=own))
    shown = {"task": task, "rows": rows, "frames": {"truth": rows[:, -count:], **frames}}
    return scores, source, {name: shown}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
