"""Heads without learning rates, epochs or seeds, as a check of the trained ones: ridge, logistic regression, k-NN.

All read `Features.pooled` one layer at a time, so that only one layer of each set is in memory. With several processes,
each computes the same results.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from evaluation.backbones.contract import Features
from evaluation.heads import CLOSED_FORMS
from evaluation.heads.checkpoint import HeadCheckpoint, fingerprint
from evaluation.heads.selection import (
    Chosen,
    add_by_item,
    check_labels,
    choose,
    clips,
    features_of,
    missing_classes,
    train_moments,
)
from tokenization.terminal.progress import tqdm

# The paper has none of the three. Penalties are per training clip and on standardised features, so that one grid works
# for any size and width. Logistic: scikit-learn's C is 1 / (penalty * N). k-NN: DINO's k and temperature.
RIDGE_PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
LOGISTIC_PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
NEIGHBOURS, TEMPERATURE = (10, 20, 100, 200), 0.07
# Least squares and neighbours may give a probability of 0, which is replaced by FLOOR in the validation loss.
FLOOR = 1e-3

Predict = Callable[[torch.Tensor], torch.Tensor]  # features (n, P) -> probabilities (n, T, S, C)


class ClosedForm:
    """One of CLOSED_FORMS for every layer and task; the penalty or k is selected on validation.

    ridge: least squares to one-hot targets with a squared penalty. logistic: multinomial, to convergence. knn: votes
    weighted by exp(cosine / 0.07), on features without standardisation (DINO). classes: number of classes of each task.
    """

    def __init__(self, kind: str, classes: list[int]):
        if kind not in CLOSED_FORMS:
            raise ValueError(f"There is no closed form {kind!r}; the closed forms are {', '.join(CLOSED_FORMS)}.")
        self.kind, self.classes = kind, list(classes)

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
        """Arguments and result as in `HeadBank.run`; the checkpoint holds finished layers."""
        arrays = features_of(self.kind, False, train, validation, test)
        labels = (train_labels, validation_labels)
        for part, array, values in zip(("train", "validation"), arrays, labels, strict=False):
            check_labels(values, self.classes, array.shape[1], part)
        settings = self._settings(arrays[0].shape[1])
        about = {"kind": self.kind, "classes": self.classes, "settings": settings}
        about |= {"probabilities": True} if probabilities else {}
        saved = HeadCheckpoint(checkpoint, about | (fingerprint(arrays, [*labels, items]) if checkpoint else {}))
        layers = range(len(saved.finished), len(arrays[0]))
        for layer in tqdm(layers, desc=f"{self.kind} heads", unit="layer", disable=not progress):
            sets = [clips(array[layer : layer + 1], slice(None))[0] for array in arrays]
            if self.kind != "knn":
                mean, std = (moment[0] for moment in train_moments(sets[0][None], (1,)))
                sets = [(x - mean) / std for x in sets]
            saved.finish(self._layer(*sets, train_labels, validation_labels, settings, items, probabilities))
        return Chosen(settings, **saved.results())

    def _settings(self, count: int) -> list[dict[str, float]]:
        if self.kind == "knn":
            return [{"k": k} for k in NEIGHBOURS if k <= count] or [{"k": count}]
        penalties = RIDGE_PENALTIES if self.kind == "ridge" else LOGISTIC_PENALTIES
        return [{"penalty": penalty} for penalty in penalties]

    def _layer(self, train, validation, test, train_labels, validation_labels, settings, items, probabilities) -> dict:
        fit = {"ridge": fit_ridge, "logistic": fit_logistic, "knn": fit_neighbours}[self.kind]
        predict = fit(train, train_labels, self.classes, [next(iter(setting.values())) for setting in settings])
        likely = predict(validation)  # (n, T, S, C)
        wanted = validation_labels[:, :, None, None].expand(*likely.shape[:-1], 1)
        accuracy = (likely.argmax(-1) == validation_labels[:, :, None]).double().mean(0)  # (T, S)
        loss = -likely.double().clamp(min=FLOOR).log().gather(-1, wanted)[..., 0].mean(0)
        best = choose(accuracy, loss, len(validation))
        index = best[None, :, None, None]
        likely = torch.cat(
            [p.gather(2, index.expand(len(p), -1, 1, p.shape[-1]))[:, :, 0] for p in map(predict, test.split(512))]
        ).transpose(0, 1)  # (T, N, C)
        if items is not None:
            counts = items.bincount()
            likely = add_by_item(None, likely, items, len(counts)) / counts[:, None]
        result = {
            "choice": best,
            "val_accuracy": accuracy.gather(-1, best[:, None])[:, 0].float(),
            "val_loss": loss.gather(-1, best[:, None])[:, 0].float(),
            "test_predictions": likely.argmax(-1),
        }
        result |= {"test_probabilities": likely} if probabilities and items is not None else {}
        return {name: tensor[None] for name, tensor in result.items()}


def _one_hot(labels: torch.Tensor, classes: list[int]) -> torch.Tensor:
    """(N, T) -> (N, T, C), float32."""
    return F.one_hot(labels, max(classes)).float()


def ridge_weights(
    x: torch.Tensor, targets: torch.Tensor, penalties: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimises mean ||x W + b - y||^2 + penalty ||W||^2, with one eigendecomposition for all S penalties.

    If P > N, the N x N matrix of products of rows is decomposed instead of the P x P matrix of features, with the same
    W = x' (x x' + N penalty)^-1 y.

    Args:
        x: standardised, (N, P), so that its mean is 0 and b is the mean of y.
        targets: y, (N, K).
    Returns:
        W (P, S, K) and b (K,), float32.
    """
    count, dim = x.shape
    targets = targets.double()
    bias = targets.mean(0)
    x64 = x.double()
    values, vectors = torch.linalg.eigh(x64 @ x64.T if dim > count else x64.T @ x64)
    right = vectors.T @ ((targets - bias) if dim > count else x64.T @ (targets - bias))
    shrunk = right[:, None] / (values[:, None] + count * torch.tensor(penalties).double())[..., None]  # (., S, K)
    weight = torch.tensordot(vectors, shrunk, 1)
    if dim > count:
        weight = torch.tensordot(x64.T, weight, 1)
    return weight.float(), bias.float()


