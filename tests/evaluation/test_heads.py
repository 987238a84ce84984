"""Heads agree with scikit-learn, learn what can be learnt and nothing else, and never mix their slices."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from evaluation.features import Features
from evaluation.heads import HeadBank
from evaluation.stacked_heads import AttentionHeads
from modeling_toto.pooling_toto import AttentionPooling, MeanPooling


def features(pooled: torch.Tensor, tokens: torch.Tensor | None = None) -> Features:
    """pooled (L, N, P)."""
    return Features(list(range(len(pooled))), pooled, None if tokens is None else tokens.half())


def gaussians(count: int, dim: int = 24, classes: int = 5, spread: float = 3.0, seed: int = 0):
    """Overlapping classes, on badly scaled features: x (N, dim), y (N,)."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    y = torch.randint(classes, (count,), generator=draw)
    x = centres[y] + spread * torch.randn(count, dim, generator=draw)
    return x * torch.logspace(-2, 2, dim) + 7, y


def accuracy(predictions: torch.Tensor, labels: torch.Tensor) -> float:
    return (predictions == labels).float().mean().item()


def test_linear_head_agrees_with_scikit_learn():
    (x, y), (vx, vy), (tx, ty) = gaussians(3000), gaussians(1000, seed=1), gaussians(4000, seed=2)
    bank = HeadBank("linear", [5]).run(
        features(x[None]), y[:, None], features(vx[None]), vy[:, None], features(tx[None])
    )
    ours = accuracy(bank.test_predictions[0, 0], ty)
    scaler = StandardScaler().fit(x)
    theirs = LogisticRegression(max_iter=1000).fit(scaler.transform(x), y).score(scaler.transform(tx), ty)
    assert 0.4 < theirs < 0.8  # neither chance nor trivial
    assert abs(ours - theirs) <= 0.005


@pytest.mark.parametrize("kind", ["linear", "attention"])
def test_labels_as_features_give_everything_and_shuffled_labels_chance(kind):
    draw = torch.Generator().manual_seed(0)
    labels = torch.stack([torch.randint(c, (900,), generator=draw) for c in (4, 3)], 1)  # two tasks
    code = torch.nn.functional.one_hot(labels[:, 0] * 3 + labels[:, 1], 12).float()
    noise = torch.randn(900, 12, generator=draw)
    layers = torch.stack([code, noise])  # layer 0 knows, layer 1 does not
    tokens = torch.stack([torch.stack([code, torch.zeros_like(code)], 1), noise[:, None].expand(-1, 2, -1)])
    parts = [features(layers[:, rows], tokens[:, rows]) for rows in torch.arange(900).split([400, 200, 300])]
    wanted = labels.split([400, 200, 300])
    bank = HeadBank(kind, [4, 3], epochs=60).run(parts[0], wanted[0], parts[1], wanted[1], parts[2])
    assert bank.test_predictions.shape == (2, 2, 300) and bank.lr.shape == bank.val_accuracy.shape == (2, 2)
    for task, chance in ((0, 1 / 4), (1, 1 / 3)):
        assert accuracy(bank.test_predictions[0, task], wanted[2][:, task]) == 1
        assert bank.val_accuracy[0, task] == 1
        assert accuracy(bank.test_predictions[1, task], wanted[2][:, task]) < chance + 0.1
    shuffled = labels[torch.randperm(900, generator=draw)].split([400, 200, 300])
    bank = HeadBank(kind, [4, 3]).run(parts[0], shuffled[0], parts[1], shuffled[1], parts[2])
    for task, chance in ((0, 1 / 4), (1, 1 / 3)):
        assert accuracy(bank.test_predictions[0, task], shuffled[2][:, task]) < chance + 0.1


