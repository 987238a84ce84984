"""`fit_probe` on features in memory: what it chooses, what it scores, and what it refuses."""

import numpy as np
import pytest
import torch

from evaluation.backbones.contract import Features
from evaluation.heads.bank import make_head
from evaluation.probe.fit import HeadSettings, fit_probe
from training.scores import wilson_interval

NAMES = np.array(["cat", "dog", "owl"])
SETTINGS = HeadSettings(epochs=5)


def made(count: int, seed: int) -> tuple[Features, np.ndarray]:
    """Features of layers 2 (noise) and 7 (the class is in it), with 4 tokens of 6 numbers, and text labels."""
    generator = torch.Generator().manual_seed(seed)
    number = torch.arange(count) % 3
    noise = torch.randn(2, count, 4, 6, generator=generator)
    noise[1, :, :, :3] += 4 * torch.nn.functional.one_hot(number, 3)[:, None]
    return Features([2, 7], noise.mean(2), noise.half()), NAMES[number.numpy()]


@pytest.fixture(scope="module")
def parts():
    return [made(count, seed) for seed, count in enumerate((60, 30, 33))]


@pytest.mark.parametrize("head", ["linear", "attention", "ridge", "logistic", "knn"])
def test_it_finds_the_layer_and_names_the_classes(parts, head):
    sets = [each for part in parts for each in part]
    found = fit_probe(*sets, head=head, settings=HeadSettings(epochs=30))
    assert found.layer == 7 and found.head == head and found.setting
    assert found.val_accuracy == found.val_accuracies[7] > 0.9 > found.val_accuracies[2]
    assert set(found.predictions) == set(NAMES)
    right = int((found.predictions == parts[2][1]).sum())
    assert found.accuracy == right / 33 > 0.9 and found.ci95 == wilson_interval(right, 33)


def test_it_is_the_head_of_toto_probe(parts):
    numbers = [torch.from_numpy(np.searchsorted(NAMES, labels))[:, None] for _, labels in parts]
    (train, _), (val, _), (test, _) = parts
    bank = make_head("linear", [3], epochs=5, seed=4).run(train, numbers[0], val, numbers[1], test)
    found = fit_probe(*parts[0], *parts[1], test, settings=HeadSettings(epochs=5, seed=4))
    assert found.setting == bank.setting(1, 0)
    assert list(found.predictions) == list(NAMES[bank.test_predictions[1, 0].numpy()])
    assert found.accuracy is None and found.ci95 is None


def test_arrays_lists_and_no_test(parts):
    arrays = [(part.pooled[1].numpy(), labels.tolist()) for part, labels in parts]
    found = fit_probe(*arrays[0], *arrays[1], settings=SETTINGS)
    assert (found.layer, list(found.val_accuracies), found.predictions, found.accuracy) == (0, [0], None, None)
    of_layers = fit_probe(*parts[0], *parts[1], settings=SETTINGS)
    assert found.val_accuracy == of_layers.val_accuracies[7]
    wide = [Features([9], torch.cat([part.pooled[1:], part.pooled[1:]], 2), None) for part, _ in parts]
    two = fit_probe([parts[0][0], wide[0]], parts[0][1], [parts[1][0], wide[1]], parts[1][1], settings=SETTINGS)
    assert list(two.val_accuracies) == [2, 7, 9] and two.val_accuracies[7] == found.val_accuracy


def test_numbers_need_not_start_at_zero(parts):
    (train, labels), (val, val_labels), (test, _) = parts
    numbers = {"cat": 10, "dog": 20, "owl": 5}
    found = fit_probe(
        train, [numbers[x] for x in labels], val, [numbers[x] for x in val_labels], test, settings=SETTINGS
    )
    assert set(found.predictions) == {5, 10, 20}


def test_mistakes_get_a_sentence(parts):
    (train, labels), (val, val_labels), (test, test_labels) = parts
    with pytest.raises(ValueError, match="test labels but no test features"):
        fit_probe(train, labels, val, val_labels, labels_test=test_labels)
    with pytest.raises(ValueError, match="10 test labels for 33 clips"):
        fit_probe(train, labels, val, val_labels, test, test_labels[:10], settings=SETTINGS)
    with pytest.raises(ValueError, match="All labels are 'cat'"):
        fit_probe(train, ["cat"] * 60, val, ["cat"] * 30)
    with pytest.raises(ValueError, match=r"The features have shape \(2, 60, 6\)"):
        fit_probe(train.pooled, labels, val.pooled, val_labels)
    with pytest.raises(ValueError, match="There is no head 'mlp'"):
        fit_probe(train, labels, val, val_labels, head="mlp")
    with pytest.raises(ValueError, match="different layers"):
        fit_probe(train, labels, Features([2, 8], val.pooled, None), val_labels)
    with pytest.raises(ValueError, match="train labels have shape"):
        fit_probe(train, labels[:9], val, val_labels)
