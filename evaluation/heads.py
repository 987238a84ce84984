"""Heads on frozen features: every layer x label x learning rate trained at once, chosen on validation only.

A head never sees the test set before its learning rate is fixed, and the features of one backbone pass serve them all.
Heads that differ in label or learning rate only are slices of one stacked parameter, (..., tasks, rates, ...), so one
matrix product trains them together; they share batches but no weights, and each has its own learning rate.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from tqdm.auto import tqdm

from evaluation.features import Features
from modeling_toto.pooling_toto import attention_pool

# Paper silent on the probe's recipe. Half-decades around what AdamW needs on standardised features; the smallest ones
# act as early stopping, which wide features with few clips (raw pixels) want.
LEARNING_RATES = {"linear": (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1), "attention": (3e-4, 1e-3, 3e-3)}
EPOCHS = {"linear": 60, "attention": 30}
HEADS = tuple(LEARNING_RATES)


class StackedAdamW:
    """AdamW over stacked parameters with one learning rate per slice (torch.optim has one per tensor).

    parameters: (tensor, axis of the rates) pairs; rates: (R,).
    """

    def __init__(self, parameters: list[tuple[nn.Parameter, int]], rates: torch.Tensor, weight_decay: float):
        self.weight_decay, self.betas, self.steps = weight_decay, (0.9, 0.999), 0
        self.slots = [
            (p, rates.view(-1, *[1] * (p.ndim - axis - 1)), torch.zeros_like(p), torch.zeros_like(p))
            for p, axis in parameters
        ]

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """One update; `scale` is the schedule's factor on all learning rates."""
        self.steps += 1
        first, second = self.betas
        for p, rate, mean, square in self.slots:
            mean.lerp_(p.grad, 1 - first)
            square.mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
            denominator = (square / (1 - second**self.steps)).sqrt_().add_(1e-8)
            update = (mean / (1 - first**self.steps)).div_(denominator)
            if self.weight_decay:
                update.add_(p, alpha=self.weight_decay)
            p.sub_(update.mul_(rate * scale))
            p.grad = None


