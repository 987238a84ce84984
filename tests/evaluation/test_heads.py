"""Heads agree with scikit-learn, learn what can be learnt and nothing else, and never mix their slices."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from evaluation.backbones.contract import Features
from evaluation.heads.bank import HEADS, HeadBank, make_head
from evaluation.heads.selection import choose
from evaluation.heads.stacked import AttentionHeads, CrossAttentionHeads, LinearHeads, StackedAdamW
from modeling_toto.pooling_toto import AttentionPooling, CrossAttentionPooling, MeanPooling


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


def is_chance(predictions: torch.Tensor, labels: torch.Tensor, chance: float) -> bool:
    """Within three standard deviations of guessing."""
    return abs(accuracy(predictions, labels) - chance) < 3 * (chance * (1 - chance) / len(labels)) ** 0.5


def accuracy(predictions: torch.Tensor, labels: torch.Tensor) -> float:
    return (predictions == labels).float().mean().item()


def scikit_learn(train, validation, test) -> float:
    """Test accuracy of logistic regression whose penalty is chosen on validation, too."""
    scaler = StandardScaler().fit(train[0])
    best = (-1.0, 0.0)
    for c in (1.0, 0.1, 0.01):
        model = LogisticRegression(C=c, max_iter=1000).fit(scaler.transform(train[0]), train[1])
        best = max(
            best, *[tuple(model.score(scaler.transform(x), y) for x, y in (validation, test))], key=lambda b: b[0]
        )
    return best[1]


def mixed(count: int, seed: int, dim: int = 48, classes: int = 10):
    """Ten overlapping classes on features that are strongly correlated: x (N, dim), y (N,)."""
    fixed, draw = torch.Generator().manual_seed(5), torch.Generator().manual_seed(seed)
    centres, mix = torch.randn(classes, dim, generator=fixed) * 0.3, torch.randn(dim, dim, generator=fixed)
    y = torch.randint(classes, (count,), generator=draw)
    return (centres[y] + torch.randn(count, dim, generator=draw)) @ mix + 3, y


def digits(seed: int):
    """Scikit-learn's digits (8 x 8 pixels): 900 to train on, 300 for validation, 597 for the test."""
    pixels, numbers = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
    parts = order.split([900, 300, 597])
    return [(pixels[rows].float(), numbers[rows]) for rows in parts]


def test_linear_head_agrees_with_scikit_learn():
    """Within half a point on five wide spread, ten correlated classes, and digits (mean of three splits)."""
    problems = {
        "scaled": [[gaussians(3000), gaussians(1000, seed=1), gaussians(4000, seed=2)]],
        "mixed": [[mixed(3000, 1), mixed(1000, 2), mixed(5000, 3)]],
        "digits": [digits(seed) for seed in range(3)],
    }
    for name, splits in problems.items():
        ours, theirs = [], []
        for (x, y), (vx, vy), (tx, ty) in splits:
            sets = (features(x[None]), y[:, None], features(vx[None]), vy[:, None], features(tx[None]))
            ours.append(accuracy(HeadBank("linear", [int(y.max()) + 1]).run(*sets).test_predictions[0, 0], ty))
            theirs.append(scikit_learn((x, y), (vx, vy), (tx, ty)))
        assert 0.4 < np.mean(theirs) < 0.98, name  # neither chance nor trivial
        assert abs(np.mean(ours) - np.mean(theirs)) <= 0.005, (name, ours, theirs)


@pytest.mark.parametrize("kind", ["linear", "attention", "cross_attention_mlp"])
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
    assert bank.test_predictions.shape == (2, 2, 300) and bank.choice.shape == bank.val_accuracy.shape == (2, 2)
    for task, chance in ((0, 1 / 4), (1, 1 / 3)):
        assert accuracy(bank.test_predictions[0, task], wanted[2][:, task]) == 1
        assert bank.val_accuracy[0, task] == 1
        assert is_chance(bank.test_predictions[1, task], wanted[2][:, task], chance)
    shuffled = labels[torch.randperm(900, generator=draw)].split([400, 200, 300])
    bank = HeadBank(kind, [4, 3]).run(parts[0], shuffled[0], parts[1], shuffled[1], parts[2])
    for task, chance in ((0, 1 / 4), (1, 1 / 3)):
        assert is_chance(bank.test_predictions[0, task], shuffled[2][:, task], chance)


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
        if rate == pytest.approx(together.setting(1, 0)["lr"]):
            assert accuracy(alone.test_predictions[0, 0], together.test_predictions[1, 0]) > 0.98
            assert alone.val_loss[0, 0] == pytest.approx(together.val_loss[1, 0].item(), abs=1e-3)
        # the better rate was taken: half a standard error of 100 clips is at most 0.025
        assert alone.val_accuracy[0, 0] <= together.val_accuracy[1, 0] + 0.025


