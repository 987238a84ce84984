"""A folder of token shards: parquet files and a manifest, as `toto tokenize` writes, verifies and reads them."""

import json
from pathlib import Path

from .code_parts import gather
from .files import sha256, write_whole

FORMAT = 1


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


def write_shards(
    parts_folder: Path,
    folder: Path,
    parts: list[tuple[str, int]],
    split: str,
    rows_per_shard: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
) -> list[dict]:
    """Rank's share of the shards: all rows of the parts in one seeded random order, a shard in memory at a time.

    Args:
        parts: [(name, rows)] in the order of the source, as `parts.plan` gives them; the same on every rank.
    Returns:
        [{"file", "rows", "sha256"}] of the shards with number = rank (mod world). One that is there is not written
        again.
    """
    import numpy as np
    import pyarrow.parquet as pq

    order = np.random.default_rng(seed).permutation(sum(rows for _, rows in parts))
    shards = []
    for number in range(rank, -(-len(order) // rows_per_shard), world):
        rows = order[number * rows_per_shard : (number + 1) * rows_per_shard]
        file = folder / f"{split}-{number:05d}.parquet"
        if not file.is_file():
            table = gather(parts_folder, parts, rows)
            write_whole(file, lambda path, table=table: pq.write_table(table, path, row_group_size=1024))
        shards.append({"file": file.name, "rows": len(rows), "sha256": sha256(file)})
    return shards


def verify(folder: str | Path) -> str:
    """Read a folder of shards again: checksums, row counts, code range, and the tokenizer against the manifest.

    Returns one line that says what is there.
    Raises:
        ValueError, FileNotFoundError: the first thing that is wrong.
    """
    import numpy as np
    import pyarrow.parquet as pq

    from .processing_toto import TotoProcessor

    folder, manifest = Path(folder), read_manifest(folder)
    h, w = manifest["grid"]
    width, rows = manifest["num_frames"] * h * w, 0
    for shard in manifest["shards"]:
        file = folder / shard["file"]
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: write the shards again with toto tokenize.")
        if sha256(file) != shard["sha256"]:
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
