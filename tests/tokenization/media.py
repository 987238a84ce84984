"""Generated media for the tests here: small videos with a known picture in every frame, and a tiny tokenizer."""

import wave
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