def test_attention_does_not_lose_to_linear_on_features_that_are_nearly_collinear():
    """Classes differ in directions that are small next to a common one; low rates do not reach them in few steps."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 1, 24, generator=draw)

    def clips(count: int):
        labels = torch.arange(count) % 4
        common, own, each = (
            scale * torch.randn(count, *shape, generator=draw)
            for scale, shape in ((1, (1, 1)), (0.075, (1, 24)), (0.05, (4, 24)))
        )
        tokens = common + own + each + 0.05 * centres[labels]  # (N, 4, 24)
        return features(tokens.mean(1)[None], tokens[None]), labels[:, None]

    (train, labels), (validation, wanted), (test, _) = (clips(count) for count in (600, 600, 4))
    right = {}
    for kind in ("linear", "attention"):
        right[kind] = HeadBank(kind, [4]).run(train, labels, validation, wanted, test).val_accuracy.item()
    assert right["attention"] > right["linear"] - 0.02 > 0.8


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


@pytest.mark.parametrize(("kind", "dim"), [(AttentionHeads, 8), (CrossAttentionHeads, 8), (CrossAttentionHeads, 128)])
def test_a_stacked_slice_equals_the_module(kind, dim):
    """A slice is the pooling module on standardised tokens, then its linear classifier; 128 wide: two heads."""
    torch.manual_seed(0)
    tokens = (torch.randn(6, 10, dim) * 3 + 5).half().float()
    mean, std = tokens.mean((0, 1)), tokens.std((0, 1))
    heads = kind(mean, std, tasks=2, settings=3, classes=4, seed=0)
    for p in heads.parameters():
        torch.nn.init.normal_(p, std=dim**-0.5)
    pool = AttentionPooling(dim) if kind is AttentionHeads else CrossAttentionPooling(dim, heads.num_heads)
    modules = ("key", "value", "output", "norm", "expand", "contract")
    weights = {"query": heads.query} | {
        f"{name}.{part}": getattr(heads, stacked)
        for name in modules
        for part, stacked in (("weight", name), ("bias", f"{name}_bias"))
        if hasattr(heads, stacked)
    }
    pool.load_state_dict({name: p[1, 2] for name, p in weights.items()})
    expected = pool((tokens - mean) / std) @ heads.weight[1, 2] + heads.bias[1, 2]
    torch.testing.assert_close(heads(tokens[None])[0, :, 1, 2], expected, rtol=1e-4, atol=1e-4)
    assert kind is AttentionHeads or heads.num_heads == max(1, dim // 64)
    heads.keep(torch.tensor([[0, 2]]))
    torch.testing.assert_close(heads(tokens[None])[0, :, 1, 0], expected, rtol=1e-4, atol=1e-4)


def test_each_slice_of_the_optimiser_is_adamw():
    """Rates and decays of its own for each setting; biases are not decayed."""
    torch.manual_seed(0)
    rates, decays = [1e-2, 1e-3], [0.5, 0.0]
    heads = LinearHeads(torch.zeros(2, 1, 6), torch.ones(2, 1, 6), tasks=1, settings=2, classes=3)
    gradients = [[torch.randn_like(p) for p in heads.parameters()] for _ in range(5)]
    ours = StackedAdamW(heads, torch.tensor(rates), torch.tensor(decays))
    alone = [[p.detach()[:, :, :, s].clone().requires_grad_() for p in heads.parameters()] for s in (0, 1)]
    theirs = [
        torch.optim.AdamW([{"params": weight, "weight_decay": d}, {"params": bias, "weight_decay": 0}], lr=r)
        for (weight, bias), r, d in zip(alone, rates, decays, strict=True)
    ]
    for step in gradients:
        for p, gradient in zip(heads.parameters(), step, strict=True):
            p.grad = gradient.clone()
        ours.step(1.0)
        for s in (0, 1):
            for p, gradient in zip(alone[s], step, strict=True):
                p.grad = gradient[:, :, :, s].clone()
            theirs[s].step()
    for s in (0, 1):
        for p, q in zip(heads.parameters(), alone[s], strict=True):
            torch.testing.assert_close(p[:, :, :, s], q)


def test_what_is_chosen():
    """Clearly better accuracy wins; within half a standard error (here 0.0125) the lower loss; never what diverged."""
    nan, inf = float("nan"), float("inf")
    accuracy = torch.tensor([[0.50, 0.51, 0.48], [0.50, 0.53, 0.48], [0.50, 0.90, 0.90]])
    loss = torch.tensor([[1.0, 1.5, 0.5], [1.0, 1.5, 0.5], [1.0, nan, inf]])
    assert choose(accuracy, loss, 400).tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="Every head diverged"):
        choose(torch.ones(2, 1), torch.tensor([[1.0], [nan]]), 100)


def test_weight_decays_are_part_of_the_grid():
    """Few clips and many useless features: a strong decay helps, and the bank finds it on validation."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(600, 100, generator=draw), torch.arange(600) % 2
    x[:, 0] += 1.5 * y
    data = [features(part[None]) for part in x.split([100, 400, 100])]
    labels = y[:, None].split([100, 400, 100])
    sets = (data[0], labels[0], data[1], labels[1], data[2])
    alone = [HeadBank("linear", [2], (1e-2,), (decay,)).run(*sets) for decay in (0.0, 1.0, 10.0)]
    losses = [chosen.val_loss.item() for chosen in alone]
    assert losses[1] < losses[0] - 0.05
    together = HeadBank("linear", [2], (1e-2,), (0.0, 1.0, 10.0)).run(*sets)
    assert together.settings == [{"lr": 1e-2, "weight_decay": decay} for decay in (0.0, 1.0, 10.0)]
    best = together.choice.item()
    assert best == min(range(3), key=losses.__getitem__)  # they are within half a standard error
    assert together.val_loss.item() == pytest.approx(losses[best], abs=1e-3)
    assert together.setting(0, 0) == together.settings[best]


