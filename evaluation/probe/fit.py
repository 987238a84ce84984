"""Heads on frozen features, chosen on validation: `fit_probe` for features in memory, and the heads of `toto probe`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from evaluation.backbones.contract import Features
from evaluation.backbones.extraction import ClipSet
from evaluation.heads.bank import make_head
from evaluation.heads.selection import Chosen, join_layers, merge_folds
from evaluation.heads.streamed import StreamedData, train_streamed
from tokenization.sources.labelled import group_of
from training.scores import wilson_interval

FeatureInput = Features | Sequence[Features] | torch.Tensor | np.ndarray
LabelInput = Sequence | torch.Tensor | np.ndarray


@dataclass(frozen=True)
class HeadSettings:
    """How heads are trained; closed forms (ridge, logistic, knn) ignore it.

    epochs: None takes the default of each head. batch_norm: before linear heads, as in MAE's linear probe. seed: of the
    initial weights and the order of the clips.
    """

    epochs: int | None = None
    batch_norm: bool = False
    seed: int = 0


@dataclass(frozen=True)
class LabelledFeatures:
    """The data that heads are trained, chosen and tested on.

    features: of train, validation and test, each a list with one `Features` for each width of layers.
    labels: class numbers (N, tasks) of train and validation, and of test where test clips are also trained on.
    classes: number of classes of each task.
    items: the item of each test clip, as `HeadBank.run` takes them, or None. probabilities: keep those of the items.
    """

    features: list[list[Features]]
    labels: list[torch.Tensor]
    classes: list[int]
    items: torch.Tensor | None = None
    probabilities: bool = False


def train_heads(
    data: LabelledFeatures,
    heads: Sequence[str],
    settings: HeadSettings,
    state: Path | None = None,
    progress: bool = False,
) -> dict[str, Chosen]:
    """Train every head on the features of one backbone: {head: `Chosen`}, its layers in ascending order.

    state: prefix of the files that hold half-trained heads; None writes none.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {}
    for head in heads:
        parts = []
        for number, (train, validation, test) in enumerate(zip(*data.features, strict=True)):
            bank = make_head(head, data.classes, device=device, **vars(settings))
            file = state and state.with_name(f"{state.name}-{head}-{number}.safetensors")
            options = {"progress": progress, "items": data.items, "checkpoint": file}
            options["probabilities"] = data.probabilities
            parts.append(bank.run(train, data.labels[0], validation, data.labels[1], test, **options))
        found[head] = join_layers(parts)
    return found


