"""Render-and-compare finds true angles, floors do what they say, and flags are checked."""

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.prompt import rotation_measure as measure
from evaluation.prompt.rotation import RotationArgs, main, read_result
from evaluation.prompt.rotation_figures import SHOWN, sheet, table
from evaluation.prompt.rotation_results import RotationResult
from tokenization.toyworld import TurntableRules, TurntableWorld

MOTION = Path(__file__).parents[2] / "checkpoints" / "toto-motion"
VIEWS = np.arange(0, 360, 1.5)


@pytest.fixture(scope="module")
def world():
    return TurntableWorld("test", TurntableRules(elevation=30))


def test_differences_are_on_the_circle():
    assert measure.difference([350, 10, 180, 0], [10, 350, 0, 0]).tolist() == [-20, 20, -180, 0]


def test_true_frames_have_no_error(world):
    for index in range(4):
        clip = world.clip(index)
        found = measure.find_angles(clip["video"], world.views(index, VIEWS), VIEWS)
        assert np.abs(measure.difference(found, clip["angle"])).max() <= 0.75  # neighbouring views may look the same
        turned = measure.find_angles(world.views(index, clip["angle"] + 45), world.views(index, VIEWS), VIEWS)
        assert np.abs(measure.difference(turned, clip["angle"] + 45)).max() <= 0.75


def test_noise_does_not_turn_an_object(world):
    clip = world.clip(0)
    noise = np.random.default_rng(0).normal(0, 12, clip["video"].shape)
    noisy = np.clip(clip["video"] + noise, 0, 255).astype(np.uint8)
    found = measure.find_angles(noisy, world.views(0, VIEWS), VIEWS)
    assert np.abs(measure.difference(found, clip["angle"])).max() <= 3


def test_equal_views_give_their_middle():
    views = np.zeros((8, 2, 2, 3), np.uint8)
    views[[0, 1, 7]] = 9
    angles = np.array([0, 3, 6, 9, 12, 180, 354, 357])
    found = measure.find_angles(np.full((1, 2, 2, 3), 9, np.uint8), views, angles)
    assert found.tolist() == [0]
    views[5] = 9  # as near, but another side
    assert measure.find_angles(np.full((1, 2, 2, 3), 9, np.uint8), views, angles).tolist() == [0]


def test_flow_carries_on_a_shift():
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 255, (8, 12), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    smooth = (wide[:-1, :-1].astype(int) + wide[1:, :-1] + wide[:-1, 1:] + wide[1:, 1:]) // 4
    clip = np.stack([smooth[:60, 20 - t : 80 - t] for t in range(5)])[..., None].repeat(3, -1).astype(np.uint8)
    drawn = measure.flow_continued(clip[:2], 3)
    inner = np.s_[:, 10:-10, 14:-14]
    moved = np.abs(drawn[inner].astype(int) - clip[2:][inner]).mean()
    still = np.abs(clip[1:2][inner].astype(int) - clip[2:][inner]).mean()
    assert moved < still / 3
    assert np.array_equal(measure.flow_continued(clip[:1], 2), clip[:1].repeat(2, 0))


def test_scores_of_known_errors():
    true = np.array([[0.0, 22.5], [90, 67.5], [10, 32.5], [200, 177.5]])
    step = np.array([22.5, -22.5, 22.5, -22.5])
    off = np.array([[0, 20], [11.25, -20], [-11.5, 20], [0, 180]])
    scores = measure.scores((true + off) % 360, true, step, np.full((4, 2), 30.0))
    assert scores.error == [5.625, 20] and scores.within == [0.75, 0.0]
    assert scores.all_within == 0.375 and scores.psnr == [30, 30]
    low, high = scores.all_error_ci95
    assert low <= scores.all_error <= high and low < high
    right = measure.is_within(true, true, step)
    wrong = measure.is_within(true + 90, true, step)
    versus = measure.compare(right, wrong)
    assert versus.difference == 1 and versus.verdict == "above"
    assert measure.compare(right, right).verdict == "no significant difference"
    # of two objects, one is right in all of fifty frames and one is wrong: frames of an object are not independent
    one = np.array([[True] * 50, [False] * 50])
    assert measure.compare(one, np.zeros((2, 50), bool)).ci95 == [0, 1]