def fit_ridge(x: torch.Tensor, labels: torch.Tensor, classes: list[int], penalties: list[float]) -> Predict:
    """Least squares to one-hot targets (`ridge_weights`). x: standardised, (N, P)."""
    weight, bias = ridge_weights(x, _one_hot(labels, classes).flatten(1), penalties)

    def predict(x: torch.Tensor) -> torch.Tensor:
        # least squares estimates the probability of each class but may leave [0, 1]
        scores = torch.tensordot(x, weight, 1) + bias  # (n, S, T * C)
        scores = scores.unflatten(-1, (len(classes), -1)).transpose(1, 2)
        top = F.one_hot(scores.masked_fill(missing_classes(classes)[:, None], -math.inf).argmax(-1), scores.shape[-1])
        likely = scores.clamp(0, 1) + 1e-6 * top  # the largest score stays the largest if several are clipped
        return likely / likely.sum(-1, keepdim=True)

    return predict


def fit_logistic(x: torch.Tensor, labels: torch.Tensor, classes: list[int], penalties: list[float]) -> Predict:
    """Minimises mean cross-entropy + penalty / 2 ||W||^2 by L-BFGS; each penalty starts from the previous solution.

    x: standardised, (N, P). Penalties decrease, so that each start is near its solution.
    """
    weights, biases = [], []
    for task, known in enumerate(classes):
        weight = torch.zeros(x.shape[1], known, requires_grad=True)
        bias = torch.zeros(known, requires_grad=True)
        for penalty in penalties:
            optimiser = torch.optim.LBFGS(
                [weight, bias], max_iter=100, tolerance_grad=1e-5, tolerance_change=1e-9, line_search_fn="strong_wolfe"
            )

            def loss(penalty=penalty, weight=weight, bias=bias, optimiser=optimiser, wanted=labels[:, task]):
                optimiser.zero_grad()
                value = F.cross_entropy(torch.addmm(bias, x, weight), wanted) + penalty / 2 * weight.square().sum()
                value.backward()
                return value

            optimiser.step(loss)
            weights.append(F.pad(weight.detach(), (0, max(classes) - known)))
            biases.append(F.pad(bias.detach(), (0, max(classes) - known), value=-math.inf))
    shape = (len(classes), len(penalties), -1)
    weight, bias = torch.cat(weights, 1), torch.cat(biases)
    return lambda x: torch.addmm(bias, x, weight).unflatten(1, shape).softmax(-1)


def fit_neighbours(x: torch.Tensor, labels: torch.Tensor, classes: list[int], ks: list[int]) -> Predict:
    """Votes of the k nearest training clips by cosine, each exp(cosine / 0.07) (DINO's evaluation). x: (N, P)."""
    unit, votes = F.normalize(x), _one_hot(labels, classes)

    def predict(x: torch.Tensor) -> torch.Tensor:
        likely = []
        for rows in x.split(512):
            near = (F.normalize(rows) @ unit.T).topk(max(ks), dim=1)
            # relative to the nearest clip, whose weight is 1; the shares stay the same
            weight = ((near.values - near.values[:, :1]) / TEMPERATURE).exp()
            of_each = votes[near.indices] * weight[..., None, None]  # (n, k, T, C), nearest first
            likely.append(torch.stack([of_each[:, :k].sum(1) for k in ks], 2))  # (n, T, S, C)
        likely = torch.cat(likely)
        return likely / likely.sum(-1, keepdim=True)

    return predict
