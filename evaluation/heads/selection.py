"""Inputs and outputs common to all heads, and the choice of a setting: on validation, never on test."""

from dataclasses import dataclass

import numpy as np
import torch

from evaluation.backbones.contract import Features

Array = torch.Tensor | np.ndarray
MOMENTS_CHUNK = 512  # clips that are standardised at a time


@dataclass
class Chosen:
    """Results of heads whose settings were chosen; the first axes are layers and tasks, (L, T).

    settings: the grid, a dict per setting, such as {"lr": 0.001, "weight_decay": 0.1}, {"penalty": 0.01} or {"k": 20}.
    choice: the number of the chosen setting, (L, T). val_accuracy, val_loss (nats): of that setting, (L, T).
    test_predictions: class numbers, (L, T, N), of clips or of items of several clips. test_probabilities: (L, T, N, C)
    of these items, 0 for classes that a task lacks; None unless they were asked for.
    """

    settings: list[dict[str, float]]
    choice: torch.Tensor
    val_accuracy: torch.Tensor
    val_loss: torch.Tensor
    test_predictions: torch.Tensor
    test_probabilities: torch.Tensor | None = None

    def setting(self, layer: int, task: int) -> dict[str, float]:
        """The chosen setting; `layer` counts the first axis."""
        return self.settings[int(self.choice[layer, task])]

    def rank(self, layer: int, task: int) -> tuple[float, float]:
        """The key by which layers and heads are chosen; larger is better on validation."""
        return self.val_accuracy[layer, task].item(), -self.val_loss[layer, task].item()


def choose(accuracy: torch.Tensor, loss: torch.Tensor, count: int) -> torch.Tensor:
    """Index of the best of S settings on `count` validation clips: accuracy and loss (..., S) -> (...).

    Among the settings whose accuracy is within half a standard error of the best, the one with the lowest loss: on a
    few hundred clips the highest of many accuracies is mostly luck. Half a standard error, because all settings are
    scored on the same clips and their differences vary less than each score. A head that diverged has a loss that is
    not finite and is never chosen.

    Raises:
        ValueError: all settings diverged.
    """
    if not loss.isfinite().any(-1).all():
        raise ValueError("Every head diverged for some layer and label; use smaller learning rates.")
    accuracy = accuracy.masked_fill(~loss.isfinite(), float("-inf"))
    top = accuracy.max(-1, keepdim=True).values
    near = accuracy >= top - 0.5 * (top * (1 - top) / count).sqrt()
    return loss.masked_fill(~near, float("inf")).argmin(-1)


def missing_classes(classes: list[int]) -> torch.Tensor:
    """(T, C): True on classes that a task does not have; tasks are padded to the largest one."""
    return torch.arange(max(classes))[None] >= torch.tensor(classes)[:, None]


def clips(array: Array, rows: torch.Tensor | slice) -> torch.Tensor:
    """Some clips of (L, N, ...), a tensor or a memory-mapped array, as float32 (L, n, ...); only these are read."""
    if isinstance(array, torch.Tensor):
        return array[:, rows].float()
    rows = rows.numpy() if isinstance(rows, torch.Tensor) else rows
    return torch.from_numpy(np.array(array[:, rows], dtype=np.float32))


def features_of(kind: str, of_tokens: bool, *sets: Features) -> list[Array]:
    """The arrays that this kind of head reads from each set: (L, N, P) or (L, N, n, D).

    Raises:
        ValueError: tokens that were not kept, or sets of different layers.
    """
    if any(list(features.layers) != list(sets[0].layers) for features in sets):
        raise ValueError("Training, validation and test features are of different layers; extract the same ones.")
    arrays = [features.tokens if of_tokens else features.pooled for features in sets]
    if any(array is None for array in arrays):
        raise ValueError(f"{kind} heads read tokens, which these features lack; extract them with max_tokens.")
    return arrays


