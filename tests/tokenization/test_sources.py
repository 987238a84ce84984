"""Every kind of dataset becomes the same stream of clips; what is bad is skipped, counted and named."""

import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from media import make_audio, make_image, make_truncated, make_video
from PIL import Image

from tokenization.image_processing_toto import limit_detail
from tokenization.sampling import Sampling
from tokenization.sources.open import open_source

SIZES = Sampling(num_frames=4, stride=4, resolution=16)
RED, GREEN = (250, 0, 0), (0, 250, 0)


def images_parquet(path, names=("cat", "dog")):
    rows = {"img": [Image.new("RGB", (20, 16), RED), Image.new("L", (16, 20), 90)], "label": [1, 0], "fold": [7, None]}
    features = Features({"img": ImageFeature(), "label": ClassLabel(names=list(names)), "fold": Value("int32")})
    Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


def test_a_folder_of_videos(tmp_path):
    for name in ("b.mp4", "a.mp4"):
        make_video(tmp_path / name, frames=20)
    source = open_source(str(tmp_path), sampling=SIZES)
    clips = list(source)
    assert source.kind == "video" and source.skipped == [] and source.label_names == {} and source.items == 2
    assert [(clip.source, clip.start) for clip in clips] == [("a.mp4", 0), ("b.mp4", 0)]
    assert clips[0].frames.shape == (4, 16, 16, 3) and clips[0].fps == pytest.approx(6.25) and clips[0].labels == {}
    assert [clip.source for clip in source] == ["a.mp4", "b.mp4"], "a source can be read again"


def test_class_folders_become_labels_by_name(tmp_path):
    for split, name in (("train", "run"), ("train", "sit"), ("test", "sit")):
        (tmp_path / split / name).mkdir(parents=True)
        make_video(tmp_path / split / name / "a.mp4", frames=20)
    source = open_source(str(tmp_path), "train", sampling=SIZES)
    assert source.label_names == {"label": ["run", "sit"]}
    assert [(clip.source, clip.labels) for clip in source] == [
        ("train/run/a.mp4", {"label": 0}),
        ("train/sit/a.mp4", {"label": 1}),
    ]
    with pytest.raises(ValueError, match=r"has no split 'validation'; it has train, test\."):
        open_source(str(tmp_path), "validation", sampling=SIZES)


