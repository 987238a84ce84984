"""A head on frozen features that are held in memory; its layer and setting are chosen on validation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evaluation.backbones.contract import Features
from evaluation.heads.bank import make_head


@dataclass(frozen=True)
class HeadSettings:
    """How heads are trained; closed forms (ridge, logistic, knn) use none of it.

    epochs: None takes the default of each head. batch_norm: before linear heads, as in MAE's linear probe. seed: of the
    initial weights and the order of the clips.
    """

    epochs: int | None = None
    batch_norm: bool = False
    seed: int = 0


@dataclass(frozen=True, eq=False)
class FittedProbe:
    """What `fit_probe` found; accuracies are fractions.

    layer: number of the layer chosen on validation. setting: chosen there, such as {"lr": 0.001, "weight_decay": 0.1}.
    val_accuracy: of this layer and setting. accuracy: on test; None without test labels. predictions: of the test
    clips, (N,); None without test features. val_accuracies: layer -> validation accuracy of its chosen setting.
    """

    head: str
    layer: int
    setting: dict[str, float]
    val_accuracy: float
    accuracy: float | None
    predictions: np.ndarray | None
    val_accuracies: dict[int, float]


def fit_probe(
    features_train: Features,
    labels_train: Sequence[int] | np.ndarray,
    features_val: Features,
    labels_val: Sequence[int] | np.ndarray,
    features_test: Features | None = None,
    labels_test: Sequence[int] | np.ndarray | None = None,
    head: str = "linear",
    settings: HeadSettings | None = None,
) -> FittedProbe:
    """Train a head on frozen features, choose its layer and setting on validation, and score it once on test.

    Args:
        features_train, features_val, features_test: of `extract_features`, of the same layers; `Features.take` splits
            those of one set of clips.
        labels_train, labels_val, labels_test: class numbers from 0, (N,).
        head: "linear", "attention" or "cross_attention_mlp" (on tokens), "ridge", "logistic" or "knn".
        settings: of heads that are trained by gradient steps.
    Returns:
        A `FittedProbe`: `layer` and `setting`, chosen on validation; `accuracy` on test, a fraction; `predictions` of
        the test clips; `val_accuracies` of all layers.
    Raises:
        ValueError: an unknown head, features of different layers, or labels that do not fit the clips.
    """
    train, val = (torch.as_tensor(labels) for labels in (labels_train, labels_val))
    test = None if labels_test is None else torch.as_tensor(labels_test)
    classes = max(int(labels.max()) for labels in (train, val, test) if labels is not None) + 1
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bank = make_head(head, [classes], device=device, **vars(settings or HeadSettings()))
    chosen = bank.run(features_train, train[:, None], features_val, val[:, None], features_test or features_val)
    layers, accuracies = features_train.layers, chosen.val_accuracy[:, 0].tolist()
    best = max(range(len(layers)), key=lambda k: (accuracies[k], -chosen.val_loss[k, 0].item()))
    predicted = chosen.test_predictions[best, 0]
    return FittedProbe(
        head=head,
        layer=layers[best],
        setting=dict(chosen.setting(best, 0)),
        val_accuracy=accuracies[best],
        accuracy=None if test is None else (predicted == test).float().mean().item(),
        predictions=None if features_test is None else predicted.numpy(),
        val_accuracies=dict(zip(layers, accuracies, strict=True)),
    )
