"""Data: rows of shards against `datasets` streaming the same files; frames resized by PIL or reduced by the decoder.

Rows from shards for training: tokens per second on one core.
Also measures the memory, and the time that training waits. The peer reads the same files with
`load_dataset(streaming=True)` in numpy's format, a batch at a time, mixes them with `interleave_datasets`, and converts
codes to the same ids. Both give rows of two sources with probabilities.

Ranks: rows a second of one of 1, 64 and 256 processes, which are simulated: the rank draws for all and reads its own.
Rows have 4,098 ids, shards 4,096 rows; four sources with the paper's shares, or one; in the first epoch, which reads
rows in the order of the file, and in the second, which shuffles the rows of every shard; and parquet shards. Next to
it what the same rows take if they are known beforehand: open, read, widen.

Start-up: seconds and memory from an open process to the first rows, with 40,000 small shards.

Frames of videos: milliseconds of processor time from a decoded frame to its crop, and for a kept frame of a clip at
stride 4 with its decoding, with `resize="pil"` and `resize="decoder"`. The videos are made here.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
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
    parser.add_argument("--shards", type=int, default=40_000, help="shards of the start-up")
    parser.add_argument("--only", choices=PARTS, help="one part of this benchmark (default: all)")


def write_shards(
    folder: Path,
    rows: int,
    seed: int,
    *,
    width: int = 1024,
    num_codes: int = 512,
    per_shard: int = 4096,
    links: int = 1,
) -> Path:
    """Shards of random codes, by default in the geometry of the shipped tokenizer: 16 frames of 8 x 8.

    Args:
        links: how often each file is listed, under another name (a hard link); `rows` are without these copies.
    """
    import numpy as np
    import pyarrow as pa

    from tokenization.shards.files import describe, write_shard
    from tokenization.shards.format import FORMAT

    folder.mkdir(parents=True)
    generator, listed, count = np.random.default_rng(seed), [], -(-rows // per_shard)
    for number in range(count):
        codes = generator.integers(0, num_codes, (min(per_shard, rows - per_shard * number), width), dtype=np.uint16)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), width)
        table = pa.table({"codes": lists, "source": [f"{seed}/{number}/{k}" for k in range(len(codes))]})
        file = folder / f"train-{number:05d}.arrow"
        write_shard(file, table)
        listed.append(describe(file))
    for number in range(count, count * links):
        entry = listed[number % count]
        name = f"train-{number:05d}.arrow"
        (folder / name).hardlink_to(folder / entry["file"])
        listed.append(entry | {"file": name})
    rows = sum(entry["rows"] for entry in listed)
    manifest = {"format": FORMAT, "kind": "video", "dataset": "random codes", "split": "train"}
    manifest |= {
        "num_codes": num_codes,
        "grid": [width // 128, 8],
        "num_frames": 16,
        "num_tokens": rows * width,
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

    parts = [load_dataset("arrow", data_files=str(f / "*.arrow"), split="train", streaming=True) for f in folders]
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


def measure_ranks(args: argparse.Namespace) -> dict:
    """Rows a second of one rank, and of bare reading of its rows, by processor time; best of the rounds."""
    rates, bare, places = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        # One file of 34 MB a source, under 48 names: as many rows as 256 processes need, from the page cache.
        sizes = {"width": 4096, "num_codes": 8192, "links": 48}
        new = [write_shards(Path(folder) / str(seed), 4096, seed, **sizes) for seed in range(4)]
        old = as_parquet(new[0], Path(folder) / "old")
        cases = {
            "mixture, first epoch": (new, 0, 40),
            "mixture, second epoch": (new, 1, 40),
            "one source, first epoch": (new[:1], 0, 40),
            "one source, second epoch": (new[:1], 1, 40),
            "one source, parquet": ([old], 0, 4),
        }
        for turn in range(args.rounds):
            for name, (folders, epoch, steps) in cases.items():
                for world in WORLDS:
                    if "parquet" not in name:
                        if (name, world) not in places:
                            places[name, world] = places_of(folders, epoch, world, steps)
                        bare.setdefault(name, {}).setdefault(world, []).append(bare_rate(places[name, world]))
                    if "parquet" not in name or turn < PARQUET_ROUNDS:
                        rates.setdefault(name, {}).setdefault(world, []).append(rank_rate(folders, epoch, world, steps))
            print(f"round {turn + 1}/{args.rounds}", file=sys.stderr)
    values, bare = (
        {name: {world: max(found) for world, found in worlds.items()} for name, worlds in each.items()}
        for each in (rates, bare)
    )
    ratios = {f"{name}, {world} to 1": each[world] / each[1] for name, each in values.items() for world in WORLDS[1:]}
    ratios |= {
        f"{name}, {world} to 1, bare reading": each[world] / each[1]
        for name, each in bare.items()
        for world in WORLDS[1:]
    }
    found = {"rows_per_second_of_a_rank": values, "rows_per_second_of_bare_reading": bare}
    return {"ratios": ratios, "values": found}


def rank_stream(folders: list[Path], epoch: int, world: int):
    """The rows of the last rank of `world`, 4,098 ids each, from the beginning of an epoch of every source."""
    from modeling_toto import TotoConfig
    from training.args import Source
    from training.rows.mixture import RowStream
    from training.rows.shard_rows import ShardRows

    config = TotoConfig.from_preset("base")
    weights = (0.2, 0.1, 0.1, 0.6) if len(folders) > 1 else (1,)
    settings = [Source(str(folder), weight) for folder, weight in zip(folders, weights, strict=True)]
    stream = RowStream([(s, ShardRows(s.data, config, 0)) for s in settings], 0, world - 1, world)
    counts = [epoch * rows.rows_per_epoch for rows in stream.sources]
    state = {name: {"count": n, "left": False, "position": None} for name, n in zip(stream.names, counts, strict=True)}
    stream.load_state_dict({"drawn": 0, "sources": state})
    stream.take(16)
    return stream


def rank_rate(folders: list[Path], epoch: int, world: int, steps: int) -> float:
    """Rows a second of a rank, over steps of 16 rows."""
    stream = rank_stream(folders, epoch, world)
    began = time.process_time()
    for _ in range(steps):
        stream.take(16)
    return 16 * steps / (time.process_time() - began)


def places_of(folders: list[Path], epoch: int, world: int, steps: int) -> list[tuple[str, int]]:
    """(file, byte) of the rows that `rank_rate` reads."""
    from tokenization.shards.files import Shard

    stream, found, codes = rank_stream(folders, epoch, world), [], Shard.codes

    def noted(self, row: int):
        found.append((self.name, self._codes_at + row * self._row))
        return codes(self, row)

    Shard.codes = noted
    try:
        for _ in range(steps):
            stream.take(16)
    finally:
        Shard.codes = codes
    return found


def bare_rate(places: list[tuple[str, int]]) -> float:
    """Rows a second if all rows were known beforehand: files are opened, rows read and widened to ids."""
    import numpy as np
    import torch

    from tokenization.sequences import fill_row

    opened = {}  # a shard of every source, as the rows have it
    began = time.process_time()
    for start in range(0, len(places), 16):
        batch = torch.empty(16, 4098, dtype=torch.long).numpy()
        for ids, (name, place) in zip(batch, places[start : start + 16], strict=True):
            source = name.rpartition("/")[0]
            if opened.get(source, ("",))[0] != name:
                if source in opened:
                    os.close(opened[source][1])
                opened[source] = name, os.open(name, os.O_RDONLY)
            fill_row(ids, 1, [np.frombuffer(os.pread(opened[source][1], 8192, place), np.uint16)])
    seconds = time.process_time() - began
    for _, file in opened.values():
        os.close(file)
    return len(places) / seconds


def as_parquet(shards: Path, folder: Path) -> Path:
    """The same rows as an earlier version wrote them: one file under many names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    manifest = json.loads((shards / "manifest.json").read_text())
    names = [Path(entry["file"]).stem + ".parquet" for entry in manifest["shards"]]
    table = pa.ipc.open_file(shards / manifest["shards"][0]["file"]).read_all().drop_columns("held_out")
    pq.write_table(table, folder / names[0], row_group_size=1024)
    for name in names[1:]:
        (folder / name).hardlink_to(folder / names[0])
    manifest |= {"format": 1, "shards": [{"file": name, "rows": len(table)} for name in names]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def measure_start(args: argparse.Namespace) -> dict:
    """Seconds and megabytes of a process, from its imports to the first rows of `args.shards` shards of 8 rows."""
    found = []
    with tempfile.TemporaryDirectory() as folder:  # 16 files under many names each
        shards = write_shards(Path(folder) / "new", 128, 0, per_shard=8, links=max(1, args.shards // 16))
        for _ in range(args.rounds):
            child = [sys.executable, __file__, str(shards)]
            found.append(json.loads(subprocess.run(child, stdout=subprocess.PIPE, check=True, text=True).stdout))
    values = {f"start_{key}": spread([each[key] for each in found]) for key in found[0]}
    return {"ratios": {}, "values": {"start_shards": args.shards} | values}


def start(shards: str) -> dict:
    """Seconds and megabytes from the imports to the first rows, and to the validation rows as well.

    The data are opened as `toto pretrain` does.
    """
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from modeling_toto import TotoConfig
    from training.args import Source
    from training.rows.mixture import RowStream, check_tokenizers, open_rows, open_validation

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

    config, source = TotoConfig.from_preset("tiny"), Source(shards)
    before, began = resident(), time.perf_counter()
    stream = RowStream([open_rows(source, config, 0, 64, None)], 0)
    check_tokenizers([source], None)
    _ = stream.fingerprints
    stream.take(16)
    rows = time.perf_counter() - began
    open_validation(source, config, 64, None, 256)
    return {"rows_s": rows, "rows_and_validation_s": time.perf_counter() - began, "mb": resident() - before}


WORLDS = (1, 64, 256)
# The others need many rounds on a shared machine, and take less than a second each.
PARQUET_ROUNDS = 3
PARTS = {"rows": measure_rows, "ranks": measure_ranks, "start": measure_start, "resize": measure_resizing}

if __name__ == "__main__":
    print(json.dumps(start(sys.argv[1])))
