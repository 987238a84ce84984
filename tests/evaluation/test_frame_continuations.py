"""Continuations of any data are measured in pixels and codes, and the results of several models are compared."""

import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from evaluation.continuations import floors
from evaluation.continuations.comparison import read_results
from evaluation.continuations.frame_clips import FrameExaminer
from evaluation.continuations.measures import Drawn, mean
from evaluation.continuations.tables import comparison_table
from evaluation.generate import main
from evaluation.results import ContinuationResult, FrameContinuationResult

PROMPT, FRAMES, SIDE = 2, 5, 32
MOTION = Path(__file__).parents[2] / "checkpoints" / "toto-motion" / "scores.json"


@pytest.fixture(scope="module")
def frames():
    """4 clips of a smooth texture that moves 2 pixels down and 1 to the left in each frame."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(4):
        coarse = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8))
        texture = np.asarray(coarse.resize((64, 64), Image.Resampling.BICUBIC))
        found.append([texture[16 - 2 * t : 48 - 2 * t, 16 + t : 48 + t] for t in range(FRAMES)])
    return np.array(found)


@pytest.fixture(scope="module")
def codes():
    return np.random.default_rng(1).integers(0, 64, (4, FRAMES, 4, 4))


@pytest.fixture(scope="module")
def examiner(frames, codes):
    return FrameExaminer(frames, codes, PROMPT)


def test_the_truth_itself_is_right(examiner, frames, codes):
    scores = examiner.scores(examiner.values(Drawn(frames[:, PROMPT:], codes[:, PROMPT:])))
    assert scores.codes.mean == scores.changed_codes.mean == scores.ssim.mean == [1.0] * 3
    assert scores.psnr.mean == [150.0] * 3 and scores.codes.clips == [4] * 3


def test_mistakes_lower_the_measures(examiner, frames, codes):
    noisy = (frames[:, PROMPT:] ^ np.uint8(16)).copy()  # every value is 16 off
    wrong = codes[:, PROMPT:].copy()
    wrong[:, 1, 0] += 1  # a quarter of the second frame
    values = examiner.values(Drawn(noisy, wrong))
    assert np.allclose(values.curves["mse"], (16 / 255) ** 2) and (values.curves["ssim"] < 0.99).all()
    assert np.array_equal(values.curves["codes"][:, :2], [[1, 0.75]] * 4)
    last = codes[:, PROMPT - 1]
    still = examiner.values(Drawn(noisy, last[:, None].repeat(3, 1)))
    assert (still.curves["changed_codes"] == 0).all()


def test_the_best_drawing_has_the_least_error(examiner, frames, codes):
    true = Drawn(frames[:, PROMPT:], codes[:, PROMPT:])
    worse = Drawn(true.frames ^ np.uint8(8), true.codes)
    mixed = [Drawn(np.where(np.arange(4)[:, None, None, None, None] < 2, *pair), true.codes)
             for pair in ((true.frames, worse.frames), (worse.frames, true.frames))]  # fmt: skip
    drawings = [examiner.values(each) for each in mixed]
    assert (examiner.best(drawings).curves["mse"] == 0).all()
    assert np.allclose(mean(drawings).curves["mse"], (8 / 255) ** 2 / 2)


def test_optical_flow_goes_on_with_the_motion(frames):
    moved, copied = floors.warped_by_flow(frames[:, :PROMPT], 3), frames[:, PROMPT - 1, None]
    assert moved.shape == frames[:, PROMPT:].shape and moved.dtype == np.uint8
    inside = (slice(None), slice(None), slice(10, -10), slice(10, -10))
    errors = [
        ((each[inside].astype(float) - frames[:, PROMPT:][inside]) ** 2).mean((0, 2, 3, 4)) for each in (moved, copied)
    ]
    assert (errors[0] < 0.2 * errors[1]).all()  # the flow of so few pixels is not exact
    still = floors.warped_by_flow(frames[:, :1], 2)  # nothing is known of the motion
    assert np.array_equal(still, frames[:, :1].repeat(2, 1))


SMALL = ["--score", "--max_clips", "3", "--num_samples", "2", "--batch_size", "2"]


@pytest.fixture(scope="module")
def result_file(checkpoint, tmp_path_factory):
    """The result for clips of the embedded world, with all that can be written next to it."""
    file = tmp_path_factory.mktemp("scores") / "new" / "scores.json"
    flags = ["--dataset", "toyworld", "--floor_clips", "4", "--sheets", "2", "--predictions"]
    main([*SMALL, *flags, "--model", checkpoint, "--output", str(file)])
    return file


def test_the_command(result_file, checkpoint):
    content = json.loads(result_file.read_text())
    result = FrameContinuationResult.from_json(content)
    assert result.to_json() == content and result.other == {} and "NaN" not in result_file.read_text()
    names = ["greedy", "sampled", "best", "copy", "constant_velocity", "previous_frame", "untrained", "ceiling"]
    assert list(result.scores) == names and list(result.nats) == ["teacher_forced", "greedy", "sampled"]
    assert (result.num_prompt_frames, result.num_frames, result.resolution, result.stride) == (2, 2, 32, None)
    assert result.scores["ceiling"].codes.mean == [1.0, 1.0] and result.scores["ceiling"].psnr.mean[0] < 100
    assert result.scores["copy"].changed_codes.mean == [0.0, 0.0] and result.clips == 3
    assert result.sources == [f"toyworld/simple/test/0/{index}@0" for index in range(3)]
    folder = result_file.parent
    with Image.open(folder / "scores.png") as figure, Image.open(folder / "scores_sheet.png") as sheet:
        assert figure.width > 1000 and sheet.width > 4 * 128
    kept = np.load(folder / "scores.npz")
    assert kept["greedy.ssim"].shape == kept["nats.sampled"].shape == (3, 2)
    assert len(list(folder.iterdir())) == 4


def write_video(path, count: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 40, 32, "yuv420p"
        for level in range(count):
            picture = np.full((32, 40, 3), 10 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def test_a_folder_of_videos(checkpoint, tmp_path, capsys):
    """One clip of each video; what is too short is skipped and counted."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, count in (("long", 20), ("middle", 8), ("short", 3)):
        write_video(folder / f"{name}.mp4", count)
    file = tmp_path / "a.json"
    flags = ["--dataset", str(folder), "--split", "train", "--stride", "2", "--num_samples", "1", "--num_frames", "2"]
    main(["--score", *flags, "--model", checkpoint, "--output", str(file)])
    result = FrameContinuationResult.from_json(json.loads(file.read_text()))
    assert (result.clips, result.stride, result.fps, result.floor_clips) == (2, 2, None, 0)
    assert [source.split("/")[-1] for source in result.sources] == ["long.mp4@6", "middle.mp4@0"]
    assert "previous_frame" not in result.scores
    text = capsys.readouterr().out
    assert "1 of 3 videos were skipped; the first: " in text and "2 train clips of" in text
    with pytest.raises(ValueError, match="has no clip of 4 frames at this stride"):
        main(["--score", *flags[:4], "--stride", "9", "--model", checkpoint, "--output", str(tmp_path / "b.json")])
    assert not (tmp_path / "b.json").exists()


