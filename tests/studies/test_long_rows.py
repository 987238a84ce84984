"""Scores of long rows: equal inside the context, paired beyond it, written whole, and the sentence for each mistake."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from studies.long_rows import main, mean_interval, score_ways, summary


def test_both_ways_score_the_same_rows(model):
    codes = torch.randint(64, 128, (3, 7 * 16), generator=torch.Generator().manual_seed(0))
    rows = torch.cat([torch.full((3, 1), 1), codes], dim=1)
    one, two = score_ways(model, rows, [1, 2], batch_size=2)
    assert (one["drop_frames"], two["drop_frames"]) == (1, 2)
    for way in (one, two):
        assert way["kept"].shape == way["recomputed"].shape == (3, 7)
        np.testing.assert_allclose(way["kept"][:, :4], way["recomputed"][:, :4], atol=1e-4)
        assert np.abs(way["kept"] - way["recomputed"])[:, 4:].max() > 1e-3
    assert not np.allclose(one["recomputed"][:, 4:], two["recomputed"][:, 4:])
    numbers = summary(one, 4)
    expected = (one["kept"] - one["recomputed"])[:, 4:].mean()
    assert numbers["kept_minus_recomputed"]["mean"] == pytest.approx(expected, abs=1e-6)
    assert numbers["nats_per_frame"]["kept"] == pytest.approx(one["kept"].mean(0).tolist())


def test_an_interval_covers_its_mean_and_shrinks():
    values = np.random.default_rng(0).normal(3, 1, 400)
    few, many = mean_interval(values[:25]), mean_interval(values)
    for found in (few, many):
        assert found["ci95"][0] < found["mean"] < found["ci95"][1]
    low, high = many["ci95"]
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert high - low < few["ci95"][1] - few["ci95"][0]


def test_the_command(checkpoint, tmp_path, capsys):
    output = tmp_path / "new" / "long.json"
    flags = ["--num_frames", "6", "--num_clips", "3", "--drop_frames", "1", "3", "--batch_size", "2"]
    main(["--model", checkpoint, "--output", str(output), *flags])
    about = json.loads(output.read_text())
    assert about["command"].startswith("python -m studies.long_rows --model ")
    assert about["context_frames"] == 4 and about["data"]["num_clips"] == 3
    assert [way["drop_frames"] for way in about["ways"]] == [1, 3]
    assert len(about["ways"][0]["nats_per_frame"]["kept"]) == 6
    with Image.open(output.with_suffix(".png")) as picture:
        assert picture.width > 500
    assert "beyond the 4 of the context" in capsys.readouterr().out


def test_mistakes_get_a_sentence(checkpoint, tmp_path):
    def run(*flags, output="a.json"):
        main(["--model", checkpoint, "--output", str(tmp_path / output), *flags])

    with pytest.raises(ValueError, match="--num_frames is 4, within the model's context of 4 frames"):
        run("--num_frames", "4")
    with pytest.raises(ValueError, match=r"drop_frames is 4, .*; set 1 to 3"):
        run("--num_frames", "6", "--num_clips", "2", "--drop_frames", "4")
    with pytest.raises(ValueError, match=r"must end in \.json"):
        run(output="a.txt")
    with pytest.raises(ValueError, match="needs at least 2"):
        run("--num_clips", "1")