def test_a_folder_with_metadata_and_a_readme(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "README.md").write_text("# no metadata block\n")
    make_video(tmp_path / "train" / "a.mp4", frames=20)
    row = {"file_name": "a.mp4", "fps": 25.0, "num_frames": 20, "width": 48, "speed": 3}
    (tmp_path / "train" / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    (clip,) = open_source(str(tmp_path), sampling=SIZES)
    assert clip.labels == {"speed": 3}, "facts about the media are no labels"


def test_bad_videos_are_skipped_and_named(tmp_path):
    make_video(tmp_path / "good.mp4", frames=20)
    make_video(tmp_path / "short.mp4", frames=5)
    make_audio(tmp_path / "sound.mp4")
    make_truncated(tmp_path / "cut.mp4", frames=60)
    (tmp_path / "noise.mp4").write_bytes(b"noise" * 50)
    source = open_source(str(tmp_path), sampling=replace(SIZES, stride=2))
    kept = {clip.source for clip in source}
    why = {item["source"]: item["why"] for item in source.skipped}
    assert kept == {"good.mp4", "cut.mp4"}, "the windows before the damage are kept"
    assert "too short: it has 5 frames" in why["short.mp4"]
    assert "only audio" in why["sound.mp4"]
    assert "truncated" in why["cut.mp4"]
    assert "corrupt, truncated or not a video" in why["noise.mp4"]
    assert len(source.skipped) == 4 and source.items == 5


def test_a_folder_of_images(tmp_path):
    for name, colour in (("green", GREEN), ("red", RED)):
        (tmp_path / name).mkdir()
        make_image(tmp_path / name / "a.png", colour)
    (tmp_path / "red" / "b.png").write_bytes(b"no picture")
    source = open_source(str(tmp_path), sampling=SIZES)
    clips = list(source)
    assert source.kind == "image" and [clip.labels["label"] for clip in clips] == [0, 1]
    assert clips[1].frames.shape == (1, 16, 16, 3) and clips[1].frames[0, 8, 8].tolist() == list(RED)
    assert clips[1].fps == 0 and source.skipped[0]["source"] == "red/b.png"
    assert "image cannot be read" in source.skipped[0]["why"]


def test_parquet_and_a_readme_with_configs(tmp_path):
    file = images_parquet(tmp_path / "train-00000.parquet")
    source = open_source(str(file), sampling=SIZES)
    clips = list(source)
    assert source.label_names == {"label": ["cat", "dog"], "fold": []}
    assert [clip.labels for clip in clips] == [{"label": 1, "fold": 7}, {"label": 0}]
    assert [clip.source for clip in clips] == ["train[0]", "train[1]"]
    assert clips[1].frames[0, 3, 3].tolist() == [90, 90, 90], "grey pictures become RGB"
    text = "---\nconfigs:\n- config_name: plain\n  data_files:\n  - {split: train, path: train-*}\n---\n"
    (tmp_path / "README.md").write_text(text)
    assert len(list(open_source(str(tmp_path), sampling=SIZES))) == 2
    # datasets' cache knows such a folder by its name only: new contents must be seen all the same
    images_parquet(file, names=("ape", "bee"))
    assert open_source(str(tmp_path), sampling=SIZES).label_names["label"] == ["ape", "bee"]


def test_webdataset(tmp_path):
    video = make_video(tmp_path / "v.mp4", frames=20).read_bytes()
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for key in ("k0", "k1"):
            for suffix, content in (("mp4", video), ("json", b'{"label": 4}')):
                entry = tarfile.TarInfo(f"{key}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    source = open_source(str(tmp_path / "shard.tar"), sampling=SIZES)
    assert [(clip.source, clip.frames.shape[0]) for clip in source] == [("k0", 4), ("k1", 4)]


def test_one_file(tmp_path):
    make_video(tmp_path / "a.mp4", frames=20)
    make_video(tmp_path / "b.mp4", frames=20)
    assert [clip.source for clip in open_source(str(tmp_path / "a.mp4"), sampling=SIZES)] == ["a.mp4"]


def test_limit_and_crops(tmp_path):
    for name in "abc":
        make_image(tmp_path / f"{name}.png", RED, size=(64, 16))
    assert len(list(open_source(str(tmp_path), limit=2, sampling=SIZES))) == 2
    source = open_source(str(tmp_path), sampling=replace(SIZES, crops=2, seed=3))
    first, second = list(source), list(source)
    assert len(first) == 6 and [clip.source for clip in first[:2]] == ["a.png", "a.png"]
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(first, second, strict=True))


def test_files_of_all_modes_become_rgb(tmp_path):
    """One picture, dark on the left and bright on the right, saved in every mode; the float one is out of range."""
    grey = Image.fromarray(np.repeat(np.array([[40] * 16 + [200] * 16], np.uint8), 32, axis=0))
    wide = np.asarray(grey).astype(np.uint16) * 257
    turned = Image.Exif()
    turned[0x0112] = 6
    grey.save(tmp_path / "grey.png")
    grey.convert("LA").save(tmp_path / "grey_alpha.png")
    grey.convert("RGBA").save(tmp_path / "rgba.webp", lossless=True)
    grey.convert("P").save(tmp_path / "palette.png", transparency=bytes(256))
    grey.convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(wide).save(tmp_path / "sixteen.png")
    Image.fromarray(wide).save(tmp_path / "sixteen.tiff")
    Image.fromarray(np.asarray(grey) / np.float32(255)).save(tmp_path / "float.tiff")
    Image.fromarray(np.asarray(grey) * np.float32(9)).save(tmp_path / "out_of_range.tiff")
    grey.rotate(90).convert("RGB").save(tmp_path / "rotated.jpg", exif=turned)
    grey.save(tmp_path / "animated.gif", save_all=True, append_images=[grey.rotate(180)] * 3)
    grey.save(tmp_path / "animated.png", save_all=True, append_images=[grey.rotate(180)] * 3)
    grey.point(lambda value: 255 * (value > 100)).convert("1").save(tmp_path / "one_bit.png")
    source = open_source(str(tmp_path), sampling=SIZES)
    clips = {clip.source: clip.frames for clip in source}
    assert [(skip["source"], skip["why"].split(";")[0]) for skip in source.skipped] == [
        ("out_of_range.tiff", "Float pictures must lie in [0, 1]")
    ]
    assert len(clips) == 12
    for name, frames in clips.items():
        assert frames.shape == (1, 16, 16, 3) and frames.dtype == np.uint8, name
        low, high = (0, 255) if name == "one_bit.png" else (40, 200)
        assert np.abs(frames[0, :, 2].astype(int) - low).max() < 12, name
        assert np.abs(frames[0, :, 13].astype(int) - high).max() < 12, name


def sorted_parquet(path, first, count, row_group_size=8):
    """Pictures `first` to `first + count`, whose grey is their number; label = number // 16: sorted by class."""
    numbers = range(first, first + count)
    rows = {"image": [Image.new("L", (8, 8), n) for n in numbers], "label": [n // 16 for n in numbers]}
    features = Features({"image": ImageFeature(), "label": ClassLabel(num_classes=8)})
    Dataset.from_dict(rows, features=features).to_parquet(path, batch_size=row_group_size)


def number(clip) -> int:
    return int(clip.frames[0, 0, 0, 0])


def test_a_limited_parquet_set_is_drawn_from_all_over(tmp_path):
    sorted_parquet(tmp_path / "train-00000.parquet", 0, 72)
    sorted_parquet(tmp_path / "train-00001.parquet", 72, 56)
    plain = {clip.source: number(clip) for clip in open_source(str(tmp_path), sampling=SIZES)}
    assert list(plain.values()) == list(range(128)) and list(plain)[72] == "train[1:0]"
    assert {clip.labels["label"] for clip in open_source(str(tmp_path), limit=48, sampling=SIZES)} == {0, 1, 2}, (
        "the first rows"
    )
    source = open_source(str(tmp_path), limit=48, shuffle_seed=0, sampling=SIZES)
    drawn = {clip.source: (number(clip), clip.labels["label"]) for clip in source}
    assert len(drawn) == 48 and source.num_shards == 1 and {label for _, label in drawn.values()} == set(range(8))
    assert all(plain[name] == n and label == n // 16 for name, (n, label) in drawn.items()), (
        "names stay those of the rows"
    )
    assert list(drawn) == [clip.source for clip in source], "the same again"
    other = {clip.source for clip in open_source(str(tmp_path), limit=48, shuffle_seed=1, sampling=SIZES)}
    assert other != set(drawn)
    assert (
        len(
            {
                clip.source
                for clip in open_source(str(tmp_path), limit=48, shuffle_seed=0, sampling=replace(SIZES, crops=2))
            }
        )
        == 24
    )
    whole = open_source(str(tmp_path), limit=128, shuffle_seed=0, sampling=SIZES)
    assert whole.num_shards == 2 and [number(clip) for clip in whole] == list(range(128)), "nothing to choose"


def test_rows_beyond_the_first_draw_stand_in_for_bad_ones(tmp_path):
    rows = {"image": [{"bytes": b"no picture", "path": None}] * 10, "label": list(range(10))}
    features = Features({"image": ImageFeature(), "label": Value("int64")})
    make_image(tmp_path / "a.png", RED)
    rows["image"][7] = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    for seed in range(3):
        source = open_source(str(tmp_path / "a.parquet"), limit=1, shuffle_seed=seed, sampling=SIZES)
        assert [clip.source for clip in source] == ["train[7]"] and source.items == len(source.skipped) + 1


def test_a_limited_folder_is_drawn_from_all_over(tmp_path):
    for label in "abcdefgh":
        (tmp_path / label).mkdir()
        for n in range(8):
            make_image(tmp_path / label / f"{n}.png", RED)
    first = open_source(str(tmp_path), limit=16, sampling=SIZES)
    assert [clip.labels["label"] for clip in first] == [0] * 8 + [1] * 8
    drawn = open_source(str(tmp_path), limit=32, shuffle_seed=0, sampling=SIZES)
    assert {clip.labels["label"] for clip in drawn} == set(range(8)) and len({c.source for c in drawn}) == 32
    assert all(clip.source.startswith(f"{'abcdefgh'[clip.labels['label']]}/") for clip in drawn)


def test_toyworld(capsys):
    sizes = replace(SIZES, resolution=32)
    source = open_source("toyworld", "validation", limit=2, sampling=sizes)
    clips = list(source)
    assert source.expected == source.items == len(clips) == 2
    assert clips[0].frames.shape == (4, 32, 32, 3)
    assert set(clips[0].labels) == set(source.label_names) == {"digit", "texture", "motion"}
    assert open_source("toyworld:cluttered", sampling=sizes).expected == 2000
    assert "endless: taking 2000 clips" in capsys.readouterr().out
    with pytest.raises(ValueError, match="more clips instead"):
        open_source("toyworld", sampling=replace(sizes, crops=2))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda p: p, FileNotFoundError, "is empty; put videos"),
        (lambda p: p / "nothing", FileNotFoundError, "There is no folder or file"),
        (lambda p: make_image(p / "a.png", RED).with_suffix(".txt"), FileNotFoundError, "There is no folder or file"),
        (lambda p: (p / "a.txt").write_text("x") and p / "a.txt", ValueError, "neither a video, an image"),
    ],
)
def test_nothing_to_read_is_one_sentence(tmp_path, make, error, words):
    with pytest.raises(error, match=words):
        open_source(str(make(tmp_path)), sampling=SIZES)


