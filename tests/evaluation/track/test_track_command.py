"""`toto track`: floors, resuming, several frames a row, pictures, and the scores of the official evaluation."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.backbones import load_backbone
from evaluation.metrics import verdict
from evaluation.track.args import TrackArgs
from evaluation.track.command import main
from evaluation.track.floors import places, raw_patches
from evaluation.track.reading import davis_sequences
from evaluation.track.results import ObjectScore, SequenceScores, TrackResult
from evaluation.track.run import Finished, Tracker
from evaluation.track.settings import DINO, STC
from evaluation.track.summary import paired_interval

SIZE = (36, 48)
FRAMES = 7


@pytest.fixture(scope="module")
def davis(tmp_path_factory):
    """Two sequences of two squares that move over noise, and a third without masks."""
    root, rng = tmp_path_factory.mktemp("davis"), np.random.default_rng(0)
    palette = [0, 0, 0, 128, 0, 0, 0, 128, 0] + [255] * 759  # whole: PIL would cut larger numbers
    for k, name in enumerate(("left", "right", "unlabelled")):
        noise = rng.integers(0, 60, (*SIZE, 3), dtype=np.uint8)
        for t in range(FRAMES):
            frame, mask = noise.copy(), np.zeros(SIZE, np.uint8)
            x = 4 + t if k else 30 - t
            frame[6:18, x : x + 12], mask[6:18, x : x + 12] = (250, 40, 40), 1
            frame[22:32, 10:22], mask[22:32, 10:22] = (40, 250, 40), 2
            mask[-2:, -2:] = 255
            for kind, ending, picture in (("JPEGImages", "jpg", frame), ("Annotations", "png", mask)):
                file = root / kind / "480p" / name / f"{t:05d}.{ending}"
                file.parent.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(picture)
                if ending == "png":
                    image.putpalette(palette)
                image.save(file, quality=95)
    for mask in (root / "Annotations/480p/unlabelled").iterdir():
        mask.unlink()
    return str(root)


def flags(model, dataset, output, *more):
    return ["--model", model, "--dataset", dataset, "--resolution", "32", "--output", str(output), *more]


def test_the_command(checkpoint, davis, tmp_path, capsys):
    file = tmp_path / "new" / "track.json"
    main(flags(checkpoint, davis, file, "--setting", "dino", "--sheets", "1"))
    told = capsys.readouterr()
    assert "skipped: unlabelled has no masks" in told.err and "2 sequences, 32 px, setting dino" in told.out
    assert f"next: toto visualize pca --model {checkpoint} " in told.out
    content = json.loads(file.read_text())
    result = TrackResult.from_json(content)
    assert result.to_json() == content and result.other == {} and "NaN" not in file.read_text()
    assert [row.layer for row in result.layers] == [0, 1, 2, 3] and result.depth == 3
    assert list(result.baselines) == ["copy", "position", "patches", "layer 0", "untrained", "ceiling"]
    assert [row.layer for row in result.baselines["untrained"].layers] == [0, 1, 2, 3]
    assert result.best.jf == max(row.jf for row in result.layers) and result.best.chosen_on_others is not None
    assert [(each.name, each.frames) for each in result.sequences] == [("left", FRAMES), ("right", FRAMES)]
    assert list(result.skipped) == ["unlabelled"]
    for row in (*result.layers, *result.baselines.values()):
        assert 0 <= row.jf <= 1 and row.jf == pytest.approx((row.j + row.f) / 2)
        assert row.ci95[0] <= row.jf + 1e-9 and row.jf <= row.ci95[1] + 1e-9
    # means are over objects
    objects = [each.j for sequence in result.sequences for each in sequence.scores["layer 2"]]
    assert len(objects) == 4 and np.mean(objects) == pytest.approx(result.layers[2].j)
    for versus in result.best.versus.values():
        assert versus.verdict == verdict(versus.ci95) == "no significant difference"  # of two sequences
    assert file.with_suffix(".png").stat().st_size > 1000
    with Image.open(tmp_path / "new" / "track_left.png") as sheet:
        assert sheet.width > 600
    assert (tmp_path / "new" / "track_left.mp4").stat().st_size > 0


def test_intervals_are_paired_over_sequences_and_few_of_them_show_nothing():
    def sequences(gains):
        one = {"j_recall": 0.0, "j_decay": 0.0, "f": 0.5, "f_recall": 0.0, "f_decay": 0.0}
        return [
            SequenceScores(name=str(k), frames=5, size=[1, 1], seconds=0.0, scores={"a": [ObjectScore(j=g, **one)] * 2})
            for k, g in enumerate(gains)
        ]

    for gains, above in (([0.2] * 3 + [0.3] * 2, False), ([0.2] * 4 + [0.3] * 3, True), ([0.2, -0.1] * 4, False)):
        low, high = paired_interval(sequences(gains), np.repeat(gains, 2))
        assert (low > 0) == above and low <= np.mean(gains) <= high
    assert paired_interval(sequences([0.2]), np.array([0.2, 0.2])) == [-1, 1]


def test_a_killed_run_goes_on_after_its_finished_sequences(checkpoint, davis, tmp_path, monkeypatch):
    whole, file = tmp_path / "whole.json", tmp_path / "track.json"
    more = ("--setting", "dino", "--layers", "0,2", "--baselines", "copy")
    main(flags(checkpoint, davis, whole, *more))
    tracked, real = [], Tracker.track

    def dies(self, sequence, *args):
        tracked.append(sequence.name)
        if len(tracked) == 2:
            raise KeyboardInterrupt
        return real(self, sequence, *args)

    monkeypatch.setattr(Tracker, "track", dies)
    with pytest.raises(KeyboardInterrupt):
        main(flags(checkpoint, davis, file, *more))
    assert not file.exists() and [each.name for each in file.with_suffix(".parts").iterdir()] == ["left.json"]
    main(flags(checkpoint, davis, file, *more))
    assert tracked == ["left", "right", "right"]
    one, two = (json.loads(each.read_text()) for each in (whole, file))
    assert (
        one["layers"] == two["layers"] and one["best"] == two["best"] and [r["layer"] for r in one["layers"]] == [0, 2]
    )
    main(flags(checkpoint, davis, file, *more))
    assert len(tracked) == 3
    main(flags(checkpoint, davis, file, *more, "--top_k", "2"))  # another setting: nothing of it is finished
    assert len(tracked) == 5


def test_what_is_finished_is_of_these_frames_and_this_tracker(checkpoint, davis, tmp_path):
    (sequence,) = davis_sequences(davis, None, ["left"])[0]
    backbone = load_backbone(checkpoint, "cpu")
    keys = {
        Tracker(backbone, twin, layers, setting, floors, row).key()
        for twin, layers, setting, floors, row in (
            (None, [1], DINO, [], 1),
            (backbone, [1], DINO, [], 1),
            (None, [2], DINO, [], 1),
            (None, [1], STC, [], 1),
            (None, [1], DINO, ["copy"], 1),
            (None, [1], DINO, [], 2),
        )
    }
    assert len(keys) == 6
    scores = SequenceScores(name="left", frames=FRAMES, size=list(SIZE), seconds=0.0, scores={})
    finished = Finished(tmp_path, "key")
    finished.write(sequence, scores, with_pictures=False)
    assert finished.read(sequence, with_pictures=False) == scores and finished.read(sequence, True) is None
    assert Finished(tmp_path, "other").read(sequence, False) is None
    assert finished.read(dataclasses.replace(sequence, fingerprint="other frames"), False) is None


def test_scores_are_those_of_the_official_evaluation(checkpoint, davis, tmp_path):
    """Frames, objects, void and statistics: its reader of masks, its measures, and ours of the same predictions."""
    official = pytest.importorskip("segmetric.dataset", reason="the PyPI package esdft-segmetric is not installed")
    from segmetric import metrics, utils

    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "val.txt").write_text("left\nright\n")
    for kind in ("JPEGImages", "Annotations"):
        (tmp_path / kind).symlink_to(Path(davis, kind, "480p"))
    kinds = ["layer 3", "patches", "copy", "ceiling"]
    tracker = Tracker(load_backbone(checkpoint, "cpu"), None, [3], DINO, kinds[1:], 1)
    for sequence in davis_sequences(davis, None, ["left", "right"])[0]:
        frames = []
        scores = tracker.track(sequence, keep=lambda t, drawn, frames=frames: frames.append(drawn))
        true, _, _ = official.Dataset(tmp_path, "val").get_all_masks(sequence.name, True)
        assert list(scores.scores) == kinds and len(frames) == FRAMES - 1
        for kind in kinds:
            assert len(scores.scores[kind]) == len(true) == 2
            found = np.stack([drawn[kind] for drawn in frames[1:]])
            for number, mine in enumerate(scores.scores[kind]):
                pair = true[number, 1:-1], found == number + 1
                j, f = (utils.db_statistics(each(*pair)) for each in (metrics.db_eval_iou, metrics.db_eval_boundary))
                assert (mine.j, mine.j_recall, mine.j_decay) == j, kind
                assert (mine.f, mine.f_recall, mine.f_decay) == f, kind


def test_frames_of_a_row_and_attention_change_features_and_nothing_is_read_ahead(checkpoint, davis):
    sequence = davis_sequences(davis, None, ["left"])[0][0]
    frames = [frame for frame, _ in sequence.frames()]

    def features(row, shown, mode="causal"):
        backbone = load_backbone(checkpoint, "cpu")
        backbone.model.config.attention_mode = mode
        reader = Tracker(backbone, None, [0, 3], DINO, [], row).reader()
        return [reader.read(frame)["layer 3"] for frame in shown]

    single, double = features(1, frames), features(2, frames)
    assert torch.equal(single[4], features(1, frames[4:])[0])  # a frame alone
    assert torch.equal(double[4], features(2, frames[3:])[1])  # a frame and the one before it
    assert not torch.allclose(single[4], double[4]) and not torch.allclose(double[4], features(2, frames[4:])[0])
    assert not torch.allclose(single[4], features(1, frames, "full")[4])
    assert torch.equal(double[0], features(2, [frames[0], frames[0]])[1])  # the first one is preceded by itself


def test_floors_without_a_model():
    frame = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    patches = raw_patches(frame, 2)
    assert patches.shape == (4, 4, 192)
    expected = torch.from_numpy(frame[8:16, 24:32].reshape(-1) / 127.5 - 1).float()
    torch.testing.assert_close(patches[1, 3], expected)
    assert raw_patches(frame[:28, :28], 2).shape == (2, 2, 14 * 14 * 3)
    grid = torch.nn.functional.normalize(places(12, 12), dim=-1)
    near = grid[5, 5] @ grid[5].T
    assert near.argmax() == 5 and near[5] > near[6] > near[7] and near[4] > near[3]
    torch.testing.assert_close(grid[2, 3] @ grid[2, 5], grid[7, 8] @ grid[7, 10])


def test_the_embedded_world_and_full_attention(checkpoint, tmp_path):
    file = tmp_path / "toy.json"
    toy = ["--num_sequences", "2", "--num_frames", "4", "--attention", "full", "--setting", "dinov3", "--layers", "3"]
    argv = ["--model", checkpoint, "--dataset", "toyworld:motion", "--resolution", "64", "--output", str(file)]
    main([*argv, *toy, "--baselines", "copy", "ceiling"])
    result = TrackResult.from_json(json.loads(file.read_text()))
    assert len(result.sequences) == 2 and result.attention == "full" and result.setting["name"] == "dinov3"
    assert result.baselines["ceiling"].jf > result.baselines["copy"].jf


def test_bad_input_is_one_sentence(checkpoint, davis, tmp_path):
    output = tmp_path / "track.json"
    for wrong, sentence in {
        ("--resolution", "36"): "36 is not a multiple of the tokenizer's 8 pixels",
        ("--layers", "9"): "has layers 0",
        ("--layers", "some"): "--layers takes all or layer numbers",
        ("--setting", "sam"): "--setting is 'sam'",
        ("--baselines", "luck"): "--baselines has 'luck'",
        ("--num_frames", "9"): "--num_frames would have no effect on DAVIS",
        ("--sequences", "unlabelled"): "No sequence of .* can be scored: unlabelled has no masks",
        ("--top_k", "0"): "--top_k is 0",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            main(flags(checkpoint, davis, output, *wrong))
    with pytest.raises(ValueError, match=r"must end in \.json"):
        TrackArgs(model="m", dataset="d", output="result")
    assert not output.exists()


def test_a_frame_that_turns_out_damaged_does_not_stop_the_others(checkpoint, davis, tmp_path, monkeypatch, capsys):
    import shutil

    root = tmp_path / "davis"
    shutil.copytree(davis, root)
    file = root / "JPEGImages/480p/left/00003.jpg"
    file.write_bytes(file.read_bytes()[:-400])
    main(flags(checkpoint, str(root), tmp_path / "track.json", "--layers", "1", "--baselines", "none"))
    result = TrackResult.from_json(json.loads((tmp_path / "track.json").read_text()))
    assert [each.name for each in result.sequences] == ["right"] and set(result.skipped) == {"left", "unlabelled"}
    assert result.best.ci95 is None and result.best.chosen_on_others is None and result.baselines.keys() <= {"layer 0"}
    assert "skipped: left" in capsys.readouterr().err