def test_psnr_is_capped():
    frames = np.zeros((1, 2, 4, 4, 3), np.uint8)
    other = frames.copy()
    other[0, 1] = 255
    assert np.allclose(measure.psnr(frames, other), [[100, 0]])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({}, "--model MODEL is missing"),
        ({"model": "m"}, "--output FILE.json is missing"),
        ({"model": "m", "output": "a.png"}, "--output is 'a.png'; it must end in .json"),
        ({"dataset": "toyworld:motion"}, "only toyworld:turntable has the angles"),
        ({"split": "train"}, "--split is 'train'; it must be one of validation, test"),
        ({"num_frames": 0}, "--num_frames is 0; it must be above 0"),
        ({"max_clips": 1}, "--max_clips is 1; intervals need at least two objects"),
        ({"temperature": -1.0}, "--temperature is -1.0; it must be at least 0"),
        ({"angle_step": 2.0}, "--angle_step is 2; it must be 0.5, 1.5, 2.5 or 7.5"),
    ],
)
def test_wrong_flags_are_one_sentence(flags, sentence):
    given = flags if "model" in flags or not flags else {"model": "m", "output": "a.json"} | flags
    with pytest.raises(ValueError, match=sentence) as error:
        RotationArgs(**given)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_flags_without_effect_are_refused():
    with pytest.raises(ValueError, match="--seed"):
        main(["--model", "m", "--output", "a.json", "--seed", "1"])
    with pytest.raises(ValueError, match="does not know the rule 'spin=1'"):
        main(["--model", "m", "--output", "a.json", "--dataset", "toyworld:turntable:spin=1"])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The files of a run of an untrained model, and its result."""
    from modeling_toto import TotoConfig, TotoForCausalLM
    from tokenization.processing_toto import TotoProcessor

    folder = tmp_path_factory.mktemp("rotation")
    processor = TotoProcessor.from_visual_tokenizer(str(MOTION / "visual_tokenizer")).with_sizes(64, 4)
    config = TotoConfig(vocab_size=704, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                        num_attention_heads=2, num_key_value_heads=2, tokens_per_frame=64, num_frames=4,
                        max_position_embeddings=258)  # fmt: skip
    model = folder / "model"
    TotoForCausalLM(config).save_pretrained(model)
    processor.save_pretrained(model)
    output = folder / "made" / "rotation.json"
    flags = ["--max_clips", "2", "--num_prompt_frames", "2", "--num_frames", "2", "--angle_step", "7.5"]
    main(["--model", str(model), "--output", str(output), *flags, "--sheets", "1"])
    return model, output, flags


def test_a_run_writes_result_figure_and_sheet(written):
    _, output, _ = written
    content = json.loads(output.read_text())
    result = RotationResult.from_json(content)
    assert result.to_json() == content and result.command.startswith("toto prompt rotation --model ")
    assert list(result.scores) == ["greedy", "copy", "flow", "untrained", "ceiling", "plain"]
    assert result.scores["ceiling"].all_error <= 3.75 and result.scores["ceiling"].all_within == 1
    # the last frame is a step behind, then two
    assert 15 <= result.scores["copy"].error[0] <= 30 and 37 <= result.scores["copy"].error[1] <= 53
    assert result.scores["copy"].all_within == 0 and result.chance == 22.5 / 360
    assert set(result.versus) == set(result.scores) - {"greedy"}
    assert {file.name for file in output.parent.iterdir()} == {
        "rotation.json",
        "rotation.png",
        "rotation_sheet.png",
    }
    assert "copy last frame" in table(result) and min(SHOWN) == 1


def test_results_are_compared_on_the_same_clips_only(written, tmp_path):
    model, output, flags = written
    main(["--model", str(model), "--output", str(tmp_path / "b.json"), *flags, "--compare", str(output)])
    args = RotationArgs(model="m", output="a.json", num_prompt_frames=2, num_frames=2, max_clips=3)
    with pytest.raises(ValueError, match="has 2 clips; set --max_clips 2"):
        read_result(str(output), args)
    args = RotationArgs(model="m", output="a.json", num_prompt_frames=4, num_frames=2, max_clips=2)
    with pytest.raises(ValueError, match="has num_prompt_frames 2, but this run has 4"):
        read_result(str(output), args)


def test_the_sheet_shows_true_above_drawn(world):
    video = np.stack([world.clip(index)["video"][:4] for index in range(2)])
    angle, found = np.zeros((2, 4)), np.zeros((2, 2))
    picture = np.asarray(sheet(video, video[:, :2], video[:, 2:] // 2, angle, found, 1).convert("RGB"))
    tile = video[0, 0].repeat(2, 0).repeat(2, 1)
    assert np.abs(picture[40:168, 70:198].astype(int) - tile).max() < 24  # few colours
