"""Folders of real pairs: depth is hand-computed, invalid places are unknown, and mistakes are sentences."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from studies.prompt_pairs import main, relative_depth
from training.prompting.examples import PairExamples
from training.prompting.tasks import TASKS


def test_depth_is_the_inverse_of_disparity_and_near_at_one():
    disparity = np.array([[40.0, 20.0], [10.0, 0.0]])
    valid = np.array([[True, True], [True, False]])
    nearest = np.percentile([40, 20, 10], 99)
    found = relative_depth(disparity, valid)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[nearest / 40, nearest / 20], [nearest / 10, np.nan]], rtol=1e-6)


def test_folders_are_read_as_pairs(tmp_path, capsys):
    dense, davis = tmp_path / "dense", tmp_path / "davis"
    valid = np.ones((4, 6), bool)
    valid[0, 0] = False
    for name, truth in (("a", {"disparity": np.full((4, 6), 7.0)}), ("b", {"flow": np.full((4, 6, 2), 2.0)})):
        (dense / "test" / name).mkdir(parents=True)
        for k in range(2):
            Image.fromarray(np.full((4, 6, 3), 50 * k, np.uint8)).save(dense / "test" / name / f"img{k}.png")
        np.savez(dense / "test" / name / "truth.npz", valid=valid, **truth)
    for tree, suffix, picture in (
        ("JPEGImages", "jpg", Image.new("RGB", (6, 4))),
        ("Annotations", "png", Image.fromarray(np.eye(4, 6, dtype=np.uint8))),
    ):
        (davis / "test" / tree / "480p" / "cat").mkdir(parents=True)
        picture.save(davis / "test" / tree / "480p" / "cat" / f"00000.{suffix}")
    output = tmp_path / "pairs"
    flags = ["--dense", str(dense), "--davis", str(davis)]
    main([*flags, "--sequences", "cat", "--output", str(output)])
    assert capsys.readouterr().out.count(": 1 pairs") == 3
    assert np.isnan(np.load(output / "depth" / "label" / "a.npy")[0, 0])
    assert np.isnan(np.load(output / "flow" / "label" / "b.npy")[0, 0]).all()
    for name, number in (("depth", 1), ("flow", 4), ("segmentation", None)):
        one = PairExamples(replace(TASKS[name], groups=1), output / name, 0, 8).read(
            0
        )  # the middle 4 of 6 columns, at twice the size
        if number is None:
            assert np.array_equal(one.truth[0], np.eye(4, 6)[:, 1:5].repeat(2, 0).repeat(2, 1))
        else:
            assert (one.truth == number).all()
    with pytest.raises(ValueError, match="exists already"):
        main([*flags, "--output", str(output)])
    with pytest.raises(FileNotFoundError, match=r"00000.jpg; check --sequences"):
        main(["--davis", str(davis), "--sequences", "dog", "--output", str(tmp_path / "other")])


def test_mistakes_are_sentences(tmp_path):
    with pytest.raises(ValueError, match="Neither --dense nor --davis is given"):
        main(["--output", str(tmp_path / "pairs")])
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nothing/test"):
        main(["--dense", str(tmp_path / "nothing"), "--output", str(tmp_path / "pairs")])
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match=r"holds no test/NAME/truth.npz"):
        main(["--dense", str(tmp_path), "--output", str(tmp_path / "pairs")])