@pytest.mark.parametrize("kind", ["linear", "attention", "cross_attention_mlp"])
def test_a_head_that_diverges_is_not_chosen_and_harms_no_other(kind):
    (x, y), (vx, vy), (tx, _) = gaussians(200), gaussians(60, seed=1), gaussians(60, seed=2)
    data = [features(z[None, :, :8], z[None, :, :8].unflatten(-1, (2, 4))) for z in (x / 100, vx / 100, tx / 100)]
    sets = (data[0], y[:, None], data[1], vy[:, None], data[2])
    sane = HeadBank(kind, [5], (1e-2,), (0.1,), epochs=3).run(*sets)
    beside = HeadBank(kind, [5], (1e30, 1e-2, 1e38), (0.1,), epochs=3).run(*sets)
    assert beside.setting(0, 0) == {"lr": 1e-2, "weight_decay": 0.1}
    torch.testing.assert_close(beside.val_loss, sane.val_loss, rtol=1e-4, atol=1e-4)
    assert accuracy(beside.test_predictions, sane.test_predictions) > 0.98
    with pytest.raises(ValueError, match="Every head diverged for some layer and label; use smaller learning rates"):
        HeadBank(kind, [5], (1e38,), epochs=3).run(*sets)


def test_batch_norm_before_linear_heads():
    """In training it is torch's own without affine parameters; at test the training set's statistics stand in."""
    torch.manual_seed(0)
    x = torch.randn(2, 30, 6) * 3 + 1
    mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True, correction=0)
    heads = LinearHeads(mean, std, tasks=1, settings=1, classes=3, batch_norm=True)
    torch.nn.init.normal_(heads.weight)
    norm, batch = torch.nn.BatchNorm1d(6, affine=False, eps=1e-6), x[:, :7]
    for layer in (0, 1):
        expected = norm(batch[layer]) @ heads.weight[layer, :, 0, 0]
        torch.testing.assert_close(heads(batch)[layer, :, 0, 0], expected, rtol=1e-4, atol=1e-4)
    expected = ((batch - mean) / std) @ heads.weight[:, :, 0, 0]
    torch.testing.assert_close(heads.eval()(batch)[:, :, 0, 0], expected, rtol=1e-4, atol=1e-4)

    (x, y), (vx, vy), (tx, ty) = gaussians(1500), gaussians(400, seed=1), gaussians(2000, seed=2)
    sets = (features(x[None]), y[:, None], features(vx[None]), vy[:, None], features(tx[None]))
    plain, normed = (make_head("linear", [5], batch_norm=norm).run(*sets) for norm in (False, True))
    assert not torch.equal(plain.val_loss, normed.val_loss)
    assert abs(accuracy(plain.test_predictions[0, 0], ty) - accuracy(normed.test_predictions[0, 0], ty)) < 0.02
    with pytest.raises(ValueError, match="attention heads have no batch normalisation; use batch_norm with linear"):
        HeadBank("attention", [5], batch_norm=True)


def small_sets(tokens: int = 3, dim: int = 8):
    """Two layers, two tasks of 4 and 3 classes; 61, 30 and 25 clips: what `run` takes, in its order."""
    draw = torch.Generator().manual_seed(3)
    labels = torch.stack([torch.randint(c, (116,), generator=draw) for c in (4, 3)], 1)
    x = torch.randn(2, 116, tokens, dim, generator=draw) + labels.sum(1).float()[:, None, None] * 0.3
    parts = [features(part.mean(2), part) for part in x.split([61, 30, 25], 1)]
    wanted = labels.split([61, 30, 25])
    return parts[0], wanted[0], parts[1], wanted[1], parts[2]