def test_mistakes_get_a_sentence(checkpoint, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (40, 40)).save(pictures / "a.png")
    for flags, sentence in (
        (["--dataset", str(pictures), "--split", "train"], "holds images, which nothing follows; name one of videos"),
        (["--dataset", "toyworld:photos"], "holds images, which nothing follows"),
        (["--dataset", "toyworld", "--split", "train"], "--split is train, which the model was trained on"),
        (["--dataset", "toyworld", "--checkpoints"], "--checkpoints needs toyworld:motion"),
        (["--dataset", "toyworld", "--stride", "2"], "--stride would have no effect on toyworld"),
        (["--dataset", str(pictures), "--stride", "2", "--fps", "3"], "--stride would have no effect next to --fps"),
        (["--dataset", "toyworld", "--num_prompt_frames", "5"], "the context of the model has only 4 frames"),
    ):
        with pytest.raises(ValueError, match=sentence):
            main(["--score", "--model", checkpoint, "--output", str(tmp_path / "a.json"), *flags])
    assert not (tmp_path / "a.json").exists()


def test_the_page_shows_the_committed_numbers_of_toto_nano():
    docs = Path(__file__).parents[2] / "docs"
    result = FrameContinuationResult.from_json(json.loads((docs / "studies" / "nano_horizons.json").read_text()))
    text = (docs / "continuations.md").read_text().partition("### toto-nano")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    shown = dict(zip(result.scores, ("greedy", "sampled, mean", "sampled, best of 2", "copy last frame"), strict=False))
    for (who, scores), row in zip(result.scores.items(), rows, strict=True):
        cells = [f"{100 * scores.codes.mean[at]:.0f}" for at in (0, -1)]
        cells += [f"{scores.psnr.mean[at]:.1f}" for at in (0, -1)] + [f"{scores.ssim.mean[at]:.2f}" for at in (0, -1)]
        assert row[1:] == cells and row[0] == shown.get(who, row[0])
    for name in ("teacher_forced", "greedy"):
        assert f"{result.nats[name].mean[-1]:.2f}" in text
    assert f"{result.clips} test clips" in text and result.command in " ".join(text.replace("\\\n", "").split())


