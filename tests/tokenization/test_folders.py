"""Names are data: every file of a folder is read or counted, and no word in a name decides which."""

import json
import os
from pathlib import Path

import pytest
from media import make_image, make_video

from tokenization.sampling import Sampling
from tokenization.sources.folders import walk
from tokenization.sources.open import open_source

SIZES = Sampling(num_frames=4, stride=1, resolution=16)


def touch(folder: Path, *names: str) -> Path:
    """Empty files: listing reads no media, so that they serve as videos and images."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def listed(folder, split="train", **options) -> dict[str, str | None]:
    """Name of every item of a split -> its class, or None."""
    source = open_source(str(folder), split, SIZES, **options)
    classes = source.label_names.get("label")
    items = [item for shard in range(source.num_shards) for item in source.list_items(shard)]
    assert [item.name for item in items] == sorted(item.name for item in items) and len(items) == source.listed
    return {item.name: classes[item.labels["label"]] if classes else None for item in items}


def test_words_of_splits_inside_names_are_data(tmp_path):
    """Names that `datasets` takes for hints: it read one class of four, or put validation clips into train."""
    classes = ["archery", "training_dog", "test tube", "holdout val", "train-spotting", "evaluation"]
    touch(tmp_path, *(f"train/{name}/a.mp4" for name in classes), *(f"val/{name}/b.mp4" for name in classes))
    inside = {f"{name}/a.mp4": name for name in sorted(classes)}
    assert listed(tmp_path / "train") == inside
    assert listed(tmp_path) == {f"train/{name}": label for name, label in inside.items()}
    expected = {f"val/{name}/b.mp4": name for name in sorted(classes)}
    assert listed(tmp_path, "validation") == listed(tmp_path, "val") == expected
    assert open_source(str(tmp_path), "validation", SIZES).split_name == "val"


def test_a_flat_folder_of_ids_is_one_split(tmp_path):
    names = ["0a_train.mp4", "1b-val.mp4", "2c_test.mp4", "3dvalidation.mp4", "train.mp4", "test-00001.mp4"]
    touch(tmp_path, *names)
    assert listed(tmp_path) == dict.fromkeys(sorted(names))
    with pytest.raises(ValueError, match=r"has no split 'validation'; it has train\."):
        listed(tmp_path, "validation")


@pytest.mark.parametrize("name", ["train", "test", "val", "valid", "dev", "validation"])
def test_a_class_may_be_called_like_a_split(tmp_path, name):
    touch(tmp_path, "bus/a.mp4", "car/a.mp4", f"{name}/a.mp4")
    assert sorted(listed(tmp_path).values()) == sorted(["bus", "car", name])
    nested = touch(tmp_path / "deep", "road/bus/a.mp4", "rail/train/a.mp4", "rail/test/b.mp4")
    assert set(listed(nested).values()) == {"bus", "train", "test"}


def test_folders_that_are_splits_and_folders_beside_them(tmp_path):
    touch(tmp_path, "train/a/1.mp4", "train/b/1.mp4", "test/a/2.mp4", "held out/a/3.mp4", "validation_2/b/4.mp4")
    touch(tmp_path, "annotations/list.json", "README.md", "teaser.mp4")
    assert listed(tmp_path) == {"train/a/1.mp4": "a", "train/b/1.mp4": "b"}
    assert listed(tmp_path, "test") == {"test/a/2.mp4": "a"}, "the classes are those of all splits"
    assert listed(tmp_path, "held out") == {"held out/a/3.mp4": "a"}
    assert listed(tmp_path, "validation_2") == {"validation_2/b/4.mp4": "b"}
    source = open_source(str(tmp_path), "train", SIZES)
    assert source.left == {
        "in split test": {".mp4": 1}, "in no split": {".mp4": 3}, "no media": {".json": 1, ".md": 1},
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"no split 'validation'; it has train, test\. .*: held out, validation_2"):
        listed(tmp_path, "validation")
    touch(tmp_path, "val/a/5.mp4", "dev/a/6.mp4")
    with pytest.raises(ValueError, match=r"Several splits could be meant \(val, dev\)"):
        listed(tmp_path, "validation")
    assert listed(tmp_path, "dev") == {"dev/a/6.mp4": "a"}


def test_one_custom_split_beside_train(tmp_path):
    touch(tmp_path, "train/1.mp4", "held_out/2.mp4")
    assert listed(tmp_path) == {"train/1.mp4": None} and listed(tmp_path, "held_out") == {"held_out/2.mp4": None}
    touch(tmp_path / "no_train", "validation_2/1.mp4", "bus/1.mp4")
    assert set(listed(tmp_path / "no_train").values()) == {"bus", "validation_2"}
    assert listed(tmp_path / "no_train", "bus") == {"bus/1.mp4": None}


def test_which_folders_are_classes(tmp_path):
    assert set(listed(touch(tmp_path / "flat", "train/a.mp4", "train/b.mp4", "test/c.mp4")).values()) == {None}
    assert set(listed(touch(tmp_path / "one", "videos/a.mp4", "videos/b.mp4")).values()) == {None}
    uneven = touch(tmp_path / "uneven", "a.mp4", "bus/b.mp4", "car/c.mp4")
    assert set(listed(uneven).values()) == {None}
    assert "files lie at unequal depths" in "".join(open_source(str(uneven), "train", SIZES).found)
    hidden_test = touch(tmp_path / "test", "train/a/1.mp4", "train/b/1.mp4", "test/2.mp4")
    assert set(listed(hidden_test).values()) == {"a", "b"} and set(listed(hidden_test, "test").values()) == {None}
    (tmp_path / "one" / "empty").mkdir()
    assert set(listed(tmp_path / "one").values()) == {None}, "an empty folder is not a class"


def test_special_characters_are_data(tmp_path):
    names = [
        "[ab]*?.mp4",
        "a::b.mp4",
        "blank in name.mp4",
        "zug.[HQ].mp4",
        "日本.mp4",
        "%d.mp4",
        "quote'\".mp4",
        "#1.mp4",
    ]
    for folder in ("[x]", "http::y", " z", "Ünï"):
        (tmp_path / "d[1]::e" / folder).mkdir(parents=True)
    clip = make_video(tmp_path / "clip.mp4", frames=4).read_bytes()
    for folder in (tmp_path / "d[1]::e").iterdir():
        for name in names:
            (folder / name).write_bytes(clip)
    source = open_source(str(tmp_path / "d[1]::e"), "train", SIZES)
    clips = list(source)
    assert not source.skipped and len({clip.source for clip in clips}) == len(clips) == 4 * len(names)
    assert source.label_names["label"] == [" z", "[x]", "http::y", "Ünï"]
    assert {clip.source.split("/")[1] for clip in clips} == set(names)


def test_a_name_that_is_not_utf8(tmp_path):
    (tmp_path / "in").mkdir()
    path = os.fsencode(tmp_path / "in") + b"/caf\xe9"
    try:
        os.mkdir(path)
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    make_image(tmp_path / "a.png", (1, 2, 3))
    os.rename(tmp_path / "a.png", path + b"/\xff.png")
    (clip,) = open_source(str(tmp_path / "in"), "train", SIZES)
    assert clip.source == "caf\\xe9/\\xff.png"


def test_everything_is_counted_as_the_file_system_counts_it(tmp_path):
    touch(tmp_path, "train/a.mp4", "train/B.MP4", "train/c.WebM", "train/a.txt", "train/a.srt", "train/a.wav")
    touch(tmp_path, "train/a.json", "train/a.jpg", "test/d.mov", ".DS_Store", "train/._a.mp4", "Thumbs.db", "LICENSE")
    touch(tmp_path, "more.zip", "train/half.mp4.part")
    (tmp_path / "train" / "gone.mp4").symlink_to(tmp_path / "nothing.mp4")
    source = open_source(str(tmp_path), "train", SIZES)
    assert [item.name for item in source.list_items(0)] == ["train/B.MP4", "train/a.mp4", "train/c.WebM"]
    own = [Path(folder, name) for folder, _, files in os.walk(tmp_path) for name in files]
    left = sum(sum(counts.values()) for counts in source.left.values())
    assert left + source.listed == len(own) == 16
    assert source.left == {
        "images beside videos (--kind image reads them)": {".jpg": 1},
        "in split test": {".mov": 1},
        "archives (unpack them)": {".zip": 1},
        "no media": {".db": 1, ".json": 1, ".part": 1, ".srt": 1, ".txt": 1, ".wav": 1, "LICENSE": 1},
        "hidden": {".DS_Store": 1, ".mp4": 1},
        "links to nothing": {".mp4": 1},
    }
    found, read, left = source.found
    assert found.startswith("found 16 files in ") and "4 .mp4" in found
    assert read == "read 3 videos of split train (2 .mp4, 1 .webm; no labels)"
    assert left.startswith("left 13 (") and "1 .wav" in left


def test_linked_folders_are_read_under_their_names(tmp_path):
    for name in ("one", "two"):
        touch(tmp_path / "store", f"{name}/a.mp4")
    (tmp_path / "data").mkdir()
    for name, target in (("bus", "one"), ("car", "two"), ("tram", "two")):
        (tmp_path / "data" / name).symlink_to(tmp_path / "store" / target)
    assert listed(tmp_path / "data") == {"bus/a.mp4": "bus", "car/a.mp4": "car", "tram/a.mp4": "tram"}
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    assert listed(tmp_path / "linked") == listed(tmp_path / "data"), "the root may be a link, too"


def test_links_that_lead_back_end(tmp_path):
    touch(tmp_path, "a/1.mp4", "b/2.mp4")
    for link, target in (("a/up", tmp_path), ("a/other", tmp_path / "b"), ("b/other", tmp_path / "a")):
        (tmp_path / link).symlink_to(target)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    tree = walk(tmp_path)
    assert tree.files == ["a/1.mp4", "a/other/2.mp4", "b/2.mp4", "b/other/1.mp4"] and tree.broken == ["self"]
    assert tree.loops == ["a/other/other", "a/up", "b/other/other", "b/other/up"]


def test_two_links_to_one_file_are_two_items(tmp_path):
    make_video(tmp_path / "a.mp4", frames=4).rename(tmp_path / "blob")
    (tmp_path / "in").mkdir()
    for name in ("x.mp4", "y.mp4"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "blob")
    assert [clip.source for clip in open_source(str(tmp_path / "in"), "train", SIZES)] == ["x.mp4", "y.mp4"]
    assert [clip.source for clip in open_source(str(tmp_path / "in" / "y.mp4"), "train", SIZES)] == ["y.mp4"]


def test_the_kind_is_that_of_most_files(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4", "a.jpg", "b.webp")
    source = open_source(str(tmp_path), "train", SIZES)
    assert source.kind == "video" and source.listed == 2, "each video with its thumbnail"
    assert listed(tmp_path, kind="image") == {"a.jpg": None, "b.webp": None}
    touch(tmp_path, "c.JPEG")
    source = open_source(str(tmp_path), "train", SIZES)
    assert source.kind == "image" and source.listed == 3
    assert source.left == {"videos beside images (--kind video reads them)": {".mp4": 2}}
    with pytest.raises(ValueError, match=r"There are no videos in .* \(found 1 \.jpg\)"):
        open_source(str(touch(tmp_path / "stills", "a.jpg")), "train", SIZES, kind="video")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["train.zip"], r"holds archives \(train.zip\), which are not read; unpack them"),
        (["train/cat.tar.gz", "a.txt"], r"holds archives \(train/cat.tar.gz\)"),
        (["a.txt", "b.txt", "a.json"], r"There are no videos and no images.*\(found 2 .txt, 1 .json\)"),
    ],
)
def test_nothing_that_is_read_is_one_sentence(tmp_path, names, words):
    with pytest.raises(ValueError, match=words):
        open_source(str(touch(tmp_path, *names)), "train", SIZES)
    if names[0].endswith(".zip"):
        with pytest.raises(ValueError, match="is an archive, which is not read; unpack it"):
            open_source(str(tmp_path / names[0]), "train", SIZES)


def test_metadata_files(tmp_path):
    touch(tmp_path, "train/a.mp4", "train/b/c.mp4", "train/unlisted.mp4", "test/d.mp4")
    rows = [{"file_name": "train/b/c.mp4", "label": "up"}, {"file_name": "test/d.mp4", "label": "down"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\na.mp4,down\ngone.mp4,up\n")
    source = open_source(str(tmp_path), "train", SIZES)
    assert [(item.name, item.labels) for item in source.list_items(0)] == [
        ("train/a.mp4", {"label": "down"}), ("train/b/c.mp4", {"label": "up"}), ("train/gone.mp4", {"label": "up"}),
    ]  # fmt: skip
    assert source.text_labels == ["label"] and source.left["not in the metadata"] == {".mp4": 1}
    assert "no media" not in source.left, "metadata files are read"
    assert not list(source) and "gone.mp4" in source.skipped[2]["why"]
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "../x.mp4"}) + "\n")
    with pytest.raises(ValueError, match="which is outside the folder"):
        open_source(str(tmp_path), "train", SIZES)


def test_several_configurations(tmp_path):
    touch(tmp_path, "data/train/bus/1.mp4", "data/train/car/2.mp4", "data/more [1]/3.mp4", "pictures/train/4.jpg")
    readme = """---
