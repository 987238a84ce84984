"""Where `toto ngrams` takes codes from: a data set, encoded by each tokenizer, or folders of token shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from evaluation.ngrams.args import NgramsArgs
from evaluation.ngrams.counting import bits_of
from training.flags import require

if TYPE_CHECKING:
    from tokenization.sources.open import ClipSource

ENCODED = 64  # frames that wait for the encoder, at least


@dataclass(frozen=True)
class Tokens:
    """The tokens of one tokenizer.

    Fields:
        name: of the tokenizer, or of the folder of shards. dataset, split: what was encoded, as it was named.
        fingerprint: of the tokenizer. resolution: side of the frames in pixels.
        read: gives the codes (N, T, h, w) as uint16; T = 1 for images.
    """

    name: str
    dataset: str
    split: str
    fingerprint: str
    num_codes: int
    grid: tuple[int, int]
    resolution: int
    read: Callable[[], np.ndarray]


def check_sizes(tokens: list[Tokens], n: int) -> None:
    """Raises ValueError unless all grids are equal and n codes fit into a frame and into 64 bits."""
    first, *others = tokens
    for each in others:
        require(
            each.grid == first.grid,
            f"{first.name} has {_grid(first)} codes a frame and {each.name} has {_grid(each)}; numbers of n-grams "
            "compare only for equal grids, so count them one at a time.",
        )
    h, w = first.grid
    require(n <= h * w, f"--n is {n}, but a frame of {first.name} has only {h * w} codes; choose a smaller n.")
    for each in tokens:
        require(each.num_codes <= 2**16, f"{each.name} has {each.num_codes:,} codes; at most {2**16:,} can be counted.")
        bits = bits_of(each.num_codes)
        require(
            n * bits <= 64,
            f"--n is {n}, but {n} codes of {each.name}, of {bits} bits each, do not fit into 64 bits; choose at most "
            f"{64 // bits}.",
        )


def _grid(tokens: Tokens) -> str:
    return "{} x {}".format(*tokens.grid)


def _clips(max_frames: int, num_frames: int) -> int:
    """The number of clips that `max_frames` fill."""
    require(
        max_frames >= num_frames,
        f"--max_frames is {max_frames}, but a clip has {num_frames} frames; raise it.",
    )
    return max_frames // num_frames


# --- shards


def shard_tokens(folder: str, max_frames: int) -> Tokens:
    """The first `max_frames` frames of a folder of shards.

    Raises:
        FileNotFoundError: it is none. ValueError: its manifest is damaged, or a clip has more frames.
    """
    from tokenization.shards.format import read_manifest

    manifest = read_manifest(folder)
    limit = _clips(max_frames, manifest["num_frames"] if manifest["kind"] == "video" else 1)
    return Tokens(
        name=folder,
        dataset=manifest["dataset"],
        split=manifest["split"],
        fingerprint=manifest["tokenizer"]["fingerprint"],
        num_codes=manifest["num_codes"],
        grid=tuple(manifest["grid"]),
        resolution=manifest["resolution"],
        read=lambda: read_shards(folder, manifest["num_codes"], limit),
    )


def read_shards(folder: str, num_codes: int, limit: int) -> np.ndarray:
    """Codes (N, T, h, w) of the first rows. Raises ValueError if there are none, or a code is not in the codebook."""
    from training.rows.shard_rows import read_codes

    codes = read_codes(folder, limit=limit)
    require(len(codes) > 0, f"{folder} holds no row; tokenize more data.")
    require(
        int(codes.max()) < num_codes,
        f"{folder} holds code {codes.max()}, but its tokenizer has {num_codes} codes; write the shards again.",
    )
    return codes


# --- data sets


def dataset_tokens(args: NgramsArgs, tokenizer: str | None) -> Tokens:
    """The frames of --dataset by a tokenizer, None for the shipped one; they are encoded when they are read.

    Raises:
        FileNotFoundError: there is no such tokenizer. ValueError: it cannot encode frames of --resolution.
    """
    from evaluation.backbones.contract import default_device
    from tokenization.processing_toto import SHIPPED, TotoProcessor

    processor = TotoProcessor.from_visual_tokenizer(tokenizer) if tokenizer else TotoProcessor.default()
    processor = processor.with_sizes(args.resolution)
    return Tokens(
        name=tokenizer or SHIPPED.name,
        dataset=args.dataset,
        split=args.split,
        fingerprint=processor.fingerprint,
        num_codes=processor.num_codes,
        grid=processor.grid,
        resolution=processor.resolution,
        read=lambda: encode(open_frames(args, processor.resolution), processor.to(default_device()), args),
    )


def open_frames(args: NgramsArgs, resolution: int) -> ClipSource:
    """The clips of --dataset. Raises ValueError or OSError as `open_source` does."""
    from tokenization.sampling import Sampling
    from tokenization.sources.open import open_source

    sampling = Sampling(args.num_frames, args.stride, args.fps, resolution, resize=args.resize)
    return open_source(
        args.dataset,
        args.split,
        sampling,
        limit=args.max_frames if args.dataset.split(":")[0] == "toyworld" else None,  # which is endless
        image_column=args.image_column,
        kind=args.kind,
        config_name=args.config_name,
    )


def encode(source: ClipSource, processor, args: NgramsArgs) -> np.ndarray:
    """Codes (N, T, h, w) of the first clips of a source. Raises ValueError if none can be read."""
    from tokenization.terminal.progress import tqdm

    frames = args.num_frames if source.kind == "video" else 1
    clips = _clips(args.max_frames, frames)
    found, waiting = [], []
    with tqdm(total=clips * frames, unit=" frames", desc="encode") as bar:

        def flush() -> None:
            codes = processor.encode_frames(np.concatenate(waiting))
            found.append(codes.numpy().astype(np.uint16).reshape(len(waiting), frames, *processor.grid))
            bar.update(len(codes))
            waiting.clear()

        for clip in islice(source, clips):
            waiting.append(clip.frames)
            if len(waiting) * frames >= ENCODED:
                flush()
        if waiting:
            flush()
    if source.skipped:
        print(
            f"skipped {len(source.skipped):,} files or rows, the first {source.skipped[0]['source']}: "
            f"{source.skipped[0]['why']}"
        )
    require(bool(found), f"No picture of {args.dataset}, split {args.split}, could be used; name other data.")
    return np.concatenate(found)
