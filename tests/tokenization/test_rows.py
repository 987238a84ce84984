"""Rows of local files: folders of `save_to_disk`, splits in the names of tables, frame lists, and JSON in tar files."""

import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from media import make_image, make_video
from PIL import Image
from pyarrow import parquet

from tokenization.sampling import Sampling
from tokenization.sources.open import open_source

SIZES = Sampling(num_frames=4, stride=1, resolution=8)


def grey(level: int, size: int = 8) -> Image.Image:
    return Image.new("L", (size, size), level)


def level(clip) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in clip.frames]


def pictures(count: int, first: int = 0) -> Dataset:
    """Pictures whose grey is their number; label = number // 16."""
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list("abcdefgh"))})
    rows = {"image": [grey(first + n) for n in range(count)], "label": [(first + n) // 16 for n in range(count)]}
    return Dataset.from_dict(rows, features=features)


def test_a_folder_of_save_to_disk(tmp_path):
    path = tmp_path / "set [1]::x"
    path.mkdir()
    pictures(40).save_to_disk(tmp_path / "one", num_shards=2)
    (tmp_path / "one").rename(path / "one")
    source = open_source(str(path / "one"), "train", SIZES)
    clips = list(source)
    assert source.num_shards == 2 and [level(clip)[0] for clip in clips] == list(range(40))
    assert [clip.source for clip in clips][19:21] == ["train[0:19]", "train[1:0]"]
    assert source.label_names == {"label": list("abcdefgh")} and clips[39].labels == {"label": 2}
    drawn = open_source(str(path / "one"), "train", SIZES, limit=8, shuffle_seed=0)
    names = {clip.source: level(clip) for clip in clips}
    found = {clip.source: level(clip) for clip in drawn}
    assert len(found) == 8 and max(found.values())[0] > 20 and all(names[name] == found[name] for name in found)
    DatasetDict(train=pictures(3), test=pictures(2, first=9)).save_to_disk(tmp_path / "two")
    assert [level(clip) for clip in open_source(str(tmp_path / "two"), "test", SIZES)] == [[9], [10]]
    with pytest.raises(ValueError, match=r"has no split 'validation'; it has train, test\."):
        open_source(str(tmp_path / "two"), "validation", SIZES)
    (file,) = (tmp_path / "two" / "test").glob("*.arrow")
    assert len(list(open_source(str(file), None, SIZES))) == 2, "one arrow file"


def test_splits_of_tables_are_their_whole_names(tmp_path):
    """A name is a split if nothing else is in front of the number, or as its last word; a word in a name is not."""
    for name in ("train-00000-of-00002", "train-00001-of-00002", "imagenet-validation-0003", "test"):
        (tmp_path / "data").mkdir(exist_ok=True)
        pictures(2).to_parquet(tmp_path / "data" / f"{name}.parquet")
    (tmp_path / "data" / "test.parquet").rename(tmp_path / "data" / "test [::].parquet")
    source = open_source(str(tmp_path), "train", SIZES)
    assert source.num_shards == 2 and len(list(source)) == 4
    assert source.left == {"in split validation": {".parquet": 1}, "in no split": {".parquet": 1}}
    (tmp_path / "data" / "test [::].parquet").rename(tmp_path / "data" / "test.parquet")
    assert len(list(open_source(str(tmp_path), "test", SIZES))) == 2
    assert len(list(open_source(str(tmp_path), "validation", SIZES))) == 2
    for name in ("dogs in training", "evaluation set", "valid ids"):
        (tmp_path / "other").mkdir(exist_ok=True)
        pictures(1).to_parquet(tmp_path / "other" / f"{name}.parquet")
    Dataset.from_dict({"path": ["a"]}).to_parquet(tmp_path / "other" / "annotations.parquet")
    source = open_source(str(tmp_path / "other"), "train", SIZES)
    assert source.num_shards == 3 and source.left == {"no media": {".parquet": 1}}


def frame_lists(path, counts, fps=None) -> Dataset:
    """Rows of frames whose grey is 10 * their number."""
    rows = {"frames": [[grey(10 * n) for n in range(count)] for count in counts], "label": [0] * len(counts)}
    features = Features({"frames": List(ImageFeature()), "label": Value("int64")})
    if fps is not None:
        rows["fps"], features["fps"] = [fps] * len(counts), Value("float32")
    Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


def test_a_row_of_frames_is_a_clip(tmp_path):
    source = open_source(str(frame_lists(tmp_path / "a.parquet", [8, 8, 3])), "train", SIZES)
    clips = list(source)
    assert source.kind == "video" and source.label_names == {"label": []}
    assert [(clip.source, clip.start, clip.fps, *level(clip)) for clip in clips[:2]] == [
        ("train[0]", 0, 0.0, 0, 10, 20, 30), ("train[0]", 4, 0.0, 40, 50, 60, 70),
    ]  # fmt: skip
    assert len(clips) == 4 and "too short: it has 3 frames" in source.skipped[0]["why"]
    (first, _) = open_source(str(tmp_path / "a.parquet"), "train", replace(SIZES, stride=2))
    assert level(first) == [0, 20, 40, 60]
    views = list(open_source(str(tmp_path / "a.parquet"), "train", replace(SIZES, views=(2, 1))))
    assert [clip.start for clip in views] == [0, 4, 0, 4]
    crops = replace(SIZES, crops=3, seed=1)
    again = [list(open_source(str(tmp_path / "a.parquet"), "train", crops)) for _ in range(2)]
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(*again, strict=True))
    source = open_source(str(tmp_path / "a.parquet"), "train", replace(SIZES, fps=5))
    assert not list(source) and "have no rate; sample them with stride" in source.skipped[0]["why"]


def test_tables_that_datasets_did_not_write(tmp_path):
    """Without its notes on types: images and videos are bytes with a path; a column of bytes can be named."""
    pictures = [{"bytes": png(n), "path": None} for n in (5, 9)]
    video = {"bytes": make_video(tmp_path / "v.mp4", frames=4).read_bytes(), "path": "v.mp4"}
    columns = {"image": pictures, "frames": [pictures * 2] * 2, "my_video": [video] * 2, "raw": [png(5), png(9)]}
    for name in columns:
        (tmp_path / name).mkdir()
        parquet.write_table(pyarrow.table({name: columns[name], "label": [3, 4]}), tmp_path / name / "a.parquet")
    source = open_source(str(tmp_path / "image"), "train", SIZES)
    assert source.kind == "image" and [(level(c), c.labels["label"]) for c in source] == [([5], 3), ([9], 4)]
    assert [level(c) for c in open_source(str(tmp_path / "frames"), "train", SIZES)] == [[5, 9, 5, 9]] * 2
    source = open_source(str(tmp_path / "my_video"), "train", SIZES)
    assert source.kind == "video" and [len(clip.frames) for clip in source] == [4, 4]
    with pytest.raises(ValueError, match=r"\(found 1 \.parquet\)\. Name a column of bytes with --image_column\."):
        open_source(str(tmp_path / "raw"), "train", SIZES)
    named = open_source(str(tmp_path / "raw"), "train", SIZES, image_column="raw")
    assert [level(clip) for clip in named] == [[5], [9]]


def test_frames_with_a_rate_are_sampled_by_time(tmp_path):
    file = frame_lists(tmp_path / "a.parquet", [12], fps=10)
    (clip,) = open_source(str(file), "train", replace(SIZES, fps=4))
    assert level(clip) == [0, 20, 50, 70] and clip.fps == 4, "the frame on show at 0, 0.25, 0.5 and 0.75 s"
    assert [clip.fps for clip in open_source(str(file), "train", replace(SIZES, stride=2))] == [5.0]


def test_metadata_that_list_frames(tmp_path):
    for clip in "ab":
        (tmp_path / "train" / clip).mkdir(parents=True)
        for n in range(4):
            make_image(tmp_path / "train" / clip / f"{n}.png", (10 * n,) * 3)
    rows = [{"file_names": [f"{clip}/{n}.png" for n in range(4)], "label": clip} for clip in "ab"]
    (tmp_path / "train" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_source(str(tmp_path), "train", SIZES)
    assert source.kind == "video" and [(level(clip), clip.labels["label"]) for clip in source] == [
        ([0, 10, 20, 30], "a"), ([0, 10, 20, 30], "b"),
    ]  # fmt: skip


def tar(path, **files):
    """A tar of {"name__suffix": contents}."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            content = json.dumps(content).encode() if isinstance(content, dict) else content
            entry = tarfile.TarInfo(name.replace("__", "."))
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def png(value: int) -> bytes:
    file = io.BytesIO()
    grey(value).save(file, "PNG")
    return file.getvalue()


def test_json_labels_of_webdataset(tmp_path):
    facts = {"label": 3, "word": "cat", "score": 0.5, "width": 8, "error": None, "boxes": [1, 2]}
    tar(tmp_path / "a.tar", k0__json=facts, k0__png=png(5), k1__json=facts | {"label": 4, "error": "x"}, k1__png=png(6))
    source = open_source(str(tmp_path / "a.tar"), "train", SIZES)
    assert source.label_names == {"label": []} and set(source.text_labels) == {"word", "error"}
    assert set(source.no_labels) == {"score", "boxes"}
    assert [(clip.source, level(clip), clip.labels) for clip in source] == [
        ("k0", [5], {"label": 3, "word": "cat"}), ("k1", [6], {"label": 4, "word": "cat", "error": "x"}),
    ]  # fmt: skip


def test_folders_inside_tar_files_are_no_classes(tmp_path):
    """Names in a tar file are keys of samples, in whatever folder; that there are no labels is reported."""
    for name in "ab":
        (tmp_path / name).mkdir()
    tar(tmp_path / "a" / "a.tar", **{"cat/1__png": png(5), "dog/1__png": png(9)})
    tar(tmp_path / "b" / "b.tar", **{"cat/1__png": png(5), "cat/1__cls": b"3"})
    source = open_source(str(tmp_path / "a"), "train", SIZES)
    assert [(clip.source, clip.labels) for clip in source] == [("cat/1", {}), ("dog/1", {})]
    assert "folders inside tar files are no classes; unpack them" in source.found[1]
    source = open_source(str(tmp_path / "b"), "train", SIZES)
    assert [clip.labels for clip in source] == [{"cls": 3}] and "unpack" not in "".join(source.found)


def test_samples_need_not_be_alike(tmp_path):
    """img2dataset and video2dataset: text and sound beside media, which some samples lack."""
    video = {}
    for suffix in ("webm", "m4v"):
        codec = {"codec": "libvpx-vp9"} if suffix == "webm" else {}
        video[suffix] = write(tmp_path / f"v.{suffix}", **codec)
    files = {"a__txt": b"a cat", "a__webm": video["webm"], "b__wav": b"noise", "b__webm": video["webm"]}
    tar(tmp_path / "train-000.tar", **files, c__json={"label": 1}, c__cls=b"no number", c__webm=video["webm"])
    tar(tmp_path / "train-001.tar", d__webm=video["webm"], **{"._e__webm": b"a fork of macOS"})
    source = open_source(str(tmp_path), "train", SIZES)
    assert source.kind == "video" and source.num_shards == 2 and source.text_labels == ["txt"]
    assert [(clip.source, clip.labels) for clip in source] == [
        ("a", {"txt": "a cat"}), ("b", {}), ("c", {"label": 1}), ("d", {}),
    ]  # fmt: skip
    (one,) = open_source(str(tar(tmp_path / "m4v.tar", x__m4v=video["m4v"])), "train", SIZES)
    assert one.source == "x"
    whole = (tmp_path / "train-000.tar").read_bytes()
    for end in (300, 1100, 3000, 4000):
        (tmp_path / "bad.tar").write_bytes(whole[:end])
        with pytest.raises(ValueError, match="is damaged, or is not an uncompressed tar file"):
            list(open_source(str(tmp_path / "bad.tar"), "train", SIZES))


def write(path, codec=None) -> bytes:
    if codec is None:
        return make_video(path, frames=4).read_bytes()
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for _ in range(4):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 48, 3), np.uint8), format="rgb24")))
        file.mux(stream.encode())
    return path.read_bytes()


def test_tar_files_outnumber_previews_and_media_outnumber_tar_files(tmp_path):
    tar(tmp_path / "a.tar", k0__png=png(5))
    make_image(tmp_path / "preview.png", (9, 9, 9))
    source = open_source(str(tmp_path), "train", SIZES)
    assert [clip.source for clip in source] == ["k0"] and source.left == {"no media": {".png": 1}}
    make_image(tmp_path / "second.png", (9, 9, 9))
    assert [clip.source for clip in open_source(str(tmp_path), "train", SIZES)] == ["preview.png", "second.png"]


def test_rows_of_the_hub(tmp_path, monkeypatch):
    """`datasets` lists them: several files are several shards, and JSON is columns, as in local tar files."""
    rows = {"png": [grey(n) for n in range(6)], "json": [{"label": n % 2, "word": "x"} for n in range(6)]}
    features = Features({"png": ImageFeature(), "json": {"label": Value("int64"), "word": Value("string")}})
    of_hub = Dataset.from_dict(rows, features=features).to_iterable_dataset(num_shards=2)
    asked = []

    def load(*args, **_options):
        asked.append(args)
        return {"train": of_hub, "test": of_hub}

    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setattr("tokenization.sources.open.require_on_hub", lambda *_: None)
    source = open_source("user/set", "train", SIZES, config_name="small")
    assert asked == [("user/set", "small")] and source.num_shards == 2 and source.split_name == "train"
    assert source.label_names == {"label": []} and source.text_labels == ["word"]
    assert [(clip.source, level(clip), clip.labels["label"]) for clip in source] == [
        (f"train[{n // 3}:{n % 3}]", [n], n % 2) for n in range(6)
    ]
    with pytest.raises(ValueError, match=r"has no split 'validation'; it has train, test\."):
        open_source("user/set", "validation", SIZES)
    file = str(make_image(tmp_path / "a.png", (7, 7, 7)))
    paths = Dataset.from_dict({"image": [file]}, features=Features({"image": ImageFeature()}))
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: {"train": paths.to_iterable_dataset()})
    source = open_source("user/set", None, SIZES)
    assert source.lists_paths and [clip.source for clip in source] == ["a.png"]