def stream_heads(data: StreamedData, heads: Sequence[str], settings: HeadSettings, folder: Path) -> dict[str, Chosen]:
    """As `train_heads`, on features that are computed again in every epoch. folder: of half-trained heads."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    banks = {head: make_head(head, data.classes, device=device, **vars(settings)) for head in heads}
    return train_streamed(data, banks, folder, progress=True)


def leave_groups_out(
    data: LabelledFeatures,
    splits: list[ClipSet],
    pattern: str,
    heads: Sequence[str],
    settings: HeadSettings,
    state: Path,
) -> dict[str, Chosen]:
    """As `train_heads`, but each group of test clips is predicted by heads that are also trained on the other groups.

    Training and validation clips of that group are left out as well. Layer, head and setting are chosen by the
    validation accuracy, averaged over the folds.

    Args:
        data: with test labels.
        splits: train, validation and test, for the names of their clips. pattern: regular expression of the groups in
            these names.
    """
    train, validation, test = data.features
    groups = [group_of(source, pattern) for source in splits[2].sources]
    names = sorted(set(groups))
    outside = [{name: rows_outside(split, name, pattern) for name in names} for split in splits[:2]]
    folds = []
    for fold, name in enumerate(names):
        inside = torch.tensor([group == name for group in groups])
        others, rows = (~inside).nonzero()[:, 0], inside.nonzero()[:, 0]
        kept, judges = outside[0][name], outside[1][name]
        more = [Features.joined(a.take(kept), b.take(others)) for a, b in zip(train, test, strict=True)]
        its_items, numbers = (rows, None) if data.items is None else data.items[rows].unique(return_inverse=True)
        its_data = replace(
            data,
            features=[more, [group.take(judges) for group in validation], [group.take(rows) for group in test]],
            labels=[torch.cat([data.labels[0][kept], data.labels[2][others]]), data.labels[1][judges]],
            items=numbers,
        )
        file = state.with_name(f"{state.name}-fold{fold}")
        folds.append((its_items, train_heads(its_data, heads, settings, file, progress=True)))
    return {head: merge_folds([(rows, chosen[head]) for rows, chosen in folds]) for head in heads}


def rows_outside(split: ClipSet, name: str, pattern: str) -> torch.Tensor:
    """Numbers of the clips of a split that are not in this group; clips without a group are in none.

    Raises:
        ValueError: there are none.
    """
    has_group = [re.search(pattern, source) is not None for source in split.sources]
    kept = [row for row, source in enumerate(split.sources) if not has_group[row] or group_of(source, pattern) != name]
    if not kept:
        raise ValueError(
            f"{split.split} holds only the group {name!r}, which is left out because the test split holds it too; "
            "give a --validation_split of several groups, or keep the groups of test out of the training split."
        )
    return torch.tensor(kept)


@dataclass(frozen=True, eq=False)
class FittedProbe:
    """The result of `fit_probe`.

    Fields:
        head: its kind.
        layer: number of the layer chosen on validation (0 for features that are arrays).
        setting: chosen on validation, such as {"lr": 0.001, "weight_decay": 0.1}, {"penalty": 0.01} or {"k": 20}.
        val_accuracy: of this layer and setting; a fraction.
        accuracy: on test, a fraction; None without test labels.
        ci95: its 95 % Wilson interval, [low, high].
        predictions: the predicted label of each test clip, (N,); None without test features.
        val_accuracies: layer -> validation accuracy of its chosen setting.
    """

    head: str
    layer: int
    setting: dict[str, float]
    val_accuracy: float
    accuracy: float | None
    ci95: list[float] | None
    predictions: np.ndarray | None
    val_accuracies: dict[int, float]


def fit_probe(
    features_train: FeatureInput,
    labels_train: LabelInput,
    features_val: FeatureInput,
    labels_val: LabelInput,
    features_test: FeatureInput | None = None,
    labels_test: LabelInput | None = None,
    head: str = "linear",
    settings: HeadSettings | None = None,
) -> FittedProbe:
    """Train a head on frozen features, choose its layer and setting on validation, and score it once on test.

    The paper does not give the recipe of its probes; ours is described in `evaluation.heads.bank`.

    Args:
        features_train, features_val, features_test: an array (N, D) of one layer, or `Features` of several layers, or a
            list of these, one for each width of layers. Heads on tokens need `Features` with tokens.
        labels_train, labels_val, labels_test: whole numbers or text, (N,).
        head: "linear", "attention" or "cross_attention_mlp" (on tokens), "ridge", "logistic" or "knn".
        settings: of heads that are trained by gradient steps.
    Returns:
        A `FittedProbe`: `layer` and `setting`, chosen on validation; `accuracy` on test, a fraction; `predictions` of
        the test clips; `val_accuracies` of all layers.
    Raises:
        ValueError: an unknown head, features of different layers, labels of another length, test labels without test
            features, or a single class.
    """
    if labels_test is not None and features_test is None:
        raise ValueError("There are test labels but no test features; give both, or neither.")
    classes, (train, val, test) = _number_classes(labels_train, labels_val, labels_test)
    features = [_as_features(each) for each in (features_train, features_val)]
    features.append(features[1] if features_test is None else _as_features(features_test))
    data = LabelledFeatures(features, [train[:, None], val[:, None]], [len(classes)])
    chosen = train_heads(data, [head], settings or HeadSettings())[head]
    layers = [layer for group in features[0] for layer in group.layers]
    best = max(range(len(layers)), key=lambda index: chosen.rank(index, 0))
    predicted, accuracy, ci95 = chosen.test_predictions[best, 0], None, None
    if test is not None:
        if len(test) != len(predicted):
            raise ValueError(f"There are {len(test)} test labels for {len(predicted)} clips; give one for each clip.")
        right = int((predicted == test).sum())
        accuracy, ci95 = right / len(test), wilson_interval(right, len(test))
    return FittedProbe(
        head=head,
        layer=layers[best],
        setting=dict(chosen.setting(best, 0)),
        val_accuracy=chosen.val_accuracy[best, 0].item(),
        accuracy=accuracy,
        ci95=ci95,
        predictions=None if features_test is None else classes[predicted.numpy()],
        val_accuracies={layer: chosen.val_accuracy[index, 0].item() for index, layer in enumerate(layers)},
    )


def _number_classes(*labels: LabelInput | None) -> tuple[np.ndarray, list[torch.Tensor | None]]:
    """(the classes in sorted order, for each set of labels their numbers (N,)). Raises ValueError for one class only.

    Classes are numbered over all sets, since validation and test may have one that training lacks.
    """
    arrays = [None if each is None else np.asarray(each) for each in labels]
    classes = np.unique(np.concatenate([each for each in arrays if each is not None]))
    if len(classes) < 2:
        raise ValueError(f"All labels are {classes.tolist()[0]!r}; a probe needs at least two classes.")
    numbers = [None if each is None else torch.from_numpy(np.searchsorted(classes, each)) for each in arrays]
    return classes, numbers


def _as_features(given: FeatureInput) -> list[Features]:
    """One `Features` for each width of layers. Raises ValueError for an array that is not (N, D)."""
    if isinstance(given, Features):
        return [given]
    if isinstance(given, (list, tuple)) and given and all(isinstance(each, Features) for each in given):
        return list(given)
    array = torch.as_tensor(given)
    if array.ndim != 2:
        raise ValueError(f"The features have shape {tuple(array.shape)}; give an array (N, D), or Features.")
    return [Features([0], array.float()[None], None)]
