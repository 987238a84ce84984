"""Write a folder of videos again with a short side of 64 pixels: the same moments with fewer pixels, as a control.

    python benchmarks/shrink_videos.py DATA/room_actions WORK/shrunk/room_actions

Read at 128 pixels, they are 64 pixels enlarged: as many tokens as of the original, and what the pixels add is gone.
Names and frame rates stay; the H.264 is lossless. The folder is whole or not there.
"""

import argparse
import shutil
import sys
from pathlib import Path

import av
from PIL import Image
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def shrink(source: Path, target: Path, side: int) -> None:
    """One video file, without sound, its short side resized to `side` by bicubic filtering (tokenization's)."""
    with av.open(str(source)) as video, av.open(str(target), "w") as smaller:
        stream = video.streams.video[0]
        out = smaller.add_stream("libx264rgb", rate=stream.average_rate, options={"qp": "0", "preset": "veryfast"})
        short = min(stream.width, stream.height)
        out.width, out.height = (round(length * side / short) for length in (stream.width, stream.height))
        out.pix_fmt = "rgb24"
        for frame in video.decode(stream):
            picture = frame.to_image().resize((out.width, out.height), Image.Resampling.BICUBIC)
            smaller.mux(out.encode(av.VideoFrame.from_image(picture)))
        smaller.mux(out.encode())


def shrink_folder(source: Path, target: Path, side: int) -> None:
    """Every video of a folder, under the name it has there.

    Raises:
        ValueError: no videos, or a target that exists.
    """
    from tokenization.sources import VIDEO_SUFFIXES

    videos = sorted(file for file in source.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES)
    if not videos:
        raise ValueError(f"{source} holds no videos.")
    if target.exists():
        raise ValueError(f"{target} exists already: name another folder.")
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for file in tqdm(videos, desc=f"shrinking {source.name}", unit="video"):
        new = partial / file.relative_to(source)
        new.parent.mkdir(parents=True, exist_ok=True)
        shrink(file, new, side)
    partial.rename(target)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of videos")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--side", type=int, default=64, help="short side in pixels")
    args = parser.parse_args(argv)
    shrink_folder(args.source, args.target, args.side)


if __name__ == "__main__":
    from toto_cli import run

    run(main)
