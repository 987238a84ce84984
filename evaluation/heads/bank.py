"""Heads on frozen features: all layers, labels and settings are trained at once and selected on validation only.

No head sees the test set before its setting is fixed, and all heads share the features of one backbone pass.
`make_head` makes any of HEADS: those trained by gradient steps (`HeadBank`), and closed forms as a check.
"""

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from torch import distributed

from evaluation.backbones.contract import Features
from evaluation.heads import BANKS, CLOSED_FORMS, HEADS, TOKEN_HEADS
from evaluation.heads.checkpoint import HeadCheckpoint, fingerprint
from evaluation.heads.closed_form import ClosedForm
from evaluation.heads.selection import (
    Array,
    Chosen,
    add_by_item,
    check_labels,
    choose,
    clips,
    features_of,
    missing_classes,
    train_moments,
)
from evaluation.heads.stacked import AttentionHeads, CrossAttentionHeads, LinearHeads, StackedAdamW, sum_over_ranks
from tokenization.terminal.progress import tqdm

# The paper does not give the probe's recipe. Linear heads: half-decades around what AdamW needs on standardised
# features, as DINOv2 spans three and a half decades with SGD; the smallest rates act as early stopping, which helps
# wide features with few clips. DINOv2 has no weight decay: correlated features learn fastest without it, rare ones
# overfit least with it. Attention heads contain linear ones, and need rates as high, as many epochs and as little
# decay: with V-JEPA 2's, which are made for deeper heads, they lost to them (docs/log.md). Heads with an MLP: the
# middle of V-JEPA 2's five rates (1e-4 to 5e-3) and the ends of its four decays (0.01 to 0.8), for 20 epochs as there;
# all twenty settings would cost three times as much on a CPU.
LEARNING_RATES = {
    "linear": (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "attention": (1e-3, 3e-3, 1e-2, 3e-2),
    "cross_attention_mlp": (1e-4, 3e-4, 1e-3),
}
WEIGHT_DECAYS = {"linear": (0.0, 0.1), "attention": (0.0, 0.1), "cross_attention_mlp": (0.01, 0.8)}
EPOCHS = {"linear": 60, "attention": 60, "cross_attention_mlp": 20}
Heads = LinearHeads | AttentionHeads | CrossAttentionHeads


class HeadBank:
    """Trains one kind of head on every layer, for every task, learning rate and weight decay; selects on validation.

    With several processes (torch.distributed), each holds all features and computes its part of every batch. Gradients
    are summed, so that the results equal those of one process up to rounding.

    Args:
        kind: "linear" (on `Features.pooled`), "attention" or "cross_attention_mlp" (on `Features.tokens`). All features
            are standardised with statistics of the training set.
        classes: number of classes of each task (label column).
        batch_norm: for linear heads only; see `LinearHeads`.
        seed: of the initial weights and the order of the clips.
    """

    def __init__(
        self,
        kind: str,
        classes: list[int],
        learning_rates: tuple[float, ...] | None = None,
        weight_decays: tuple[float, ...] | None = None,
        epochs: int | None = None,
        batch_size: int = 256,
        batch_norm: bool = False,
        seed: int = 0,
    ):
        if kind not in BANKS:
            raise ValueError(f"There is no trained head {kind!r}; the trained heads are {', '.join(BANKS)}.")
        if batch_norm and kind != "linear":
            raise ValueError(f"{kind} heads have no batch normalisation; use batch_norm with linear heads.")
        self.kind, self.classes, self.seed = kind, list(classes), seed
        self.rates = tuple(learning_rates or LEARNING_RATES[kind])
        self.decays = tuple(WEIGHT_DECAYS[kind] if weight_decays is None else weight_decays)
        self.settings = [{"lr": rate, "weight_decay": decay} for rate, decay in product(self.rates, self.decays)]
        self.epochs = epochs or EPOCHS[kind]
        self.batch_size, self.batch_norm, self.device = batch_size, batch_norm, torch.device("cpu")

    def to(self, device: torch.device | str) -> "HeadBank":
        """The same bank, which trains on this device."""
        self.device = torch.device(device)
        return self

    def facts(self) -> dict:
        """Everything that the results depend on apart from the data."""
        names = ("kind", "classes", "settings", "epochs", "batch_size", "batch_norm", "seed")
        return {name: getattr(self, name) for name in names}

    def run(
        self,
        train: Features,
        train_labels: torch.Tensor,
        validation: Features,
        validation_labels: torch.Tensor,
        test: Features,
        progress: bool = False,
        items: torch.Tensor | None = None,
        checkpoint: Path | None = None,
        probabilities: bool = False,
    ) -> Chosen:
        """Train the heads, select on validation, and predict the test set, whose labels are not needed.

        Args:
            train, validation, test: features of the same layers, tensors or memory-mapped arrays, read in batches.
            train_labels, validation_labels: class numbers, (N, T).
            items: number of the item (video) of each test clip, (N,); predictions are then per item, from the mean
                probabilities of its clips.
            checkpoint: a file from which a killed run resumes. It loses at most `SAVE_SECONDS` of work and gives the
                same numbers.
            probabilities: keep those of the items in the result and in the checkpoint: 4 bytes for every layer, task,
                item and class.
        Raises:
            ValueError: tokens were not kept, labels are out of range, the checkpoint is of another run, or all heads
                diverged.
        """
        arrays = features_of(self.kind, self.kind in TOKEN_HEADS, train, validation, test)
        labels = (train_labels, validation_labels)
        for part, array, values in zip(("train", "validation"), arrays, labels, strict=False):
            check_labels(values, self.classes, array.shape[1], part)
        units = [slice(None)] if self.kind == "linear" else [slice(k, k + 1) for k in range(len(arrays[0]))]
        facts = self.facts() | (fingerprint(arrays, [*labels, items]) if checkpoint else {})
        saved = HeadCheckpoint(checkpoint, facts | ({"probabilities": True} if probabilities else {}))

        steps = self.epochs * self.steps_per_epoch(arrays[0].shape[1])
        done = len(saved.finished) * steps + saved.steps
        bar = tqdm(total=len(units) * steps, initial=done, desc=f"{self.kind} heads", unit="step", disable=not progress)
        for unit in units[len(saved.finished) :]:
            sets = [array[unit] for array in arrays]
            heads = self.build(*train_moments(sets[0], self.moment_axes))
            self._fit(heads, sets[0], train_labels, saved, bar.update)
            saved.finish(self._choose(heads, sets[1], validation_labels, sets[2], items, probabilities))
        bar.close()
        return Chosen(self.settings, **saved.results())

    @property
    def moment_axes(self) -> tuple[int, ...]:
        """The axes of (L, N, P) or (1, N, n, D) over which features are standardised."""
        return (1,) if self.kind == "linear" else (0, 1, 2)

    def build(self, mean: torch.Tensor, std: torch.Tensor, settings: slice = slice(None)) -> Heads:
        """New heads for some of the settings. mean, std: of the training set, over `moment_axes`, which are kept."""
        counts = (len(self.classes), len(self.settings[settings]), max(self.classes))
        if self.kind == "linear":
            heads = LinearHeads(mean, std, *counts, self.batch_norm)
        else:
            kinds = {"attention": AttentionHeads, "cross_attention_mlp": CrossAttentionHeads}
            heads = kinds[self.kind](mean.flatten(), std.flatten(), *counts, self.seed)
        return heads.to(self.device)

    def optimiser(self, heads: Heads, settings: slice = slice(None)) -> StackedAdamW:
        """The optimiser of heads that were built for these settings."""
        chosen = self.settings[settings]
        rates, decays = (torch.tensor([s[key] for s in chosen]) for key in ("lr", "weight_decay"))
        return StackedAdamW(heads, rates.to(self.device), decays.to(self.device))

    def steps_per_epoch(self, count: int) -> int:
        """Updates in an epoch of `count` clips."""
        return math.ceil(count / self._size(count))

    def _size(self, count: int) -> int:
        """Number of clips in a batch; there are at least eight updates per epoch, so that small sets converge too."""
        return min(self.batch_size, max(8, count // 8))

    def batches(self, count: int, epoch: int) -> tuple[torch.Tensor, ...]:
        """The clips of each batch of an epoch, by number.

        The order depends only on the epoch's number, so that resuming needs no generator state.
        """
        order = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(count, generator=order).split(self._size(count))

    def _fit(self, heads: Heads, train: Array, labels: torch.Tensor, saved: HeadCheckpoint, update: Callable) -> None:
        count = train.shape[1]
        per_epoch = self.steps_per_epoch(count)
        optimiser = self.optimiser(heads)
        if saved.steps:
            optimiser.load(saved.state, saved.steps)
        heads.train()
        for epoch in range(optimiser.steps // per_epoch, self.epochs):
            for batch in self.batches(count, epoch)[optimiser.steps - epoch * per_epoch :]:
                rows = _of_this_rank(batch).sort().values  # a memory-mapped file is read in its own order
                self.backward(heads, clips(train, rows).to(self.device), labels[rows], len(batch))
                _sum_gradients(heads)
                optimiser.step(self.schedule(optimiser.steps, count))
                update()
                if saved.due():
                    saved.save(optimiser.state(), optimiser.steps)

    def backward(self, heads: Heads, x: torch.Tensor, labels: torch.Tensor, size: int) -> None:
        """Adds the gradients of the heads' losses on features x. labels: (B, T). size: clips of the whole batch.

        The gradient of the cross-entropy is summed over heads and averaged over the batch: each head gets the gradient
        that it would get alone, even if another one diverges.
        """
        logits = heads(x)  # (L, B, T, S, C)
        gradient = _softmax(logits.detach().masked_fill(self._missing(), float("-inf")))
        wanted = labels.to(self.device)[None, :, :, None, None].expand(*gradient.shape[:-1], 1)
        gradient.scatter_add_(-1, wanted, torch.full((), -1.0, device=self.device).expand(wanted.shape))
        logits.backward(gradient.div_(size))

    def schedule(self, steps: int, count: int) -> float:
        """The factor on the rates after `steps` of the updates on `count` clips: half a cosine."""
        return 0.5 * (1 + math.cos(math.pi * steps / (self.epochs * self.steps_per_epoch(count))))

    def _missing(self) -> torch.Tensor:
        return missing_classes(self.classes)[:, None].to(self.device)  # (T, 1, C)

    def log_probabilities(self, heads: Heads, x: torch.Tensor) -> torch.Tensor:
        """(L, B, T, S, C) of features x."""
        return heads(x).masked_fill(self._missing(), float("-inf")).log_softmax(-1)

    @torch.no_grad()
    def judge(self, heads: Heads, x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums over clips with labels (B, T): (right predictions, losses), float64 (L, T, S)."""
        scores = self.log_probabilities(heads, x)
        wanted = labels.to(self.device)[None, :, :, None]  # (1, B, T, 1)
        right = (scores.argmax(-1) == wanted).sum(1, dtype=torch.float64)
        loss = -scores.gather(-1, wanted[..., None].expand(*scores.shape[:-1], 1))[..., 0].double().sum(1)
        return right, loss

    @torch.no_grad()
    def _choose(
        self,
        heads,
        validation: Array,
        labels: torch.Tensor,
        test: Array,
        items: torch.Tensor | None,
        probabilities: bool,
    ) -> dict:
        heads.eval()
        right = loss = 0
        for batch in torch.arange(validation.shape[1]).split(self.batch_size):
            rows = _of_this_rank(batch)
            its_right, its_loss = self.judge(heads, clips(validation, rows).to(self.device), labels[rows])
            right, loss = right + its_right, loss + its_loss
        accuracy, loss = (sum_over_ranks(x).cpu() / validation.shape[1] for x in (right, loss))  # (L, T, S)
        best = choose(accuracy, loss, validation.shape[1])
        heads.keep(best.to(self.device))
        predictions, likely, counts = [], None, None if items is None else items.bincount()
        for rows in torch.arange(test.shape[1]).split(self.batch_size):
            scores = self.log_probabilities(heads, clips(test, rows).to(self.device))
            scores = scores[..., 0, :].transpose(1, 2).cpu()  # (L, T, B, C)
            if items is None:
                predictions.append(scores.argmax(-1))
            else:
                likely = add_by_item(likely, scores.exp(), items[rows], len(counts))
        result = {
            "choice": best,
            "val_accuracy": accuracy.gather(-1, best[..., None])[..., 0].float(),
            "val_loss": loss.gather(-1, best[..., None])[..., 0].float(),
        }
        if items is None:
            return result | {"test_predictions": torch.cat(predictions, 2)}
        kept = {"test_probabilities": likely / counts[:, None]} if probabilities else {}
        return result | {"test_predictions": likely.argmax(-1)} | kept


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    """Softmax over the last axis, in place; with few classes, seven times as fast as torch's on a CPU."""
    logits.sub_(logits.amax(-1, keepdim=True)).exp_()
    return logits.div_(logits.sum(-1, keepdim=True))


def _of_this_rank(rows: torch.Tensor) -> torch.Tensor:
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    return rows.tensor_split(distributed.get_world_size())[distributed.get_rank()]


def _sum_gradients(heads: torch.nn.Module) -> None:
    for p in heads.parameters():
        sum_over_ranks(p.grad)


def make_head(kind: str, classes: list[int], device: torch.device | str = "cpu", **options) -> HeadBank | ClosedForm:
    """A head of any kind in HEADS; `run(train, train_labels, validation, validation_labels, test, ...) -> Chosen`.

    options: of `HeadBank`. batch_norm is ignored by heads that are not linear, and all options by closed forms.
    """
    if kind not in HEADS:
        raise ValueError(f"There is no head {kind!r}; the heads are {', '.join(HEADS)}.")
    if kind in CLOSED_FORMS:
        return ClosedForm(kind, classes)
    if kind != "linear":
        options.pop("batch_norm", None)
    return HeadBank(kind, classes, **options).to(device)
