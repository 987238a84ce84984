"""Generated media for the tests here: small videos with a known picture in every frame, and a tiny tokenizer."""

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from tokenization import TotoImageProcessor, TotoProcessor, TotoVQGANConfig, TotoVQGANModel


def grey_of(index: int) -> int:
    """The grey level of frame `index`: distinguishable after lossy coding, up to 60 frames."""
    return 8 + 4 * (index % 60)


def make_video(path: Path, frames: int = 70, fps: int = 25, size: tuple[int, int] = (48, 32), **options) -> Path:
    """An mp4 of (width, height) whose frame i is flat, of grey level `grey_of(i)`."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "8", **options})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index in range(frames):
            picture = np.full((size[1], size[0], 3), grey_of(index), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def coded(number: int, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """A picture of (width, height) that holds its number: 8 squares, bit b at column b % 4, row b // 4; white for 1."""
    bits = np.array([number >> bit & 1 for bit in range(8)], np.uint8).reshape(2, 4)
    grey = np.kron(bits * 200 + 16, np.ones((size[1] // 2, size[0] // 4), np.uint8))
    return np.repeat(grey[..., None], 3, -1)


def number_of(frame: np.ndarray) -> int:
    """The number in a picture (R, R, 3) of `coded`."""
    height, width = frame.shape[:2]
    places = [(height * (1 + 2 * (bit // 4)) // 4, width * (1 + 2 * (bit % 4)) // 8) for bit in range(8)]
    return sum(int(frame[y, x, 0] > 128) << bit for bit, (y, x) in enumerate(places))


def make_coded(
    path: Path,
    times: list[int],
    pictures: list[np.ndarray] | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    aspect: Fraction | None = None,
    matrix: tuple[int, ...] | None = None,
    last: int | None = None,
    options: dict[str, str] | None = None,
    **encoder,
) -> Path:
    """A video whose frame i, `coded(i)` or a given picture, appears at times[i] milliseconds.

    aspect: of a pixel. matrix: a, b, c, d of the display matrix. last: milliseconds for which the last frame is shown.
    options: of the container. encoder: options of the codec.
    """
    pictures = pictures if pictures is not None else [coded(number % 256) for number in range(len(times))]
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=30, options=encoder)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = pixels, Fraction(1, 1000)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if matrix is not None:
            a, b, c, d = (value << 16 for value in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for time, picture in zip(times, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        for packet in stream.encode():
            if last is not None:
                packet.duration = round(last / 1000 / packet.time_base)
            container.mux(packet)
    return path


def make_audio(path: Path) -> Path:
    """A second of silence: a media file without a picture in it."""
    with wave.open(str(path.with_suffix(".wav")), "wb") as file:
        file.setparams((1, 2, 8000, 8000, "NONE", ""))
        file.writeframes(bytes(16000))
    return path.with_suffix(".wav").rename(path)


def make_truncated(path: Path, **video) -> Path:
    """A video whose index is whole and whose pictures end in the middle."""
    content = make_video(path, **video).read_bytes()
    path.write_bytes(content[: int(len(content) * 0.6)])
    return path


def make_image(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (20, 16)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def tiny_tokenizer(seed: int = 0, resolution: int = 16) -> TotoVQGANModel:
    """A random VQGAN of stride 4 with 32 codes that pictures of unlike brightness do not share."""
    config = TotoVQGANConfig(
        num_codes=32,
        embed_dim=4,
        base_channels=8,
        channel_multipliers=(1, 1, 1),
        num_res_blocks=1,
        attention_resolutions=(),
        mid_attention=False,
        z_channels=4,
        norm_groups=2,
        resolution=resolution,
    )
    torch.manual_seed(seed)
    model = TotoVQGANModel(config)
    with torch.no_grad():
        noise = torch.rand(32, 3, resolution, resolution)
        latents = model.encode_latents(noise).permute(0, 2, 3, 1).flatten(0, 2)
        model.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[:32]])
    return model.eval()


def tiny_processor(seed: int = 0, resolution: int = 16, num_frames: int = 4) -> TotoProcessor:
    return TotoProcessor(TotoImageProcessor(resolution=resolution), tiny_tokenizer(seed, resolution), num_frames)
