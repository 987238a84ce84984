"""`toto tokenize`: make tokens once. Videos or images in, pre-shuffled parquet shards and a manifest out.

A folder of shards is written under a temporary name and renamed when its manifest is in it: one that exists is whole.
"""

import errno
import hashlib
import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from transformers.hf_argparser import HfArgumentParser

FORMAT = 1
# Rows held back to be shuffled: all of a small set; for larger ones a window, 0.5 GB at 4096 codes a row.
SHUFFLE_BUFFER = 65_536


@dataclass(frozen=True)
class TokenizeArgs:
    """Flags of `toto tokenize`."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, folder, .parquet or .tar (webdataset) file, toyworld, toyworld:cluttered or toyworld:film"
        },
    )
    split: str = field(default="train", metadata={"help": "split of the dataset"})
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "folder or Hub id of a visual tokenizer or a processor; left out: the small one that ships"},
    )
    output: str | None = field(default=None, metadata={"help": "folder to write; it must be new or empty"})
    num_frames: int = field(default=16, metadata={"help": "frames a clip (paper: 16); an image is one frame"})
    stride: int = field(default=4, metadata={"help": "take every stride-th frame (paper: 4, for 24-30 fps media)"})
    fps: float | None = field(
        default=None, metadata={"help": "resample by timestamps instead; 7.5 is the paper's time step on any media"}
    )
    resolution: int | None = field(
        default=None, metadata={"help": "side of the square frames in pixels; left out: the tokenizer's own"}
    )
    crops: int = field(
        default=1, metadata={"help": "1: the centre crop; K: K random crops and temporal offsets of every item"}
    )
    max_clips: int | None = field(
        default=None, metadata={"help": "stop after so many clips; left out: all (of toyworld, which is endless, 2000)"}
    )
    seed: int = field(default=0, metadata={"help": "seed of the crops, the order of the rows, and toyworld"})
    rows_per_shard: int = field(default=4096, metadata={"help": "rows of a parquet file"})
    batch_frames: int | None = field(
        default=None, metadata={"help": "frames encoded at a time, across clips; left out: 8 on a CPU, 64 on a GPU"}
    )
    image_column: str | None = field(
        default=None, metadata={"help": "column of the images or videos; left out: the first of that type"}
    )
    verify: str | None = field(default=None, metadata={"help": "check a folder of shards instead of writing one"})

    def __post_init__(self):
        if self.verify is None and (self.dataset is None or self.output is None):
            raise ValueError("name what to tokenize and where to write it: --dataset and --output (or --verify DIR).")
        for name in ("num_frames", "stride", "crops", "rows_per_shard", "batch_frames", "max_clips", "fps"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name} must be positive, not {value}.")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(folder: str | Path) -> dict:
    """The manifest of a folder of shards.

    Raises:
        FileNotFoundError: no manifest there. ValueError: not one of ours, or of another format.
    """
    file = Path(folder) / "manifest.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is no folder of token shards: there is no manifest.json in it.")
    try:
        manifest = json.loads(file.read_text())
        known = manifest["format"] == FORMAT
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: write the shards again with toto tokenize.") from error
    if not known:
        raise ValueError(
            f"{file} has format {manifest['format']}, this version reads {FORMAT}: write the shards again."
        )
    return manifest


class ShardWriter:
    """Rows in, shuffled parquet shards out.

    Rows wait in a buffer and leave it in a seeded random order: a full shuffle of a set that fits, a windowed one of a
    larger or endless set. Columns: codes fixed_size_list<uint16>[T*h*w], source, start, fps, one int64 per label.
    """

    def __init__(
        self, folder: Path, split: str, num_codes_per_row: int, labels: list[str], rows_per_shard: int, seed: int
    ):
        import numpy as np
        import pyarrow as pa

        self.folder, self.split, self.rows_per_shard = folder, split, rows_per_shard
        columns = [("codes", pa.list_(pa.uint16(), num_codes_per_row)), ("source", pa.string()), ("start", pa.int64())]
        columns += [("fps", pa.float32())] + [(label, pa.int64()) for label in labels]
        self.schema = pa.schema(columns)
        self.generator = np.random.default_rng(seed)
        self.buffer: list[dict] = []
        self.pending: list[dict] = []
        self.shards: list[dict] = []

    def add(self, row: dict) -> None:
        """`row`: codes as a flat uint16 array, and a value for every other column."""
        if len(self.buffer) < SHUFFLE_BUFFER:
            self.buffer.append(row)
            return
        place = int(self.generator.integers(len(self.buffer)))
        self.pending.append(self.buffer[place])
        self.buffer[place] = row
        if len(self.pending) == self.rows_per_shard:
            self._write(self.pending)
            self.pending = []

    def close(self) -> list[dict]:
        """Write what is left; the list of shards for the manifest."""
        rows = self.pending + [self.buffer[i] for i in self.generator.permutation(len(self.buffer))]
        for first in range(0, len(rows), self.rows_per_shard):
            self._write(rows[first : first + self.rows_per_shard])
        self.buffer, self.pending = [], []
        return self.shards

    def _write(self, rows: list[dict]) -> None:
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        arrays = []
        for name in self.schema.names:
            values = [row[name] for row in rows]
            kind = self.schema.field(name).type
            if name == "codes":
                arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(values)), type=kind))
            else:
                arrays.append(pa.array(values, kind))
        file = self.folder / f"{self.split}-{len(self.shards):05d}.parquet"
        pq.write_table(pa.Table.from_arrays(arrays, schema=self.schema), file, row_group_size=1024)
        self.shards.append({"file": file.name, "rows": len(rows), "sha256": _sha256(file)})


def _encode(source, processor, writer_for, batch_frames: int | None) -> dict:
    """Run the clips of a source through the tokenizer into a writer, whole clips at a time; counts for the manifest."""
    import numpy as np
    from tqdm import tqdm

    writer, waiting, held = None, [], 0
    counts = {"num_sequences": 0, "kept": 0, "frames": 0}
    last_source, started = None, time.monotonic()
    progress = tqdm(total=source.expected, unit=" clips", desc="tokenize")

    def flush() -> None:
        codes = processor.encode_frames(np.concatenate([clip.frames for clip in waiting]), batch_size=batch_frames)
        codes = codes.numpy().astype(np.uint16).reshape(len(waiting), -1)
        for clip, row in zip(waiting, codes, strict=True):
            labels = {label: clip.labels.get(label, -1) for label in source.label_names}
            writer.add({"codes": row, "source": clip.source, "start": clip.start, "fps": clip.fps, **labels})
        counts["frames"] += held
        progress.update(len(waiting))
        rate = counts["frames"] / (time.monotonic() - started)
        progress.set_postfix_str(f"{rate:.0f} frames/s, {len(source.skipped)} skipped")
        waiting.clear()

    with progress:
        for clip in source:
            writer = writer or writer_for(len(clip.frames))
            counts["num_sequences"] += 1
            counts["kept"] += clip.source != last_source  # the clips of an item come one after another
            last_source = clip.source
            waiting.append(clip)
            held += len(clip.frames)
            if held >= (batch_frames or 64):
                flush()
                held = 0
        if waiting:
            flush()
    counts["shards"] = writer.close() if writer else []
    counts["seconds"] = time.monotonic() - started
    return counts


def tokenize(args: TokenizeArgs) -> dict:
    """Write the shards that `args` describes; returns the manifest.

    Raises:
        ValueError: nothing usable in the dataset, or --output is not empty. OSError: nothing there, or a full disk.
    """
    output = Path(args.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} is not empty: name a new folder, or delete this one.")

    import torch

    from tokenization.processing_toto import SHIPPED, TotoProcessor
    from tokenization.sources import open_source

    if args.tokenizer is None:
        processor = TotoProcessor.default()
    else:
        processor = TotoProcessor.from_visual_tokenizer(args.tokenizer)
    processor = processor.with_sizes(args.resolution, args.num_frames)
    source = open_source(
        args.dataset,
        args.split,
        num_frames=args.num_frames,
        stride=args.stride,
        fps=args.fps,
        resolution=processor.resolution,
        crops=args.crops,
        seed=args.seed,
        limit=args.max_clips,
        image_column=args.image_column,
    )
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
    try:
        partial.mkdir(parents=True)
        processor.save_pretrained(partial / "processor")
        processor.to("cuda" if torch.cuda.is_available() else "cpu")
        h, w = processor.grid

        def writer_for(num_frames: int) -> ShardWriter:
            labels = list(source.label_names)
            return ShardWriter(partial, args.split, num_frames * h * w, labels, args.rows_per_shard, args.seed)

        counts = _encode(source, processor, writer_for, args.batch_frames)
        skipped = list(source.skipped)
        if not counts["num_sequences"]:
            raise ValueError(f"no clip of {args.dataset} could be used: {_reasons(skipped, '; ')}")
        is_video = source.kind == "video"
        num_frames = args.num_frames if is_video else 1
        manifest = {
            "format": FORMAT,
            "kind": source.kind,
            "split": args.split,
            "dataset": args.dataset,
            "tokenizer": {
                "name": args.tokenizer or SHIPPED.name,
                "class": type(processor.visual_tokenizer).__name__,
                "fingerprint": processor.fingerprint,
            },
            "num_codes": processor.num_codes,
            "grid": [h, w],
            "num_frames": num_frames,
            "stride": args.stride if is_video and args.fps is None else None,
            "fps": args.fps if is_video else None,
            "resolution": processor.resolution,
            "crops": args.crops,
            "seed": args.seed,
            "num_sequences": counts["num_sequences"],
            "num_tokens": counts["num_sequences"] * num_frames * h * w,
            "sources": source.items,
            "kept": counts["kept"],
            "skipped_count": len(skipped),
            "skipped": skipped,
            "shards": counts["shards"],
            "label_names": source.label_names,
            "processor": "processor",
        }
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        if output.exists():
            output.rmdir()  # empty, as checked above
        partial.rename(output)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):  # safetensors has no errno
            raise OSError(f"the disk is full: {output} was not written; free some space and run it again.") from error
        raise
    _print_summary(manifest, output, counts["frames"] / counts["seconds"])
    return manifest


def _reasons(skipped: list[dict], separator: str, most: int = 3) -> str:
    """The first few reasons, and how many more there are."""
    if not skipped:
        return "the split holds no rows."
    lines = [f"{item['source']}: {item['why']}" for item in skipped[:most]]
    if len(skipped) > most:
        lines.append(f"and {len(skipped) - most} more.")
    return separator.join(lines)


def _print_summary(manifest: dict, output: Path, rate: float) -> None:
    unit = "clips" if manifest["kind"] == "video" else "images"
    print(
        f"kept {manifest['num_sequences']:,} {unit} of {manifest['kept']:,} files or rows, "
        f"{manifest['num_tokens']:,} tokens, {rate:.0f} frames/s"
    )
    if manifest["skipped"]:
        print(f"skipped {manifest['skipped_count']:,}:\n  " + _reasons(manifest["skipped"], "\n  "))
    print(f"wrote {output} ({len(manifest['shards'])} shards, manifest.json, processor/)")


def verify(folder: str | Path) -> str:
    """Read a folder of shards again: checksums, row counts, code range, and the tokenizer against the manifest.

    Returns one line that says what is there.
    Raises:
        ValueError, FileNotFoundError: the first thing that is wrong.
    """
    import numpy as np
    import pyarrow.parquet as pq

    from tokenization.processing_toto import TotoProcessor

    folder, manifest = Path(folder), read_manifest(folder)
    h, w = manifest["grid"]
    width, rows = manifest["num_frames"] * h * w, 0
    for shard in manifest["shards"]:
        file = folder / shard["file"]
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: write the shards again with toto tokenize.")
        if _sha256(file) != shard["sha256"]:
            raise ValueError(f"{file} is damaged (its sha256 differs from the manifest's): write the shards again.")
        codes = pq.read_table(file, columns=["codes"])["codes"].combine_chunks()
        values = codes.flatten().to_numpy()
        if len(codes) != shard["rows"] or len(values) != len(codes) * width:
            raise ValueError(
                f"{file} holds {len(codes)} rows of {len(values) // max(1, len(codes))} codes, not as listed."
            )
        if values.max(initial=np.uint16(0)) >= manifest["num_codes"]:
            raise ValueError(f"{file} holds code {values.max()}, but the tokenizer has {manifest['num_codes']} codes.")
        rows += len(codes)
    if rows != manifest["num_sequences"] or rows * width != manifest["num_tokens"]:
        raise ValueError(f"{folder} holds {rows} rows, but its manifest says {manifest['num_sequences']}.")
    fingerprint = TotoProcessor.from_pretrained(folder / manifest["processor"]).fingerprint
    if fingerprint != manifest["tokenizer"]["fingerprint"]:
        raise ValueError(f"{folder} holds another tokenizer ({fingerprint}) than the one that its manifest names.")
    return (
        f"{folder}: {rows:,} rows of {width} codes in {len(manifest['shards'])} shards, checksums and code range right "
        f"(tokenizer {manifest['tokenizer']['name']}, {fingerprint})"
    )


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser(
        TokenizeArgs, prog="toto tokenize", description="Turn videos or images into shards of visual tokens."
    )
    (args,) = parser.parse_args_into_dataclasses(argv)
    if args.verify is not None:
        print(verify(args.verify))
    else:
        tokenize(args)


if __name__ == "__main__":
    from toto_cli import run

    run(main)
