"""Frames that the decoder reduces give the crops that PIL makes of all pixels, to the tolerance in docs/datasets.md."""

from fractions import Fraction

import av
import numpy as np
import pytest
from media import make_coded, make_video
from PIL import Image

from tokenization.playback import FINER, LARGE, Playback
from tokenization.sampling import Sampling
from tokenization.video import read_windows

SIDE = 32


def scene(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Coloured shapes, some with sharp edges, and fine detail in their brightness, as in photographs."""
    generator = np.random.default_rng(seed)
    layers = [generator.integers(0, 256, (4 * scale, 4 * scale, 3), np.uint8) for scale in (1, 3, 8)]
    resized = [Image.fromarray(layer).resize((width, height), Image.Resampling.BICUBIC) for layer in layers]
    layers = [np.asarray(layer) for layer in resized]
    picture = np.mean([*layers[:2], np.repeat(layers[2][..., :1], 3, -1)], axis=0).astype(np.uint8)
    for colour in generator.integers(0, 256, (6, 3)):
        top, left = (int(generator.integers(0, size * 3 // 4)) for size in (height, width))
        picture[top : top + height // 5, left : left + width // 6] = colour
    return picture


def both(path, **sampling) -> tuple[np.ndarray, np.ndarray]:
    """Frames of all windows by PIL and with the decoder's help, as floats."""
    found = []
    for how in ("pil", "decoder"):
        clips = read_windows(
            path, Sampling(**{"num_frames": 1, "stride": 1, "resolution": SIDE} | sampling, resize=how)
        )
        found.append(np.concatenate([clip.frames for clip in clips]).astype(float))
    return found[0], found[1]


def psnr(ours: np.ndarray, right: np.ndarray) -> float:
    """Of the worst frame, in decibels."""
    errors = np.square(ours - right).mean((1, 2, 3))
    return float(10 * np.log10(255**2 / max(errors.max(), 1e-9)))


def assert_equal_to_tolerance(right: np.ndarray, ours: np.ndarray, least: float = 47, most: int = 12) -> None:
    """least: decibels of the worst frame. most: levels of 255 by which a value may differ."""
    assert ours.shape == right.shape
    assert not np.array_equal(ours, right), "nothing was reduced"
    off = ours - right
    assert psnr(ours, right) > least and np.abs(off).max() <= most
    assert np.abs(off.mean((0, 1, 2))).max() < 0.2, "colours as a whole"


WAYS = {
    "plain": {},
    "turned": {"matrix": (0, 1, -1, 0)},
    "turned and mirrored": {"matrix": (0, 1, 1, 0)},
    "mirrored": {"matrix": (-1, 0, 0, 1)},
    "upside down": {"matrix": (1, 0, 0, -1)},
    "wide pixels": {"aspect": Fraction(2)},
    "narrow pixels": {"aspect": Fraction(1, 2)},
    "wide pixels, turned": {"aspect": Fraction(16, 11), "matrix": (0, -1, 1, 0)},
    "ten bits": {"pixels": "yuv420p10le"},
    "full colour": {"pixels": "yuv444p"},
    "half colour": {"pixels": "yuv422p"},
    "colours of HD": {"x264-params": "colormatrix=bt709"},
    "full range": {"codec": "mjpeg", "pixels": "yuvj420p"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [(512, 288), (288, 512)])
def test_crops_are_equal_to_a_tolerance(tmp_path, way, size):
    """Three crops along the longer side, from one reduced frame."""
    pictures = [scene(*size, seed) for seed in range(2)]
    how = {} if WAYS[way].get("codec") else {"crf": "10"}
    path = make_coded(tmp_path / "a.mov", [0, 40], pictures, **how, **WAYS[way])
    right, ours = both(path, views=(1, 3))
    assert len(ours) == 3
    assert_equal_to_tolerance(right, ours, **({"least": 43, "most": 20} if way == "ten bits" else {}))


@pytest.mark.parametrize("size", [(385, 217), (384, 217), (385, 216), (333, 500)])
def test_odd_sizes_are_equal_to_a_tolerance(tmp_path, size):
    """swscale has other converters for odd sizes, which round otherwise."""
    options = {"codec": "libvpx-vp9", "deadline": "realtime", "crf": "10", "b": "4000000"}
    path = make_coded(tmp_path / "a.webm", [0, 40], [scene(*size, seed) for seed in range(2)], **options)
    assert_equal_to_tolerance(*both(path), least=41, most=24)


def test_random_crops_are_at_the_same_places(tmp_path):
    path = make_coded(tmp_path / "a.mp4", [0, 40, 80], [scene(512, 160)] * 3, crf="10")
    right, ours = both(path, crops=6, seed=1)
    assert len(ours) > 12
    assert_equal_to_tolerance(right, ours)
    beside = right[:, :, 1:], right[:, :, :-1]  # a crop that lay a pixel beside its place would be told from it
    assert psnr(*beside) < 35


def test_small_frames_are_equal_in_every_bit(tmp_path):
    """Below the size from which reducing pays, and where frames are enlarged."""
    for size in ((48, 32), (LARGE * SIDE + 40, LARGE * SIDE - 2)):
        path = make_coded(tmp_path / f"{size[0]}.mp4", [0, 40], [scene(*size)] * 2, crf="10")
        right, ours = both(path, views=(1, 3))
        assert np.array_equal(right, ours)


@pytest.mark.parametrize(("codec", "pixels"), [("rawvideo", "bgr24"), ("utvideo", "gbrp")])
def test_rgb_is_left_to_pil(tmp_path, codec, pixels):
    pictures = [scene(384, 216, seed) for seed in range(2)]
    path = make_coded(tmp_path / "a.avi", [0, 40], pictures, codec=codec, pixels=pixels)
    right, ours = both(path)
    assert np.array_equal(right, ours)


def test_a_frame_is_reduced_once_for_all_crops(tmp_path):
    path = make_coded(tmp_path / "a.mp4", [0, 40], [scene(384, 216)] * 2, aspect=Fraction(2), matrix=(0, 1, -1, 0))
    with Playback(path) as playback:
        frame = next(iter(playback.frames(1000))).frame
        whole, aspect = playback.picture(frame)
        small, reduced = playback.picture(frame, SIDE)
    assert whole.shape == (384, 216, 3) and aspect == Fraction(1, 2)
    assert small.shape == (342, FINER * SIDE, 3)  # 768 x 216 on show: 341.3 x 96
    assert reduced == aspect * Fraction(216 * 342, 384 * 96)


def test_interlaced_frames_are_left_to_pil(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10", "x264-params": "interlaced=1:tff=1"})
        stream.width, stream.height, stream.pix_fmt = 384, 224, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene(384, 224), format="rgb24")))
        container.mux(stream.encode())
    with Playback(path) as playback:
        assert next(iter(playback.frames(1000))).frame.interlaced_frame
    right, ours = both(path)
    assert np.array_equal(right, ours)


def test_another_way_is_refused(tmp_path):
    with pytest.raises(ValueError, match="resize is 'gpu'; it must be pil or decoder"):
        list(read_windows(make_video(tmp_path / "a.mp4"), Sampling(resize="gpu")))
