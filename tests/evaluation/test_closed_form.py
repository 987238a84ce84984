"""Ridge, logistic regression and k-NN equal scikit-learn's and brute force, for several tasks and either shape."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from test_heads import features, gaussians

from evaluation.heads.closed_form import CLOSED_FORMS, ClosedForm, fit_logistic, fit_neighbours, fit_ridge


def data(count: int, dim: int):
    """Standardised features (N, P), labels (N, 2) of 3 and 2 classes, and other features (7, P)."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.stack([torch.randint(3, (count,), generator=draw), torch.randint(2, (count,), generator=draw)], 1)
    x = torch.randn(count, dim, generator=draw)
    x[:, :2] += labels
    return (x - x.mean(0)) / x.std(0, correction=0), labels, torch.randn(7, dim, generator=draw)


@pytest.mark.parametrize(("count", "dim"), [(60, 8), (20, 50)])
def test_ridge_is_scikit_learns_for_all_penalties(count, dim):
    """Fewer features than clips, and more (the dual)."""
    x, labels, other = data(count, dim)
    penalties = [1e-3, 0.1, 10.0]
    likely = fit_ridge(x, labels, [3, 2], penalties)(other)  # (n, T, S, C)
    assert likely.shape == (7, 2, 3, 3) and (likely[:, 1, :, 2] == 0).all()
    for task, classes in enumerate((3, 2)):
        for setting, penalty in enumerate(penalties):
            model = Ridge(alpha=penalty * count).fit(x.numpy(), np.eye(classes)[labels[:, task]])
            scores = torch.from_numpy(model.predict(other.numpy()).reshape(7, classes))
            assert torch.equal(likely[:, task, setting].argmax(-1), scores.argmax(-1))
            clipped = scores.clamp(0, 1).float()
            expected = clipped / clipped.sum(-1, keepdim=True)
            torch.testing.assert_close(likely[:, task, setting, :classes], expected, rtol=1e-3, atol=1e-4)


def test_logistic_regression_is_scikit_learns():
    x, labels, other = data(200, 8)
    penalties = [0.1, 1e-3]
    likely = fit_logistic(x, labels, [3, 2], penalties)(other)
    for task in (0, 1):
        for setting, penalty in enumerate(penalties):
            model = LogisticRegression(C=1 / (penalty * 200), tol=1e-8, max_iter=1000).fit(x, labels[:, task])
            expected = torch.from_numpy(model.predict_proba(other)).float()
            if task == 0:
                torch.testing.assert_close(likely[:, 0, setting], expected, rtol=1e-3, atol=1e-3)
            else:  # two classes: scikit-learn has one weight vector for both, so its penalty counts half of ours
                model = LogisticRegression(C=2 / (penalty * 200), tol=1e-8, max_iter=1000).fit(x, labels[:, 1])
                expected = torch.from_numpy(model.predict_proba(other)).float()
                torch.testing.assert_close(likely[:, 1, setting, :2], expected, rtol=1e-3, atol=1e-3)
                assert (likely[:, 1, setting, 2] == 0).all()


def test_neighbours_vote_as_in_scikit_learn():
    x, labels, other = data(60, 8)
    likely = fit_neighbours(x, labels, [3, 2], [5, 20])(other)
    for setting, k in enumerate((5, 20)):
        model = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
        expected = torch.from_numpy(model.fit(x, labels[:, 0]).predict_proba(other)).float()
        torch.testing.assert_close(likely[:, 0, setting], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", CLOSED_FORMS)
def test_labels_as_features_give_everything_and_shuffled_labels_chance(kind):
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (1200, 1), generator=draw)
    code = torch.nn.functional.one_hot(labels[:, 0], 4).float() + 0.1 * torch.randn(1200, 4, generator=draw)
    parts = [features(part[None]) for part in code.split([500, 200, 500])]
    wanted = labels.split([500, 200, 500])
    chosen = ClosedForm(kind, [4]).run(parts[0], wanted[0], parts[1], wanted[1], parts[2])
    assert torch.equal(chosen.test_predictions[0, 0], wanted[2][:, 0]) and chosen.val_accuracy == 1
    assert set(chosen.setting(0, 0)) == {"k" if kind == "knn" else "penalty"}
    shuffled = labels[torch.randperm(1200, generator=draw)].split([500, 200, 500])
    chosen = ClosedForm(kind, [4]).run(parts[0], shuffled[0], parts[1], shuffled[1], parts[2])
    score = (chosen.test_predictions[0, 0] == shuffled[2][:, 0]).float().mean()
    assert abs(score - 0.25) < 3 * (0.25 * 0.75 / 500) ** 0.5  # three standard deviations of guessing


def test_the_penalty_is_chosen_on_validation():
    """More useless features than clips: the smallest penalty overfits."""
    x, y = gaussians(460, dim=24)
    noise = torch.randn(460, 100, generator=torch.Generator().manual_seed(1))
    parts = [features(part[None]) for part in torch.cat([x, noise], 1).split([60, 300, 100])]
    labels = y[:, None].split([60, 300, 100])
    for kind in ("ridge", "logistic"):
        chosen = ClosedForm(kind, [5]).run(parts[0], labels[0], parts[1], labels[1], parts[2])
        assert chosen.setting(0, 0)["penalty"] >= 0.01


def test_few_clips_and_unknown_kinds():
    x, y = torch.arange(12.0).view(6, 2), torch.arange(6)[:, None] % 2
    chosen = ClosedForm("knn", [2]).run(features(x[None]), y, features(x[None]), y, features(x[None]))
    assert chosen.settings == [{"k": 6}]
    with pytest.raises(ValueError, match="There is no closed form 'linear'; the closed forms are ridge, logistic, knn"):
        ClosedForm("linear", [2])