def test_a_slice_is_what_it_would_be_alone():
    """Layers, tasks and rates trained together give the predictions of each trained by itself."""
    (x, y), (vx, vy), (tx, _) = gaussians(400), gaussians(100, seed=1), gaussians(100, seed=2)
    other = torch.randn_like(x)
    labels, val_labels = torch.stack([y, y % 2], 1), torch.stack([vy, vy % 2], 1)
    together = HeadBank("linear", [5, 2], (1e-3, 1e-2), epochs=5).run(
        features(torch.stack([other, x])),
        labels,
        features(torch.stack([torch.zeros_like(vx), vx])),
        val_labels,
        features(torch.stack([torch.zeros_like(tx), tx])),
    )
    for rate in (1e-3, 1e-2):
        alone = HeadBank("linear", [5], (rate,), epochs=5).run(
            features(x[None]), labels[:, :1], features(vx[None]), val_labels[:, :1], features(tx[None])
        )
        if rate == pytest.approx(together.lr[1, 0].item()):
            assert accuracy(alone.test_predictions[0, 0], together.test_predictions[1, 0]) > 0.98
            assert alone.val_loss[0, 0] == pytest.approx(together.val_loss[1, 0].item(), abs=1e-3)
        assert alone.val_accuracy[0, 0] <= together.val_accuracy[1, 0] + 0.011  # the better rate was taken


def test_attention_finds_the_token_that_averaging_hides():
    """The class is written in one of 16 tokens, at a random place; the others cancel the mean."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (1200,), generator=draw)
    place = torch.randint(16, (1200,), generator=draw)
    tokens = torch.randn(1200, 16, 8, generator=draw) * 2
    tokens[:, :, 0] = 0
    rows = torch.arange(1200)
    tokens[rows, place] = torch.nn.functional.one_hot(labels + 1, 8).float() * 2
    tokens[rows, place, 0] = 6  # where to look
    data = [features(tokens.mean(1)[None][:, r], tokens[None][:, r]) for r in rows.split([700, 200, 300])]
    wanted = labels[:, None].split([700, 200, 300])
    score = {}
    for kind in ("linear", "attention"):
        bank = HeadBank(kind, [4], epochs=60).run(data[0], wanted[0], data[1], wanted[1], data[2])
        score[kind] = accuracy(bank.test_predictions[0, 0], wanted[2][:, 0])
    assert score["attention"] > 0.95 > score["linear"] + 0.2


def test_stacked_attention_equals_the_module():
    """A slice of `AttentionHeads` is AttentionPooling on standardised tokens, then its linear classifier."""
    torch.manual_seed(0)
    tokens = (torch.randn(6, 10, 8) * 3 + 5).half()
    mean, std = tokens.float().mean((0, 1)), tokens.float().std((0, 1))
    heads = AttentionHeads(mean, std, tasks=2, settings=3, classes=4, seed=0)
    for p in heads.parameters():
        torch.nn.init.normal_(p)
    logits = heads(tokens[None].float())
    pool = AttentionPooling(8)
    with torch.no_grad():
        pool.query.copy_(heads.query[1, 2])
        pool.key.weight.copy_(heads.key[1, 2])
        pool.value.weight.copy_(heads.value[1, 2])
        expected = pool((tokens.float() - mean) / std) @ heads.weight[1, 2] + heads.bias[1, 2]
    torch.testing.assert_close(logits[0, :, 1, 2], expected, rtol=1e-4, atol=1e-4)


def test_pooling_modules():
    torch.manual_seed(0)
    tokens, mask = torch.randn(3, 7, 8), torch.arange(7) < torch.tensor([[7], [3], [1]])
    pool = AttentionPooling(8)
    torch.nn.init.normal_(pool.query)
    keys, values = pool.key(tokens), pool.value(tokens)
    weights = (keys @ pool.query / 8**0.5).masked_fill(~mask, float("-inf")).softmax(1)
    torch.testing.assert_close(pool(tokens, mask), (weights[..., None] * values).sum(1))
    torch.testing.assert_close(pool(tokens)[1], pool(tokens[1:2])[0])
    assert MeanPooling()(tokens, mask)[1].allclose(tokens[1, :3].mean(0))
    assert MeanPooling()(tokens)[1].allclose(tokens[1].mean(0))


def test_constant_features_and_unknown_heads():
    x = torch.ones(1, 40, 3)
    y = torch.arange(40)[:, None] % 2
    bank = HeadBank("linear", [2], epochs=2).run(features(x), y, features(x), y, features(x))
    assert torch.isfinite(bank.val_loss).all()
    with pytest.raises(ValueError, match="no head named 'mlp' to train; the heads are linear, attention"):
        HeadBank("mlp", [2])
