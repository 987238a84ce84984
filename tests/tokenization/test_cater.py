"""The loader of CATER, on files written in its layout: lists with a space, videos beside them, cells as classes."""

import math
from pathlib import Path

import pytest
from media import make_video

from tokenization.sampling import Sampling
from tokenization.sources.cater import cell_names, folder_of
from tokenization.sources.labelled import open_splits
from tokenization.sources.open import open_source
from training.flags import absolute

# Places on the ground and their classes, computed with the formula of the data set's generator.
PLACES = [(-3.0, -3.0), (2.9, -2.1), (-0.1, 0.0), (0.0, -0.001), (1.5, 2.99), (2.5, 2.5)]
CLASSES = [math.floor(x) + 3 + 6 * (math.floor(y) + 3) for x, y in PLACES]
LISTS = {"train": (0, 1, 2, 3), "val": (4, 5), "train_subsetT": (0, 2, 3), "train_subsetV": (1,)}
SIZES = Sampling(num_frames=4, stride=4, resolution=16)


def write(folder: Path, lists=LISTS, prefix="", videos="videos", frames=14) -> str:
    """A folder as it is unpacked."""
    (folder / videos).mkdir(parents=True)
    (folder / "lists" / "localize").mkdir(parents=True)
    for number in range(len(PLACES)):
        make_video(folder / videos / f"CATER_new_{number:06}.avi", frames=frames)
    for name, numbers in lists.items():
        lines = [f"{prefix}CATER_new_{number:06}.avi {CLASSES[number]}\n" for number in numbers]
        (folder / "lists" / "localize" / f"{name}.txt").write_text("".join(lines))
    return f"cater:{folder}"


def test_names_of_cells():
    assert CLASSES == [0, 5, 20, 15, 34, 35]
    assert [cell_names()[number] for number in CLASSES] == ["-3,-3", "2,-3", "-1,0", "0,-1", "1,2", "2,2"]
    assert len(set(cell_names())) == 36


@pytest.mark.parametrize("folder", ["all_actions", "all_actions_cameramotion"])
def test_splits_and_labels(tmp_path, folder):
    dataset = write(tmp_path / folder)
    for split, numbers in {"train": (0, 2, 3), "validation": (1,), "test": (4, 5)}.items():
        source = open_source(dataset, split, SIZES)
        clips = list(source)
        assert [clip.source for clip in clips] == [f"CATER_new_{number:06}.avi" for number in numbers]
        assert [clip.labels for clip in clips] == [{"label": CLASSES[number]} for number in numbers]
        assert source.label_names == {"label": cell_names()} and source.kind == "video" and not source.skipped
        assert source.listed == len(numbers) and clips[0].frames.shape == (4, 16, 16, 3)


def test_without_the_development_lists_validation_is_carved(tmp_path):
    """A training list without its validation list would lose a fifth of the videos."""
    lists = {name: LISTS[name] for name in ("train", "val", "train_subsetT")}
    dataset = write(tmp_path / "cater", lists)

    def opened(name, _part):
        return open_source(dataset, name, SIZES)

    train, validation, test = open_splits(opened, dataset, "train")
    assert len(list(train[1])) == 4 and validation is None and test[0] == "test" and len(list(test[1])) == 2
    with pytest.raises(ValueError, match="has no split 'val'; it has train, test"):
        open_source(dataset, "val", SIZES)


@pytest.mark.parametrize("frames", [16, 32])
def test_frames_of_the_paper(tmp_path, frames):
    dataset = write(tmp_path / "cater", frames=33)
    (clip, *_) = open_source(dataset, "test", Sampling(num_frames=frames, stride=1, resolution=16))
    assert clip.frames.shape == (frames, 16, 16, 3)


def test_paths_of_the_generator(tmp_path):
    dataset = write(tmp_path / "cater", prefix="/scratch/my output/images/", videos="images")
    clips = list(open_source(dataset, "test", SIZES))
    assert [clip.labels["label"] for clip in clips] == [34, 35]


def test_a_missing_video_is_skipped_and_named(tmp_path):
    dataset = write(tmp_path / "cater")
    (tmp_path / "cater" / "videos" / "CATER_new_000004.avi").unlink()
    source = open_source(dataset, "test", SIZES)
    assert len(list(source)) == 1 and source.skipped[0]["source"] == "CATER_new_000004.avi"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("CATER_new_000000.avi,5", "a path, a space and a class from 0 to 35"),
        ("CATER_new_000000.avi 36", "a class from 0 to 35"),
        ("CATER_new_000000.avi 1,5", "a class from 0 to 35"),
        ("7", "a path, a space"),
    ],
)
def test_bad_lines(tmp_path, line, why):
    dataset = write(tmp_path / "cater")
    file = tmp_path / "cater" / "lists" / "localize" / "val.txt"
    file.write_text(f"CATER_new_000004.avi 3\n\n{line}\n")
    with pytest.raises(ValueError, match=f"Line 3 of .*val.txt .*{why}"):
        open_source(dataset, "test", SIZES)


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_source(f"cater:{tmp_path / 'nowhere'}", "train", SIZES)
    with pytest.raises(FileNotFoundError, match=r"lists/localize/train\.txt"):
        open_source(f"cater:{tmp_path}", "train", SIZES)
    with pytest.raises(ValueError, match="names no folder"):
        open_source("cater:", "train", SIZES)
    dataset = write(tmp_path / "cater")
    with pytest.raises(ValueError, match="no configurations"):
        open_source(dataset, "train", SIZES, config_name="static")
    for file in (tmp_path / "cater" / "videos").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match="none of its videos; unpack them into"):
        open_source(dataset, "train", SIZES)
    (tmp_path / "cater" / "lists" / "localize" / "val.txt").write_text("\n")
    with pytest.raises(ValueError, match="lists no video"):
        open_source(dataset, "test", SIZES)


def test_the_argument(tmp_path, monkeypatch):
    assert folder_of("cater:a/b") == "a/b" and folder_of("toyworld") is None and folder_of("cater") is None
    monkeypatch.chdir(tmp_path)
    assert absolute("cater:data") == f"cater:{tmp_path / 'data'}"
