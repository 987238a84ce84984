"""DAVIS-2016 and DAVIS-2017 as distributed, the embedded world, and one sentence for whatever is wrong."""

import numpy as np
import pytest
from PIL import Image

from evaluation.track.reading import davis_sequences, toy_sequences

SIZE = (24, 40)  # H, W
PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0] + [255] * 759  # whole: PIL would cut larger numbers


def numbers(t, objects=2):
    mask = np.zeros(SIZE, np.uint8)
    for k in range(objects):
        mask[4:12, 3 + 12 * k + t : 10 + 12 * k + t] = k + 1
    return mask


def save_mask(file, mask, mode="P"):
    picture = Image.fromarray(mask)
    if mode == "P":
        picture.putpalette(PALETTE)
    elif mode == "RGB":
        picture.putpalette(PALETTE)
        picture = picture.convert("RGB")
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file)


def add(root, name, frames=5, size="480p", mode="P", objects=2, scale=1):
    """A sequence with frames and masks. scale: of the numbers in the masks."""
    rng = np.random.default_rng(0)
    for t in range(frames):
        picture = root / "JPEGImages" / size / name / f"{t:05d}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(picture)
        save_mask(root / "Annotations" / size / name / f"{t:05d}.png", numbers(t, objects) * np.uint8(scale), mode)


def only(root):
    found, skipped = davis_sequences(str(root), None, [])
    assert len(found) == 1 and not skipped
    return found[0]


def test_davis_2017(tmp_path):
    for name in ("b", "a", "test"):
        add(tmp_path, name)
    lists = tmp_path / "ImageSets"
    for year, names in (("2017", "b\na\n"), ("2016", "a\n")):
        (lists / year).mkdir(parents=True)
        (lists / year / "val.txt").write_text(names)
    (lists / "2017" / "train.txt").write_text("test\n")
    found, skipped = davis_sequences(str(tmp_path), None, [])
    assert [each.name for each in found] == ["b", "a"] and not skipped
    assert [each.name for each in davis_sequences(str(tmp_path), "train", [])[0]] == ["test"]
    assert [each.name for each in davis_sequences(str(tmp_path), None, ["a"])[0]] == ["a"]
    first = found[0]
    assert (first.size, first.num_frames, first.objects, first.is_binary) == (SIZE, 5, 2, False)
    frames = list(first.frames())
    assert len(frames) == 5 and frames[3][0].shape == (*SIZE, 3)
    assert np.array_equal(frames[3][1], numbers(3))
    with pytest.raises(ValueError, match=r"no list other\.txt"):
        davis_sequences(str(tmp_path), "other", [])
    with pytest.raises(ValueError, match="nobody is not a sequence"):
        davis_sequences(str(tmp_path), None, ["nobody"])


def test_davis_2016_whose_masks_are_grey_and_whose_list_has_frames(tmp_path):
    add(tmp_path, "bear", mode="L", objects=1, scale=255)
    add(tmp_path, "unlisted")
    (tmp_path / "ImageSets" / "480p").mkdir(parents=True)
    lines = [f"/JPEGImages/480p/bear/{t:05d}.jpg /Annotations/480p/bear/{t:05d}.png" for t in range(5)]
    (tmp_path / "ImageSets" / "480p" / "val.txt").write_text("\n".join(lines))
    found = only(tmp_path)
    assert found.name == "bear" and found.is_binary and found.objects == 1
    assert np.array_equal(list(found.frames())[2][1], numbers(2, 1))


def test_roots_without_lists_and_a_folder_test(tmp_path):
    add(tmp_path / "test", "one", size="")
    assert only(tmp_path).name == "one" and only(tmp_path / "test").name == "one"
    with pytest.raises(ValueError, match="no ImageSets"):
        davis_sequences(str(tmp_path), "val", [])


def test_void_is_not_an_object_and_the_fingerprint_follows_the_files(tmp_path):
    add(tmp_path, "one", objects=1)
    mask = numbers(0, 1)
    mask[-3:] = 255
    save_mask(tmp_path / "Annotations/480p/one/00000.png", mask)
    before = only(tmp_path)
    assert before.objects == 1 and not before.is_binary
    save_mask(tmp_path / "Annotations/480p/one/00004.png", numbers(1, 1))
    assert only(tmp_path).fingerprint != before.fingerprint


def remove(root, kind, *names):
    for name in names:
        (root / kind / "480p" / "bad" / name).unlink()


def no_masks(root):
    remove(root, "Annotations", *(f"{t:05d}.png" for t in range(5)))


def other_size(root):
    save_mask(root / "Annotations/480p/bad/00002.png", numbers(2)[:20])


def colours(root):
    for t in range(5):
        save_mask(root / f"Annotations/480p/bad/{t:05d}.png", numbers(t), "RGB")


def greys(root):
    for t in range(5):
        save_mask(root / f"Annotations/480p/bad/{t:05d}.png", 38 * numbers(t), "L")


def gap(root):
    remove(root, "JPEGImages", "00002.jpg")
    remove(root, "Annotations", "00002.png")


def few(root):
    remove(root, "JPEGImages", *(f"{t:05d}.jpg" for t in range(1, 5)))


def lacks_one(root):
    remove(root, "Annotations", "00003.png")


def no_object(root):
    save_mask(root / "Annotations/480p/bad/00000.png", 0 * numbers(0))


def no_picture(root):
    (root / "JPEGImages/480p/bad/00001.jpg").write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (no_masks, "bad has no masks in"),
        (other_size, "mask 00002 of bad has 40 x 20 pixels and its first frame 40 x 24"),
        (colours, r"mask 00000\.png of bad has no palette"),
        (greys, "values 38, 76, which are grey levels"),
        (gap, "bad has no frame between 1 and 3"),
        (few, "bad has 1 frame"),
        (lacks_one, "bad has no mask for 1 of 5 frames, the first '00003'"),
        (no_object, "first mask of bad has no object"),
        (no_picture, "cannot identify image file"),
    ],
)
def test_what_is_wrong_gets_one_sentence_and_other_sequences_go_on(tmp_path, spoil, sentence):
    add(tmp_path, "bad")
    add(tmp_path, "good")
    spoil(tmp_path)
    found, skipped = davis_sequences(str(tmp_path), None, [])
    assert [each.name for each in found] == ["good"] and list(skipped) == ["bad"]
    with pytest.raises(ValueError, match=sentence):
        raise ValueError(skipped["bad"])
    assert "\n" not in skipped["bad"]


def test_roots_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="no folder JPEGImages"):
        davis_sequences(str(tmp_path), None, [])
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(ValueError, match="no folder Annotations"):
        davis_sequences(str(tmp_path), None, [])


@pytest.mark.parametrize("dataset", ["toyworld:motion", "toyworld:motion:occluders=100", "toyworld"])
def test_the_embedded_world_has_exact_masks_of_several_objects(dataset):
    found = toy_sequences(dataset, None, 3, 4, 64, 0)
    assert len(found) == 3 and len({each.fingerprint for each in found}) == 3
    assert max(each.objects for each in found) > 1
    for each in found:
        frames = list(each.frames())
        assert len(frames) == 4 and frames[0][0].shape == (64, 64, 3)
        shown = set(np.unique(frames[0][1]).tolist()) - {0, 255}
        assert shown == set(range(1, each.objects + 1))
    with pytest.raises(ValueError, match="3 frames or more"):
        toy_sequences(dataset, None, 3, 2, 64, 0)
