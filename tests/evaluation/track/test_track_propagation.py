"""Label propagation equals a plain reading of each published protocol, in memory that does not grow."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from evaluation.track import propagation
from evaluation.track.args import TrackArgs
from evaluation.track.propagation import Propagator, decode, grid_labels, largest
from evaluation.track.settings import DINO, DINOV3, SETTINGS, STC

H, W, D, C = 9, 7, 6, 3
FLAGS = {"model": "m", "dataset": "d", "output": "o.json"}


def plain(setting, features, first):
    """Labels (h, w, C) of all frames, one query and one key at a time."""
    n, frames = setting.context_frames, [torch.nn.functional.normalize(f.double(), dim=-1) for f in features]
    labels = [first.permute(1, 2, 0).double()]
    for t in range(1, len(frames)):
        before = range(t - n, t) if setting.starts_with_copies else range(max(1, t - n), t)
        sources = [(0, setting.restricts_first), *((max(0, s), True) for s in before)]
        made = torch.zeros_like(labels[0])
        for y in range(H):
            for x in range(W):
                keys = []
                for s, restricted in sources:
                    for v in range(H):
                        for u in range(W):
                            away = math.hypot(y - v, x - u) if setting.window == "disk" else max(abs(y - v), abs(x - u))
                            inside = away <= setting.radius if setting.includes_radius else away < setting.radius
                            if inside or not restricted:
                                keys.append((float(frames[t][y, x] @ frames[s][v, u]), labels[s][v, u]))
                keys.sort(key=lambda key: -key[0])
                last = keys[min(setting.top_k, len(keys)) - 1][0]
                taken = [k for k in keys if k[0] >= last - 1e-9] if setting.keeps_ties else keys[: setting.top_k]
                weights = torch.tensor([k[0] / setting.temperature for k in taken]).double().softmax(0)
                made[y, x] = sum(w * k[1] for w, k in zip(weights, taken, strict=True))
        labels.append(made / made.sum(-1, keepdim=True) if setting.normalises_labels else made)
    return labels


@pytest.mark.parametrize("pairs", [1, 10**9])
@pytest.mark.parametrize("setting", [STC, DINO, DINOV3], ids=lambda setting: setting.name)
def test_labels_equal_a_plain_reading_of_the_protocol(setting, pairs, monkeypatch):
    monkeypatch.setitem(propagation.PAIRS, "cpu", pairs)
    setting = replace(setting, context_frames=2, radius=3, top_k=4)
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(H, W, D, generator=generator) for _ in range(5)]
    if setting.keeps_ties:
        # few different tokens, as code embeddings are, so that many keys are equally similar
        words = torch.eye(D)
        features = [words[torch.randint(0, D, (H, W), generator=generator)] for _ in range(5)]
    # each key with its own labels, so that a wrong key shows
    first = torch.rand(C, H, W, generator=generator)
    propagator = Propagator(setting, features[0], first)
    expected = plain(setting, features, first)
    size = propagator.keys.shape
    for t in range(1, len(features)):
        found = propagator.step(features[t])
        # copies of one frame tie; which of them is taken does not matter
        torch.testing.assert_close(found.permute(1, 2, 0).double(), expected[t], atol=1e-5, rtol=1e-5)
    assert propagator.keys.shape == size


def test_the_first_choice_among_groups_is_exact():
    generator = torch.Generator().manual_seed(0)
    for values in (
        torch.randn(50, 640, generator=generator),
        torch.randint(0, 90, (50, 640), generator=generator).float(),
    ):
        values[:, ::3] = -math.inf
        expected = values.topk(5, 1).values
        found, places, more = largest(values, 5)
        assert torch.equal(found, expected) and torch.equal(values.gather(1, places), expected)
        assert all(len(set(row)) == 5 for row in places.tolist())
        assert torch.equal(more, (values >= expected[:, -1:]).sum(1) > 5)


def test_an_object_is_followed_wherever_its_features_go():
    """Features that name the object exactly: its mask moves with them, to the cell."""
    setting = replace(DINO, top_k=1)
    features, truth = [], []
    for t in range(6):
        mask = torch.zeros(16, 16, dtype=torch.long)
        mask[2 + t : 6 + t, 3 : 7 + t] = 1
        mask[12:, 12:] = 2
        features.append(torch.eye(3)[mask])
        truth.append(mask.to(torch.uint8).repeat_interleave(8, 0).repeat_interleave(8, 1).numpy())
    propagator = Propagator(setting, features[0], grid_labels(truth[0], 2, (16, 16), 128, setting))
    for t in range(1, 6):
        soft = propagator.step(features[t])
        found = decode(soft, (128, 128), 128, replace(setting, decode="nearest"))
        assert np.array_equal(found, truth[t])


def test_masks_to_the_grid_and_back():
    mask = np.zeros((60, 90), np.uint8)
    mask[:30, 45:] = 1
    for setting in SETTINGS.values():
        soft = grid_labels(mask, 2, (8, 8), 64, setting)
        assert soft.shape == (3, 8, 8) and soft[2].max() == 0
        torch.testing.assert_close(soft.sum(0), torch.ones(8, 8))
        assert (decode(soft, mask.shape, 64, setting) == mask).mean() > 0.95
    small = np.zeros((64, 64), np.uint8)
    small[9:12, 9:12] = 1  # between the centres of cells
    assert grid_labels(small, 1, (8, 8), 64, DINO)[1].max() == 0


def test_min_max_lets_a_faint_object_through():
    soft = torch.zeros(2, 8, 8)
    soft[0], soft[1, 2:5, 2:5] = 0.9, 0.3
    soft[0, 2:5, 2:5] = 0.7
    assert decode(soft, (64, 64), 64, STC).max() == 0
    assert decode(soft, (64, 64), 64, DINO).max() == 1
    constant = torch.zeros(2, 8, 8)
    constant[1] = 1
    assert np.isfinite(decode(constant, (64, 64), 64, DINO)).all()


def test_settings_differ_where_the_protocols_do_and_flags_change_them():
    assert (STC.context_frames, STC.top_k, STC.temperature, STC.restricts_first) == (20, 10, 0.05, False)
    assert (DINO.context_frames, DINO.top_k, DINO.temperature, DINO.window) == (7, 5, 0.1, "square")
    assert (DINOV3.temperature, DINOV3.window, DINOV3.normalises_labels) == (0.2, "disk", True)
    assert TrackArgs(**FLAGS).resolved() == STC
    assert TrackArgs(**FLAGS, setting="dino", top_k=5).resolved() == DINO
    changed = TrackArgs(**FLAGS, setting="dino", top_k=3, radius=4.5, context_frames=0, temperature=0.3).resolved()
    assert changed == replace(DINO, name="dino, changed", top_k=3, radius=4.5, context_frames=0, temperature=0.3)


def test_no_context_but_the_first_frame():
    setting = replace(STC, context_frames=0)
    features = torch.randn(H, W, D)
    propagator = Propagator(setting, features, torch.rand(C, H, W))
    propagator.step(features)
    assert propagator.step(features).shape == (C, H, W)
    assert Propagator(replace(DINO, context_frames=0), features, torch.rand(C, H, W)).step(features).isfinite().all()