class Moments:
    """Mean and standard deviation over `axes` (1 among them) of (L, N, ...), of which `add` takes some clips at a time.

    A deviation that is 0 up to rounding counts as 1, so that a constant feature stays 0.
    """

    def __init__(self, axes: tuple[int, ...]):
        self.axes, self.count, self.mean, self.square = axes, 0, 0.0, 0.0

    def add(self, part: torch.Tensor) -> None:
        """part: float32 (L, n, ...)."""
        variance, centre = (x.double() for x in torch.var_mean(part, self.axes, correction=0, keepdim=True))
        size = part.numel() // variance.numel()
        # joins the moments of two sets without the cancellation of a mean of squares
        self.count, shift, share = self.count + size, centre - self.mean, size / (self.count + size)
        self.mean = self.mean + share * shift
        self.square = self.square + size * variance + (self.count - size) * share * shift**2

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean, deviation), float32, with the reduced axes kept. Raises ValueError for values that are not finite."""
        std = (self.square / self.count).sqrt()
        if not (std.isfinite().all() and self.mean.isfinite().all()):
            raise ValueError("The features of a layer contain NaN or infinity; check the backbone's outputs.")
        std = std.masked_fill(std <= 1e-6 * (1 + self.mean.abs()), 1.0)
        return self.mean.float(), std.float()


def train_moments(array: Array, axes: tuple[int, ...], chunk: int = MOMENTS_CHUNK) -> tuple[torch.Tensor, torch.Tensor]:
    """The `Moments` of all clips of an array, read some clips at a time."""
    moments = Moments(axes)
    for start in range(0, array.shape[1], chunk):
        moments.add(clips(array, slice(start, start + chunk)))
    return moments.result()


def check_labels(labels: torch.Tensor, classes: list[int], count: int, part: str) -> None:
    """Raises ValueError unless labels are class numbers (N, T) of N = count clips."""
    if tuple(labels.shape) != (count, len(classes)):
        raise ValueError(
            f"The {part} labels have shape {tuple(labels.shape)}; {count} clips and {len(classes)} tasks need "
            f"{(count, len(classes))}."
        )
    wrong = ((labels < 0) | (labels >= torch.tensor(classes))).nonzero()
    if len(wrong):
        row, task = wrong[0].tolist()
        raise ValueError(
            f"Label {int(labels[row, task])} of {part} clip {row} is out of range: task {task} has classes 0 to "
            f"{classes[task] - 1}."
        )


def add_by_item(total: torch.Tensor | None, likely: torch.Tensor, items: torch.Tensor, count: int) -> torch.Tensor:
    """Adds the probabilities (..., n, C) of n clips to the sums of their items (n,), (..., count, C)."""
    if total is None:
        total = likely.new_zeros(*likely.shape[:-2], count, likely.shape[-1])
    return total.index_add_(-2, items, likely)


def join_layers(parts: list[Chosen]) -> Chosen:
    """Heads of different layers, on the same clips and with the same settings, as one `Chosen`."""
    first = parts[0]
    probabilities = None if first.test_probabilities is None else torch.cat([part.test_probabilities for part in parts])
    joined = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in ("choice", "val_accuracy", "val_loss", "test_predictions")
    }
    return Chosen(first.settings, **joined, test_probabilities=probabilities)


def merge_folds(folds: list[tuple[torch.Tensor, Chosen]]) -> Chosen:
    """Heads of several folds of the test clips as one `Chosen`.

    folds: pairs of (numbers of the fold's clips or items, its heads). Each clip has the prediction of its own fold;
    validation accuracy and loss are means over folds, and the setting is that of the first fold.
    """
    first = folds[0][1]
    count = sum(len(rows) for rows, _ in folds)
    predictions, probabilities = torch.empty(*first.choice.shape, count, dtype=torch.long), None
    if first.test_probabilities is not None:
        probabilities = torch.empty(*predictions.shape, first.test_probabilities.shape[-1])
    for rows, chosen in folds:
        predictions[..., rows] = chosen.test_predictions
        if probabilities is not None:
            probabilities[:, :, rows] = chosen.test_probabilities
    accuracy, loss = (
        torch.stack([getattr(chosen, name) for _, chosen in folds]).mean(0) for name in ("val_accuracy", "val_loss")
    )
    return Chosen(first.settings, first.choice, accuracy, loss, predictions, probabilities)