configs:
- config_name: clips
  data_files: [{split: train, path: data/train/**}, {split: extra, path: "data/more*/*.mp4"}]
- config_name: pictures
  data_dir: pictures
---
# Two configurations
"""
    (tmp_path / "README.md").write_text(readme)
    with pytest.raises(ValueError, match="several configurations; name one with --config_name: clips, pictures"):
        listed(tmp_path)
    with pytest.raises(ValueError, match="no configuration 'clip'; it has clips, pictures"):
        listed(tmp_path, config_name="clip")
    both = {"data/train/bus/1.mp4": "bus", "data/train/car/2.mp4": "car"}
    assert listed(tmp_path, config_name="clips") == both
    assert listed(tmp_path, "extra", config_name="clips") == {"data/more [1]/3.mp4": None}
    assert listed(tmp_path, config_name="pictures") == {"pictures/train/4.jpg": None}
    (tmp_path / "README.md").write_text(readme.replace("data_dir", "default: true\n  data_dir"))
    assert listed(tmp_path) == {"pictures/train/4.jpg": None}
    with pytest.raises(ValueError, match="has none; leave config_name out"):
        listed(tmp_path / "data", config_name="clips")


def test_a_readme_that_is_no_help(tmp_path):
    touch(tmp_path, "a.mp4")
    (tmp_path / "README.md").write_text("---\n: : bad [\n---\n")
    with pytest.raises(ValueError, match=r"README\.md is not valid YAML"):
        listed(tmp_path)
    (tmp_path / "README.md").write_text("---\nconfigs:\n- {config_name: x, data_files: 'gone/*'}\n---\n")
    with pytest.raises(ValueError, match=r"matches a pattern of its README\.md; correct the data_files"):
        listed(tmp_path)
    (tmp_path / "README.md").write_text("# Pets\n")
    assert listed(tmp_path) == {"a.mp4": None}


def test_splits_in_a_single_folder(tmp_path):
    """A single folder that holds several splits is neither a class nor a place, at any depth."""
    names = ["set/data/train/bus/a.mp4", "set/data/train/car/b.mp4", "set/data/val/bus/c.mp4", "set/data/more/d.mp4"]
    touch(tmp_path, *names, "set/data/list.csv", "notes/readme.txt")
    assert listed(tmp_path) == {names[0]: "bus", names[1]: "car"}
    assert listed(tmp_path, "validation") == {names[2]: "bus"}
    assert listed(tmp_path, "more") == {names[3]: None}
    source = open_source(str(tmp_path), "train", SIZES)
    assert "splits are the folders of set/data" in source.found[1]
    assert source.left["in split val"] == source.left["in no split"] == {".mp4": 1}
    with pytest.raises(ValueError, match=r"no split 'test'; it has train, val. Other .* named as a split: more\."):
        listed(tmp_path, "test")
    assert listed(touch(tmp_path / "own", "data/a/1.mp4", "data/b/2.mp4"), "b") == {"data/b/2.mp4": None}
    one = touch(tmp_path / "one", "vehicles/train/a.mp4", "vehicles/bus/b.mp4")
    assert set(listed(one).values()) == {"train", "bus"}, "one name of a split may be a class"
    tables = touch(tmp_path / "images", "x/train/a.jpg", "x/test/b.jpg", "cover.mp4")
    assert listed(tables, "test", kind="image") == {"x/test/b.jpg": None}


def test_splits_further_down_are_told(tmp_path):
    touch(tmp_path, "a/train/bus/a.mp4", "b/test/car/b.mp4")
    assert len(listed(tmp_path)) == 2
    assert "a/train and b/test are not splits" in open_source(str(tmp_path), "train", SIZES).found[1]


@pytest.mark.parametrize("names", [("Train", "Val"), ("training", "testing"), ("TRAIN", "dev2", "Test")], ids=str)
def test_folders_that_look_like_splits_are_told(tmp_path, names):
    """Such as Train and Val, which are data as every name is; one of them is read by its name."""
    files = sorted(f"{name}/{label}/a.mp4" for name in names for label in ("bus", "car"))
    touch(tmp_path, *files)
    source = open_source(str(tmp_path), "train", SIZES)
    assert [item.name for item in source.list_items(0)] == files
    (told,) = (line for line in source.found if "are not splits by their names, but --split" in line)
    asked = told.split("--split ")[1].split()[0]
    assert asked in names and list(listed(tmp_path, asked)) == [f"{asked}/bus/a.mp4", f"{asked}/car/a.mp4"]
    touch(tmp_path / "own", "Train/a.mp4", "bus/b.mp4")
    assert "--split" not in "".join(open_source(str(tmp_path / "own"), "train", SIZES).found)


def test_configurations_on_the_hub_are_named(monkeypatch):
    def load(*_args, **_options):
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['en', 'de']\nExample:")

    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setattr("tokenization.sources.open.require_on_hub", lambda *_: None)
    with pytest.raises(ValueError, match="user/set has several configurations; name one with --config_name: en, de"):
        open_source("user/set", "train", SIZES)
