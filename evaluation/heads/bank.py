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
from tokenization.progress import tqdm

# The paper does not give the probe's recipe. Linear heads: half-decades around what AdamW needs on standardised
# features, as DINOv2 spans three and a half decades with SGD; the smallest rates act as early stopping, which helps
# wide features with few clips. DINOv2 has no weight decay: correlated features learn fastest without it, rare ones
# overfit least with it. Heads on tokens: the middle of V-JEPA 2's five rates (1e-4 to 5e-3) and the ends of its four
# decays (0.01 to 0.8), for 20 epochs as there; all twenty settings would cost three times as much on a CPU.
LEARNING_RATES = {
    "linear": (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "attention": (3e-4, 1e-3, 3e-3),
    "cross_attention_mlp": (1e-4, 3e-4, 1e-3),
}
WEIGHT_DECAYS = {"linear": (0.0, 0.1), "attention": (0.01, 0.8), "cross_attention_mlp": (0.01, 0.8)}
EPOCHS = {"linear": 60, "attention": 30, "cross_attention_mlp": 20}


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
    ) -> Chosen:
        """Train the heads, select on validation, and predict the test set, whose labels are not needed.

        Args:
            train, validation, test: features of the same layers, tensors or memory-mapped arrays, read in batches.
            train_labels, validation_labels: class numbers, (N, T).
            items: number of the item (video) of each test clip, (N,); predictions are then per item, from the mean
                probabilities of its clips.
            checkpoint: a file from which a killed run resumes. It loses at most `SAVE_SECONDS` of work and gives the
                same numbers.
        Raises:
            ValueError: tokens were not kept, labels are out of range, the checkpoint is of another run, or all heads
                diverged.
        """
        arrays = features_of(self.kind, self.kind in TOKEN_HEADS, train, validation, test)
        labels = (train_labels, validation_labels)
        for part, array, values in zip(("train", "validation"), arrays, labels, strict=False):
            check_labels(values, self.classes, array.shape[1], part)
        units = [slice(None)] if self.kind == "linear" else [slice(k, k + 1) for k in range(len(arrays[0]))]
        about = {
            name: getattr(self, name) for name in ("kind", "classes", "settings", "epochs", "batch_size", "batch_norm")
        }
        about |= {"seed": self.seed}
        saved = HeadCheckpoint(checkpoint, about | (fingerprint(arrays, [*labels, items]) if checkpoint else {}))

        steps = self.epochs * self._steps_per_epoch(arrays[0].shape[1])
        done = len(saved.finished) * steps + saved.steps
        bar = tqdm(total=len(units) * steps, initial=done, desc=f"{self.kind} heads", unit="step", disable=not progress)
        for unit in units[len(saved.finished) :]:
            sets = [array[unit] for array in arrays]
            heads = self._build(sets[0])
            self._fit(heads, sets[0], train_labels, saved, bar.update)
            saved.finish(self._choose(heads, sets[1], validation_labels, sets[2], items))
        bar.close()
        results = {name: torch.cat([unit[name] for unit in saved.finished]) for name in saved.finished[0]}
        return Chosen(self.settings, **results)

    def _build(self, train: Array) -> LinearHeads | AttentionHeads | CrossAttentionHeads:
        counts = (len(self.classes), len(self.settings), max(self.classes))
        if self.kind == "linear":
            heads = LinearHeads(*train_moments(train, (1,)), *counts, self.batch_norm)
        else:
            mean, std = (moment.flatten() for moment in train_moments(train, (0, 1, 2)))
            kinds = {"attention": AttentionHeads, "cross_attention_mlp": CrossAttentionHeads}
            heads = kinds[self.kind](mean, std, *counts, self.seed)
        return heads.to(self.device)

    def _size(self, count: int) -> int:
        """Number of clips in a batch; there are at least eight updates per epoch, so that small sets converge too."""
        return min(self.batch_size, max(8, count // 8))

    def _steps_per_epoch(self, count: int) -> int:
        return math.ceil(count / self._size(count))

    def _fit(self, heads, train: Array, labels: torch.Tensor, saved: HeadCheckpoint, update: Callable) -> None:
        count = train.shape[1]
        per_epoch = self._steps_per_epoch(count)
        total = self.epochs * per_epoch
        rates, decays = (torch.tensor([s[key] for s in self.settings]) for key in ("lr", "weight_decay"))
        optimiser = StackedAdamW(heads, rates.to(self.device), decays.to(self.device))
        if saved.steps:
            optimiser.load(saved.state, saved.steps)
        missing = missing_classes(self.classes)[:, None].to(self.device)  # (T, 1, C)
        heads.train()
        for epoch in range(optimiser.steps // per_epoch, self.epochs):
            # the order of an epoch depends only on its number, so that resuming needs no generator state
            order = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            batches = torch.randperm(count, generator=order).split(self._size(count))
            for batch in batches[optimiser.steps - epoch * per_epoch :]:
                rows = _of_this_rank(batch).sort().values  # a memory-mapped file is read in its own order
                logits = heads(clips(train, rows).to(self.device))  # (L, B, T, S, C)
                # the gradient of the cross-entropy, summed over heads and averaged over the batch: each head gets the
                # gradient that it would get alone, even if another one diverges
                gradient = _softmax(logits.detach().masked_fill(missing, float("-inf")))
                wanted = labels[rows].to(self.device)[None, :, :, None, None].expand(*gradient.shape[:-1], 1)
                gradient.scatter_add_(-1, wanted, torch.full((), -1.0, device=self.device).expand(wanted.shape))
                logits.backward(gradient.div_(len(batch)))
                _sum_gradients(heads)
                optimiser.step(0.5 * (1 + math.cos(math.pi * optimiser.steps / total)))
                update()
                if saved.due():
                    saved.save(optimiser.state(), optimiser.steps)

    @torch.no_grad()
    def _choose(self, heads, validation: Array, labels: torch.Tensor, test: Array, items: torch.Tensor | None) -> dict:
        heads.eval()
        missing = missing_classes(self.classes)[:, None].to(self.device)

        def log_probabilities(array: Array, rows: torch.Tensor) -> torch.Tensor:
            logits = heads(clips(array, rows).to(self.device)).masked_fill(missing, float("-inf"))
            return logits.log_softmax(-1)  # (L, B, T, S, C)

        right = loss = 0
        for batch in torch.arange(validation.shape[1]).split(self.batch_size):
            rows = _of_this_rank(batch)
            scores = log_probabilities(validation, rows)
            wanted = labels[rows].to(self.device)[None, :, :, None]  # (1, B, T, 1)
            right = right + (scores.argmax(-1) == wanted).sum(1, dtype=torch.float64)
            loss = loss - scores.gather(-1, wanted[..., None].expand(*scores.shape[:-1], 1))[..., 0].double().sum(1)
        accuracy, loss = (sum_over_ranks(x).cpu() / validation.shape[1] for x in (right, loss))  # (L, T, S)
        best = choose(accuracy, loss, validation.shape[1])
        heads.keep(best.to(self.device))
        predictions, likely, counts = [], None, None if items is None else items.bincount()
        for rows in torch.arange(test.shape[1]).split(self.batch_size):
            scores = log_probabilities(test, rows)[..., 0, :].transpose(1, 2).cpu()  # (L, T, B, C)
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
        return result | {"test_predictions": likely.argmax(-1), "test_probabilities": likely / counts[:, None]}


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