# --- several models


def changed(file, target, **fields):
    """A copy of a result with other fields."""
    content = json.loads(Path(file).read_text())
    target.write_text(json.dumps(content | fields))
    return str(target)


def test_models_are_compared(result_file, tmp_path, capsys):
    other = changed(result_file, tmp_path / "b.json", model="runs/other")
    output = tmp_path / "new" / "compare.png"
    main(["--compare", str(result_file), other, "--output", str(output)])
    text = capsys.readouterr().out
    assert "3 test clips of toyworld: 2 prompt frames, 2 drawn, greedy" in text and "copy last frame" in text
    assert "\nother " in text and "codes right" in text and "SSIM" in text and "after greedy frames" in text
    with Image.open(output) as figure:
        assert figure.width > 1000
    again = changed(result_file, tmp_path / "again.json", tokenizer="0")
    main(["--compare", str(result_file), again, other, "--output", str(output), "--way", "best"])
    text = capsys.readouterr().out
    assert "the models have different tokens, so codes and losses are not compared" in text
    assert "codes right" not in text and "nats" not in text and "best of 2" in text
    assert ", scores " in text and ", again " in text  # two results of one model


def test_numbers_of_a_comparison(result_file):
    content = json.loads(result_file.read_text())
    one = FrameContinuationResult.from_json(content)
    text = comparison_table(
        {"a": one, "b": replace(one, scores=one.scores | {"greedy": one.scores["ceiling"]})}, "greedy"
    )
    rows = [line.split() for line in text.splitlines() if line.startswith(("a ", "b "))]
    codes = [f"{100 * each:.1f}" for each in one.scores["greedy"].codes.mean]
    assert rows[0][1:3] == codes and rows[1][1:3] == ["100.0", "100.0"]


def test_results_of_the_motion_world_are_compared(tmp_path, capsys):
    other = changed(MOTION, tmp_path / "b.json", model="runs/other")
    main(["--compare", str(MOTION), other, "--output", str(tmp_path / "c.png")])
    text = capsys.readouterr().out
    assert "toto-motion" in text and "mask IoU" in text and "bounce" in text
    read = read_results([str(MOTION), other])
    assert list(read) == ["toto-motion", "other"] and type(read["other"]) is ContinuationResult


def test_what_cannot_be_compared(result_file, tmp_path):
    def run(*files, output="a.png", flags=()):
        main(["--compare", *map(str, files), "--output", str(tmp_path / output), *flags])

    fewer = changed(result_file, tmp_path / "fewer.json", clips=2)
    elsewhere = changed(result_file, tmp_path / "elsewhere.json", sources=["a@0", "b@0", "c@0"])
    sampled = changed(result_file, tmp_path / "sampled.json", model="b", sampling={"num_samples": 9})
    (tmp_path / "other.json").write_text('{"scores": 3}')
    (tmp_path / "text.json").write_text("no JSON")
    for files, sentence in (
        ([result_file], "--compare needs two or more results"),
        (
            [result_file, fewer],
            r"differ in clips \(3 and 2\); compare models scored on the same data, prompt and clips",
        ),
        ([result_file, elsewhere], "differ in sources; compare"),
        ([result_file, MOTION], r"differ in dataset \(toyworld and toyworld:motion\)"),
        ([result_file, tmp_path / "other.json"], "other.json is not a result of toto generate --score"),
        ([result_file, tmp_path / "text.json"], "text.json is not a result of toto generate --score"),
        ([result_file, result_file], "results of the same name and model"),
        ([result_file] * 8, "--compare names 8 results; give at most 7"),
    ):
        with pytest.raises(ValueError, match=sentence):
            run(*files)
    with pytest.raises(ValueError, match="differ in sampling"):
        run(result_file, sampled, flags=["--way", "best"])
    with pytest.raises(FileNotFoundError, match=r"There is no file .*none.json"):
        run(result_file, tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"it must end in \.png"):
        run(result_file, sampled, output="a.jpg")
    with pytest.raises(ValueError, match="--way is 'worst'"):
        run(result_file, sampled, flags=["--way", "worst"])
    assert not (tmp_path / "a.png").exists()
