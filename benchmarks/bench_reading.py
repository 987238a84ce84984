"""Reading for `toto tokenize`: frames a second and core by each decoder, and how busy an encoder is kept."""

import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from bench_data import write_video
from timing import alternate, spread

SIZES = {"256p": (456, 256), "1080p": (1920, 1080)}
# What an H100 is assumed to take for 64 frames of 128 pixels in docs/datasets.md: 4,360 frames a second.
SECONDS_OF_64 = 64 / 4360


def add_flags(parser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds")
    parser.add_argument("--clips", type=int, default=200, help="clips of 16 frames for the stand-in of an encoder")


def measure(args) -> dict:
    """Kept frames (every fourth, 128 pixels) a second of processor time, against PyAV with PIL; and the share of the
    time in which an encoder works that takes 14.7 ms for 64 frames and no processor, with and without a pipeline.
    """
    import torch

    torch.set_num_threads(1)
    read, encoded = measure_decoders(args), measure_pipeline(args)
    return {kind: read[kind] | encoded[kind] for kind in ("ratios", "values")} | {"rounds": args.rounds}


def measure_decoders(args) -> dict:
    from tokenization.playback import decode_on_one_thread
    from tokenization.sampling import Sampling
    from tokenization.torchcodec_playback import torchcodec_decoder
    from tokenization.video import read_windows

    decode_on_one_thread()
    sides = {"pyav_pil": ("pyav", "pil"), "pyav_swscale": ("pyav", "decoder"), "torchcodec": ("torchcodec", "pil")}
    try:
        torchcodec_decoder()
    except ValueError:
        del sides["torchcodec"]
    ratios, values = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for size, shape in SIZES.items():
            file = write_video(Path(folder) / f"{size}.mp4", shape, frames=64)
            rates = {name: [] for name in sides}
            for turn in range(args.rounds + 1):
                for name, (decoder, resize) in sides.items():
                    sampling = Sampling(num_frames=16, stride=4, resolution=128, resize=resize)
                    began = time.process_time()
                    (clip,) = read_windows(file, sampling, decoder=decoder)
                    if turn:
                        rates[name].append(len(clip.frames) / (time.process_time() - began))
            values |= {f"read_{size}_{name}": spread(found) for name, found in rates.items()}
            base = statistics.median(rates["pyav_pil"])
            ratios |= {f"read_{size}_{n}": statistics.median(rates[n]) / base for n in list(sides)[1:]}
    return {"ratios": ratios, "values": values}


def measure_pipeline(args) -> dict:
    """The loop of `toto tokenize`, from decoded clips to a part's file."""
    import numpy as np
    import torch

    from tokenization.shards.encode import Encoder, PartEncoder
    from tokenization.video import Clip

    class StandIn:
        grid, resolution, visual_tokenizer = (16, 16), 128, SimpleNamespace(device=torch.device("cpu"))

        def encode_batch(self, frames, exact):
            time.sleep(SECONDS_OF_64 * len(frames) / 64)
            return torch.zeros(len(frames), 16, 16, dtype=torch.long)

    class OneByOne(PartEncoder):
        """Waits for every batch before it fills the next one, as earlier versions did."""

        def _encode(self):
            super()._encode()
            while self.at_work:
                self._take()

    frames = np.random.default_rng(0).integers(0, 256, (16, 128, 128, 3), np.uint8)
    shares = {"waiting": [], "pipeline": []}

    def run(kind, name):
        with tempfile.TemporaryDirectory() as folder:
            encoder = Encoder(StandIn(), 64, exact=True)
            part = kind(encoder, Path(folder), "000000-000000", [], 16)
            for number in range(args.clips):
                part.add(number, Clip(frames, "video", number))
            part.close(args.clips, shard_ends=True)
            shares[name].append(encoder.seconds / encoder.wall_seconds)
            encoder.close()

    sides = {"waiting": lambda: run(OneByOne, "waiting"), "pipeline": lambda: run(PartEncoder, "pipeline")}
    seconds, frames_of_all = alternate(sides, args.rounds), 16 * args.clips
    values = {f"busy_{name}": spread(found[1:]) for name, found in shares.items()}
    values |= {f"frames_per_second_{name}": spread([frames_of_all / s for s in seconds[name]]) for name in sides}
    ratio = statistics.median(seconds["waiting"]) / statistics.median(seconds["pipeline"])
    return {"ratios": {"pipeline": ratio}, "values": values}