RESULTS = ("choice", "val_accuracy", "val_loss", "test_predictions")


def same(a, b) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in RESULTS)


@pytest.mark.parametrize("kind", HEADS)
def test_probabilities_of_each_clip(kind):
    chosen = make_head(kind, [4, 3], epochs=2).run(*small_sets(), items=torch.arange(25), probabilities=True)
    likely = chosen.test_probabilities
    assert likely.shape == (2, 2, 25, 4) and (likely >= 0).all()
    torch.testing.assert_close(likely.sum(-1), torch.ones(2, 2, 25))
    assert (likely[:, 1, :, 3] == 0).all()  # the second task has three classes
    assert torch.equal(likely.argmax(-1), chosen.test_predictions)
    assert make_head(kind, [4, 3], epochs=2).run(*small_sets()).test_probabilities is None

    items = torch.arange(25) % 9  # clips of nine videos
    videos = make_head(kind, [4, 3], epochs=2).run(*small_sets(), items=items, probabilities=True)
    means = torch.stack([likely[:, :, items == item].mean(2) for item in range(9)], 2)
    torch.testing.assert_close(videos.test_probabilities, means)
    assert torch.equal(videos.test_predictions, videos.test_probabilities.argmax(-1))


@pytest.mark.parametrize("kind", HEADS)
def test_test_clips_have_no_part_in_the_moments_that_standardise(kind):
    """A clip is predicted alike whatever other clips are tested with it."""
    sets = small_sets()
    head = make_head(kind, [4, 3], epochs=2)
    alone = head.run(*sets, items=torch.arange(25), probabilities=True)
    far = features(1000 + sets[4].pooled, None if sets[4].tokens is None else 1000 + sets[4].tokens.float())
    both = Features([0, 1], torch.cat([sets[4].pooled, far.pooled], 1), torch.cat([sets[4].tokens, far.tokens], 1))
    together = head.run(*sets[:4], both, items=torch.arange(50), probabilities=True)
    torch.testing.assert_close(together.test_probabilities[:, :, :25], alone.test_probabilities)
    assert torch.equal(together.val_loss, alone.val_loss)


@pytest.mark.parametrize("kind", HEADS)
def test_memory_mapped_features_are_read_in_place(kind, tmp_path):
    sets = list(small_sets())
    expected = make_head(kind, [4, 3], epochs=2).run(*sets)
    for place in (0, 2, 4):
        mapped = []
        for name in ("pooled", "tokens"):
            np.save(tmp_path / f"{place}{name}.npy", getattr(sets[place], name).numpy())
            mapped.append(np.load(tmp_path / f"{place}{name}.npy", mmap_mode="r"))
        sets[place] = Features([0, 1], *mapped)
    assert same(make_head(kind, [4, 3], epochs=2).run(*sets), expected)


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


def test_constant_features():
    x = torch.ones(1, 40, 3)
    y = torch.arange(40)[:, None] % 2
    bank = HeadBank("linear", [2], epochs=2).run(features(x), y, features(x), y, features(x))
    assert torch.isfinite(bank.val_loss).all()


def test_bad_input_is_reported_before_any_work():
    train, labels, validation, val_labels, test = small_sets()
    for kind in ("linear", "ridge"):
        head = make_head(kind, [4, 3])
        with pytest.raises(ValueError, match="Label 4 of train clip 2 is out of range: task 0 has classes 0 to 3"):
            wrong = labels.clone()
            wrong[2, 0] = 4
            head.run(train, wrong, validation, val_labels, test)
        with pytest.raises(ValueError, match="Label -1 of validation clip 0 is out of range"):
            head.run(train, labels, validation, torch.full_like(val_labels, -1), test)
        with pytest.raises(
            ValueError, match=r"The train labels have shape \(60, 2\); 61 clips and 2 tasks need \(61, 2\)"
        ):
            head.run(train, labels[1:], validation, val_labels, test)
        with pytest.raises(ValueError, match="are of different layers"):
            head.run(Features([0, 2], train.pooled, None), labels, validation, val_labels, test)
        broken = train.pooled.clone()
        broken[1, 3, 0] = float("nan")
        with pytest.raises(ValueError, match="contain NaN or infinity"):
            head.run(Features([0, 1], broken, None), labels, validation, val_labels, test)
    with pytest.raises(ValueError, match="attention heads read tokens, which these features lack"):
        HeadBank("attention", [4, 3]).run(Features([0, 1], train.pooled, None), labels, validation, val_labels, test)
    with pytest.raises(
        ValueError, match="There is no head 'mlp'; the heads are linear, attention, cross_attention_mlp, ridg"
    ):
        make_head("mlp", [2])
    with pytest.raises(ValueError, match="There is no trained head 'ridge'; the trained heads are linear, attention"):
        HeadBank("ridge", [2])
