"""torchcodec gives the frames that PyAV gives, at the same times; where it would not, PyAV decodes."""

from fractions import Fraction

import numpy as np
import pytest
from media import make_coded, make_video
from PIL import Image

from tokenization.playback import Playback
from tokenization.sampling import Sampling
from tokenization.tokenize_dataset import TokenizeArgs
from tokenization.torchcodec_playback import TorchcodecPlayback, playback_of, torchcodec_decoder
from tokenization.video import read_windows

TIMES = [40 * number for number in range(12)]


@pytest.fixture(scope="module")
def torchcodec():
    """Skips where torchcodec, or the FFmpeg that it needs, is missing."""
    try:
        return torchcodec_decoder()
    except ValueError as error:
        pytest.skip(str(error))


def film(path, times=TIMES, size=(96, 64), **options):
    """A video of coloured clouds."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (len(times), 9, 12, 3), np.uint8)
    clouds = [np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BICUBIC)) for each in small]
    return make_coded(path, times, clouds, **options)


def shown(playback):
    """(time, until, picture, aspect) of every frame."""
    with playback:
        ticks = playback.ticks()
        return [(each.time, each.until, *playback.picture(each.frame)) for each in playback.frames(ticks)]


PLAIN = {
    "H.264": ("a.mp4", {}),
    "B frames, odd times, Matroska": ("b.mkv", {"times": [0, 33, 67, 100, 400, 433, 467, 500], "size": (130, 98)}),
    "4:4:4": ("c.mp4", {"pixels": "yuv444p"}),
    "turned": ("d.mp4", {"matrix": (0, 1, -1, 0), "aspect": Fraction(4, 3)}),
    "upside down": ("e.mp4", {"matrix": (-1, 0, 0, -1)}),
    "wide pixels": ("f.mp4", {"aspect": Fraction(4, 3)}),
    "VP9": ("g.webm", {"codec": "libvpx-vp9"}),
    "MPEG-4": ("h.avi", {"codec": "mpeg4"}),
}
OTHERS = {
    "mirrored": ("a.mp4", {"matrix": (-1, 0, 0, 1)}),
    "10 bits": ("b.mkv", {"codec": "libx265", "pixels": "yuv420p10le"}),
    "a transport stream": ("c.ts", {}),
}


@pytest.mark.parametrize("name", [*PLAIN, *OTHERS])
def test_frames_and_times_are_those_of_pyav(torchcodec, tmp_path, name):
    file, options = (PLAIN | OTHERS)[name]
    path = film(tmp_path / file, **options)
    ours, theirs = shown(TorchcodecPlayback(path)), shown(Playback(path))
    assert len(ours) == len(theirs) == len(options.get("times", TIMES))
    for found, right in zip(ours, theirs, strict=True):
        assert found[:2] == right[:2] and found[3] == right[3]
        assert np.abs(found[2].astype(int) - right[2]).max() <= 2, "0 where both have one version of FFmpeg"
    assert (TorchcodecPlayback(path).decoder is not None) == (name in PLAIN)


@pytest.mark.parametrize("options", [{"fps": 7.5}, {"stride": 3}, {"crops": 3, "stride": 2}])
def test_windows_are_those_of_pyav(torchcodec, tmp_path, options):
    path, sampling = make_video(tmp_path / "a.mp4", frames=70), Sampling(num_frames=4, resolution=16, **options)
    ours = list(read_windows(path, sampling, source="a", decoder="torchcodec"))
    theirs = list(read_windows(path.read_bytes(), sampling, source="a"))
    assert len(ours) == len(theirs) > 3
    for found, right in zip(ours, theirs, strict=True):
        assert (found.start, found.fps) == (right.start, right.fps)
        assert np.abs(found.frames.astype(int) - right.frames).max() <= 2
    from_bytes = read_windows(path.read_bytes(), sampling, source="a", decoder="torchcodec")
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(from_bytes, ours, strict=True))


def test_a_cut_file_keeps_the_windows_before_the_damage(torchcodec, tmp_path):
    path = make_video(tmp_path / "a.mp4", frames=70)
    cut = path.read_bytes()[: -path.stat().st_size // 4]
    found, sampling = {}, Sampling(num_frames=4, stride=1, resolution=16)
    for decoder in ("pyav", "torchcodec"):
        found[decoder] = []
        with pytest.raises(ValueError, match="truncated"):
            found[decoder].extend(read_windows(cut, sampling, decoder=decoder))
    assert [clip.start for clip in found["torchcodec"]] == [clip.start for clip in found["pyav"]]


def test_nonsense_is_refused(tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", frames=4)
    with pytest.raises(ValueError, match="decoder is 'nvdec'; it must be pyav, torchcodec or torchcodec-cuda"):
        playback_of(path, "nvdec")
    with pytest.raises(ValueError, match="--decoder is nvdec; it must be one of"):
        TokenizeArgs(dataset="a", output="b", decoder="nvdec")
    with pytest.raises(ValueError, match="--decoder torchcodec gives whole frames; leave out --resize decoder"):
        TokenizeArgs(dataset="a", output="b", decoder="torchcodec", resize="decoder")
    monkeypatch.setitem(__import__("sys").modules, "torchcodec.decoders", None)
    with pytest.raises(ValueError, match="the decoder torchcodec is not installed; pip install torchcodec, or choose"):
        next(read_windows(path, decoder="torchcodec"))
