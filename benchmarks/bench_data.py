"""Data: rows of shards against `datasets` streaming the same files; frames resized by PIL or reduced by the decoder.

Rows from shards for training: tokens per second on one core.
Also measures the memory, and the time that training waits. The peer reads the same parquet files with
`load_dataset(streaming=True)` in numpy's format, a batch at a time, mixes them with `interleave_datasets`, and converts
codes to the same ids. Both give rows of two sources with probabilities.

Frames of videos: milliseconds of processor time from a decoded frame to its crop, and for a kept frame of a clip at
stride 4 with its decoding, with `resize="pil"` and `resize="decoder"`. The videos are made here.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from timing import spread


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=40_000, help="rows per measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side, in alternation")
    parser.add_argument("--sequences", type=int, default=1_000_000, help="rows over which memory is measured")
    parser.add_argument("--steps", type=int, default=12, help="steps of the tiny recipe, for its data wait")

    parser.add_argument("--only", choices=PARTS, help="rows of shards, or the resizing of frames (default: both)")


def write_shards(folder: Path, rows: int, seed: int) -> Path:
    """Shards of random codes in the geometry of the shipped tokenizer: 16 frames of 8 x 8."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tokenization.files import sha256
    from tokenization.shards.format import FORMAT

    folder.mkdir(parents=True)
    generator, listed = np.random.default_rng(seed), []
    for number in range(-(-rows // 4096)):
        count = min(4096, rows - 4096 * number)
        codes = generator.integers(0, 512, (count, 1024), dtype=np.uint16)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), 1024)
        table = pa.table({"codes": lists, "source": [f"{seed}/{number}/{k}" for k in range(count)]})
        file = folder / f"train-{number:05d}.parquet"
        pq.write_table(table, file, row_group_size=1024)
        listed.append({"file": file.name, "rows": count, "sha256": sha256(file)})
    manifest = {"format": FORMAT, "kind": "video", "dataset": "random codes", "split": "train"}
    manifest |= {
        "num_codes": 512,
        "grid": [8, 8],
        "num_frames": 16,
        "num_tokens": rows * 1024,
        "num_sequences": rows,
        "shards": listed,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def measure(args: argparse.Namespace) -> dict:
    import torch

    torch.set_num_threads(1)
    found = [PARTS[name](args) for name in PARTS if args.only in (None, name)]
    return {kind: {key: value for part in found for key, value in part[kind].items()} for kind in ("ratios", "values")}


def measure_rows(args: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        folders = [write_shards(Path(folder) / str(seed), 16_384, seed) for seed in (0, 1)]
        ours, theirs, rows = [], [], {}
        for _ in range(args.rounds):
            for name, stream, speeds in (("ours", our_rows(folders), ours), ("theirs", datasets_rows(folders), theirs)):
                began, count = time.process_time(), 0
                for ids in itertools.islice(stream, args.rows):
                    count += ids.numel()
                speeds.append(count / (time.process_time() - began) / 1e6)
                rows[name] = ids.shape
        assert rows["ours"] == rows["theirs"] == (1026,)
        memory = watch_memory(folders, args.sequences)
        wait = data_wait(folders[0], Path(folder) / "run", args.steps)
    values = {"million_tokens_per_second_per_core": spread(ours), "datasets_streaming": spread(theirs)}
    values |= {"memory_mb_by_sequences": memory, "data_wait_of_tiny_recipe": wait}
    return {"ratios": {"shards": statistics.median(ours) / statistics.median(theirs)}, "values": values}


def our_rows(folders: list[Path]):
    from modeling_toto import TotoConfig
    from training.args import Source
    from training.rows.mixture import RowStream
    from training.rows.shard_rows import ShardRows

    config = TotoConfig.from_preset("tiny")
    settings = [Source(str(folder), weight) for folder, weight in zip(folders, (0.3, 0.7), strict=True)]
    return iter(RowStream([(s, ShardRows(s.data, config, 0, hold_out=False)) for s in settings], seed=0))


def datasets_rows(folders: list[Path]):
    from datasets import interleave_datasets, load_dataset

    from tokenization.sequences import video_rows

    parts = [load_dataset("parquet", data_files=str(f / "*.parquet"), split="train", streaming=True) for f in folders]
    parts = [part.select_columns(["codes"]) for part in parts]
    mixed = interleave_datasets(parts, [0.3, 0.7], seed=0, stopping_strategy="all_exhausted").with_format("numpy")
    while True:
        for row in mixed:
            yield video_rows(row["codes"][None])[0]


def watch_memory(folders: list[Path], sequences: int) -> dict[str, float]:
    """Resident memory of this process, in megabytes, after this number of rows."""
    found, page = {}, 4096
    for count, _ in enumerate(itertools.islice(our_rows(folders), sequences), start=1):
        if count in (1, 10_000) or count % (sequences // 5) == 0:
            found[f"{count:,}"] = int(Path("/proc/self/statm").read_text().split()[1]) * page / 1e6
    return found


def data_wait(shards: Path, run: Path, steps: int) -> dict:
    """Share of the time that the tiny recipe waits for rows, after its first step."""
    from training.pretrain import main

    flags = ["--recipe", "tiny_cpu", "--shards", str(shards), "--val_rows", "1", "--logging_steps", "1"]
    with contextlib.redirect_stdout(sys.stderr):
        main([*flags, "--max_steps", str(steps), "--output_dir", str(run)])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return spread([row["data_wait"] for row in rows if "data_wait" in row][1:])


def measure_resizing(args: argparse.Namespace) -> dict:
    """Milliseconds a frame of videos of two sizes and crops of 128 pixels, in alternation."""
    from tokenization.playback import Playback, crop_of
    from tokenization.sampling import RESIZE, Sampling
    from tokenization.video import read_windows

    ratios, values = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, size in {"256p": (456, 256), "1080p": (1920, 1080)}.items():
            file = write_video(Path(folder) / f"{name}.mp4", size)
            crops, reads = ({how: [] for how in RESIZE} for _ in range(2))
            for _ in range(args.rounds):
                with Playback(file) as playback:
                    for shown in playback.frames(1):
                        for how, side in zip(RESIZE, (None, 128), strict=True):
                            began = time.process_time()
                            crop_of(playback.picture(shown.frame, side), 128)
                            crops[how].append(1000 * (time.process_time() - began))
                for how in RESIZE:
                    began = time.process_time()
                    (clip,) = read_windows(file, Sampling(num_frames=8, stride=4, resolution=128, resize=how))
                    reads[how].append(1000 * (time.process_time() - began) / len(clip.frames))
            for what, found in (("crop", crops), ("read", reads)):
                values |= {f"{what}_{name}_{how}_ms": spread(seconds) for how, seconds in found.items()}
                ratios[f"{what}_{name}"] = statistics.median(found["pil"]) / statistics.median(found["decoder"])
    return {"ratios": ratios, "values": values}


def write_video(file: Path, size: tuple[int, int], frames: int = 32) -> Path:
    """A video of (width, height) in which a coloured texture moves."""
    import av
    import numpy as np
    from PIL import Image

    width, height = size
    generator = np.random.default_rng(0)
    layers = [generator.integers(0, 256, (9 * scale, 16 * scale + 8, 3), np.uint8) for scale in (1, 4, 16)]
    wide = (width + 4 * frames, height)
    layers = [np.asarray(Image.fromarray(layer).resize(wide, Image.Resampling.BICUBIC)) for layer in layers]
    texture = np.mean(layers, axis=0).astype(np.uint8)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            picture = np.ascontiguousarray(texture[:, 4 * index : 4 * index + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file


PARTS = {"rows": measure_rows, "resize": measure_resizing}