class LinearHeads(nn.Module):
    """Mean-pooled features of all layers -> logits of every (layer, task, rate): (L, B, P) -> (L, B, T, R, C)."""

    def __init__(self, layers: int, dim: int, tasks: int, rates: int, classes: int):
        super().__init__()
        self.shape = (tasks, rates, classes)
        self.weight = nn.Parameter(torch.zeros(layers, dim, tasks, rates, classes))
        self.bias = nn.Parameter(torch.zeros(layers, 1, tasks, rates, classes))

    def stacked(self) -> list[tuple[nn.Parameter, int]]:
        return [(self.weight, 3), (self.bias, 3)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.baddbmm(self.bias.flatten(2), x, self.weight.flatten(2))
        return logits.unflatten(-1, self.shape)


class AttentionHeads(nn.Module):
    """Tokens of one layer -> logits of every (task, rate): (1, B, n, D) -> (1, B, T, R, C).

    Attention pooling (paper Sec. 3.5) with a query, W_k, W_v and a linear classifier of its own for each. Tokens come
    as stored; they are standardised inside, where it is cheap: softmax ignores a shift common to all tokens, and the
    weights of a clip sum to one.
    """

    def __init__(self, mean: torch.Tensor, std: torch.Tensor, tasks: int, rates: int, classes: int, seed: int):
        super().__init__()
        dim, shape = len(mean), (tasks, rates)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        draw = torch.Generator().manual_seed(seed)

        def start(*size: int, scale: float) -> nn.Parameter:
            # the same start for every rate: only the rate tells them apart
            return nn.Parameter((torch.randn(tasks, 1, *size, generator=draw) * scale).expand(*shape, *size).clone())

        self.query = start(dim, scale=0.02)
        self.key = start(dim, dim, scale=dim**-0.5)
        self.value = start(dim, dim, scale=dim**-0.5)
        self.weight = nn.Parameter(torch.zeros(*shape, dim, classes))
        self.bias = nn.Parameter(torch.zeros(*shape, classes))

    def stacked(self) -> list[tuple[nn.Parameter, int]]:
        return [(p, 1) for p in (self.query, self.key, self.value, self.weight, self.bias)]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = tokens[0].float()
        # W_k acts on (x - mean) / std; the shift drops out of the softmax
        key = self.key.flatten(0, 1) / self.std
        pooled = attention_pool(x, self.query.flatten(0, 1), key)  # (B, T * R, D), not standardised yet
        # W_v and the classifier are two linear maps in a row: multiplied first, they cost less than W_v on every clip
        readout = self.value.flatten(0, 1).mT @ self.weight.flatten(0, 1)  # (T * R, D, C)
        logits = torch.einsum("bmd,mdc->bmc", (pooled - self.mean) / self.std, readout) + self.bias.flatten(0, 1)
        return logits.unflatten(1, self.query.shape[:2])[None]


@dataclass
class Chosen:
    """A trained bank after choosing learning rates on validation; first axes are layers and tasks, (L, T).

    lr, val_accuracy, val_loss (nats): of the chosen rate. test_predictions: class numbers, (L, T, N).
    """

    lr: torch.Tensor
    val_accuracy: torch.Tensor
    val_loss: torch.Tensor
    test_predictions: torch.Tensor


class HeadBank:
    """Trains one kind of head on every layer, for every task and learning rate; picks the rate on validation.

    kind: "linear" (on `Features.pooled`, standardised by train statistics) or "attention" (on `Features.tokens`).
    classes: number of classes of each task (label column).
    """

    def __init__(
        self,
        kind: str,
        classes: list[int],
        learning_rates: tuple[float, ...] | None = None,
        epochs: int | None = None,
        batch_size: int = 256,
        weight_decay: float = 0.0,
        seed: int = 0,
    ):
        if kind not in HEADS:
            raise ValueError(f"there is no head named {kind!r}; the heads are {', '.join(HEADS)}.")
        self.kind, self.classes, self.seed = kind, classes, seed
        self.rates = tuple(learning_rates or LEARNING_RATES[kind])
        self.epochs = epochs or EPOCHS[kind]
        self.batch_size, self.weight_decay = batch_size, weight_decay

    def run(
        self,
        train: Features,
        train_labels: torch.Tensor,
        validation: Features,
        validation_labels: torch.Tensor,
        test: Features,
        progress: bool = False,
    ) -> Chosen:
        """Train, choose, predict.

        The features are of the same layers; labels are class numbers, (N, T). There is no argument for test labels.
        """
        if self.kind == "linear":
            return self._run(train.pooled, train_labels, validation.pooled, validation_labels, test.pooled, progress)
        parts = []
        for layer in tqdm(range(len(train.layers)), desc="attention heads", unit="layer", disable=not progress):
            sets = [features.tokens[layer : layer + 1] for features in (train, validation, test)]
            parts.append(self._run(sets[0], train_labels, sets[1], validation_labels, sets[2], False))
        return Chosen(*(torch.cat([getattr(p, name) for p in parts]) for name in Chosen.__dataclass_fields__))

    def _run(self, train, train_labels, validation, validation_labels, test, progress: bool) -> Chosen:
        heads, standardise = self._build(train)
        self._fit(heads, train, train_labels, standardise, progress)
        logits = self._logits(heads, validation, standardise)  # (L, N, T, R, C)
        right = logits.argmax(-1) == validation_labels[:, :, None]
        accuracy = right.float().mean(1)  # (L, T, R)
        wanted = validation_labels[None, :, :, None, None].expand(*logits.shape[:-1], 1)
        loss = -logits.log_softmax(-1).gather(-1, wanted)[..., 0].mean(1)
        # equal accuracies are common on small sets: the lower loss decides
        best = (accuracy - 1e-6 * loss.clamp(max=100)).argmax(-1, keepdim=True)  # (L, T, 1)
        predictions = self._logits(heads, test, standardise, lambda x: x.argmax(-1))  # (L, N, T, R)
        chosen = predictions.gather(-1, best[:, None].expand(*predictions.shape[:-1], 1))[..., 0]
        return Chosen(
            lr=torch.tensor(self.rates)[best[..., 0]],
            val_accuracy=accuracy.gather(-1, best)[..., 0],
            val_loss=loss.gather(-1, best)[..., 0],
            test_predictions=chosen.transpose(1, 2),
        )

    def _build(self, train: torch.Tensor):
        """The heads, and the function that standardises a batch for them."""
        tasks, rates, classes = len(self.classes), len(self.rates), max(self.classes)
        if self.kind == "linear":
            std, mean = torch.std_mean(train, dim=1, keepdim=True)  # (L, 1, P)
            std = std.masked_fill(std < 1e-6, 1.0)
            return LinearHeads(len(train), train.shape[-1], tasks, rates, classes), lambda x: (x - mean) / std
        # in chunks: the tokens of all clips in float32 would be twice what is kept
        sums = [(c.float().flatten(0, 1).sum(0), c.float().flatten(0, 1).square().sum(0)) for c in train[0].split(512)]
        count = train.shape[1] * train.shape[2]
        mean, square = (sum(s[i] for s in sums) / count for i in (0, 1))
        std = (square - mean**2).clamp(min=0).sqrt()
        std = std.masked_fill(std < 1e-3, 1.0)
        return AttentionHeads(mean, std, tasks, rates, classes, self.seed), lambda x: x

    def _mask(self) -> torch.Tensor:
        """(T, 1, C): -inf on classes that a task does not have; tasks are padded to the largest one."""
        numbers = torch.arange(max(self.classes))
        missing = numbers[None] >= torch.tensor(self.classes)[:, None]
        return torch.zeros(missing.shape).masked_fill(missing, float("-inf"))[:, None]

    def _fit(self, heads, train, labels, standardise, progress: bool) -> None:
        count = train.shape[1]
        # at least eight updates an epoch, so that small sets converge too
        size = min(self.batch_size, max(8, count // 8))
        steps_per_epoch = math.ceil(count / size)
        total = self.epochs * steps_per_epoch
        optimiser = StackedAdamW(heads.stacked(), torch.tensor(self.rates), self.weight_decay)
        order, mask = torch.Generator().manual_seed(self.seed), self._mask()
        bar = tqdm(total=total, desc=f"{self.kind} heads", unit="step", disable=not progress)
        for _ in range(self.epochs):
            for rows in torch.randperm(count, generator=order).split(size):
                logits = heads(standardise(train[:, rows])) + mask  # (L, B, T, R, C)
                wanted = labels[rows][None, :, :, None].expand(logits.shape[:-1])
                # a sum over heads of means over clips: each head gets the gradient it would get alone
                loss = nn.functional.cross_entropy(logits.flatten(0, -2), wanted.flatten(), reduction="sum") / len(rows)
                loss.backward()
                optimiser.step(0.5 * (1 + math.cos(math.pi * optimiser.steps / total)))
                bar.update()
        bar.close()

    @torch.no_grad()
    def _logits(self, heads, features: torch.Tensor, standardise, finish=lambda x: x, chunk: int = 512) -> torch.Tensor:
        """finish(logits (L, N, T, R, C)), some clips at a time."""
        mask = self._mask()
        return torch.cat([finish(heads(standardise(x)) + mask) for x in features.split(chunk, dim=1)], dim=1)
