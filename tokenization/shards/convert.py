"""`toto tokenize --convert DIR`: the parquet shards of an earlier version become shards that are read row by row."""

from __future__ import annotations

import json
from pathlib import Path

from tokenization.files import sha256, write_whole
from tokenization.shards.files import OLD_SUFFIX, SUFFIX, describe, is_old, write_shard
from tokenization.shards.format import FORMAT, fingerprint, read_manifest

# Shards between two versions of the manifest: what is on the disk twice, and done again after a kill at most.
AT_A_TIME = 64


def convert(folder: str | Path) -> str:
    """Rewrite the parquet shards of a folder, in place; rows, their order and the folder's fingerprint stay.

    The manifest names what exists at any time, so the folder can be read after a kill, and the same call goes on. No
    other process may read the folder meanwhile, since its parquet files go.

    Returns:
        a line that says what was done.
    Raises:
        ValueError, FileNotFoundError: a shard is damaged or missing; it and those after it are left as they are.
    """
    from tokenization.terminal.progress import tqdm

    folder, manifest = Path(folder), read_manifest(folder)
    old = [number for number, entry in enumerate(manifest["shards"]) if is_old(entry)]
    manifest = manifest | {"format": FORMAT, "fingerprint": fingerprint(manifest)}
    before = 0
    with tqdm(total=len(old), desc="convert", unit=" shards") as bar:
        for start in range(0, len(old), AT_A_TIME):
            for number in old[start : start + AT_A_TIME]:
                entry = manifest["shards"][number]
                manifest["shards"][number] = _converted(folder, entry)
                before += (folder / entry["file"]).stat().st_size
                bar.update()
            text = json.dumps(manifest, indent=2) + "\n"
            write_whole(folder / "manifest.json", lambda path, text=text: path.write_text(text))
            _remove_old(folder, manifest)
    _remove_old(folder, manifest)
    for file in folder.glob("*.partial"):  # of a call that was killed
        file.unlink()
    after = sum(manifest["shards"][number]["bytes"] for number in old)
    card = folder / "README.md"
    if card.is_file() and (text := card.read_text()) != (new := text.replace(f"-*{OLD_SUFFIX}", f"-*{SUFFIX}")):
        write_whole(card, lambda path: path.write_text(new))
    return f"{folder}: converted {len(old)} of {len(manifest['shards'])} shards, {before:,} bytes became {after:,}"


def _converted(folder: Path, entry: dict) -> dict:
    """Write the new shard of an old one, unless an earlier call has; returns its entry in the manifest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    old = folder / entry["file"]
    new = old.with_suffix(SUFFIX)
    if not old.is_file():
        raise FileNotFoundError(f"{old} is missing; write the shards again with toto tokenize.")
    if not new.is_file():
        if sha256(old) != entry["sha256"]:
            raise ValueError(f"{old} is damaged (its sha256 differs from the manifest's); write the shards again.")
        table = pq.ParquetFile(old).read()
        codes = table["codes"].combine_chunks()
        codes = pa.FixedSizeListArray.from_arrays(codes.flatten(), codes.type.list_size)  # parquet renames its field
        write_shard(new, table.set_column(0, "codes", codes))
    return describe(new)


def _remove_old(folder: Path, manifest: dict) -> None:
    """Delete the parquet files whose successors the manifest names."""
    for entry in manifest["shards"]:
        if not is_old(entry):
            (folder / entry["file"]).with_suffix(OLD_SUFFIX).unlink(missing_ok=True)