def test_wrong_column_and_options(tmp_path):
    make_image(tmp_path / "a.png", RED)
    with pytest.raises(ValueError, match="no column 'photo'; it has image"):
        open_source(str(tmp_path), image_column="photo", sampling=SIZES)
    with pytest.raises(ValueError, match="There are no videos in"):
        open_source(str(tmp_path), kind="video", sampling=SIZES)
    with pytest.raises(ValueError, match="limit of clips"):
        open_source(str(tmp_path), limit=0, sampling=SIZES)


def test_a_text_dataset_has_no_pictures(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match="no videos and no images in"):
        open_source(str(tmp_path), sampling=SIZES)


def test_less_detail_in_as_many_pixels(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "noise.png")
    (whole,) = open_source(str(tmp_path), "train", Sampling(resolution=32))
    (less,) = open_source(str(tmp_path), "train", Sampling(resolution=32, detail=8))
    assert less.frames.shape == whole.frames.shape and less.frames.dtype == np.uint8
    # what is left survives a second reduction; what is gone were differences of neighbours
    again = np.stack([limit_detail(less.frames, 8)[0]])
    assert np.abs(again.astype(int) - less.frames).mean() < 12
    rough, smooth = (np.abs(np.diff(c.frames[0].astype(int), axis=1)).mean() for c in (whole, less))
    assert smooth < rough / 4
    with pytest.raises(ValueError, match="omit the detail"):
        open_source("toyworld", sampling=Sampling(detail=8))
