"""The format of a folder of token shards: their files and a manifest, written by `toto tokenize`."""

import hashlib
import json
import re
from pathlib import Path

from tokenization.files import sha256
from tokenization.shards.files import describe, is_old, read_column
from tokenization.sources.named import without
from tokenization.storage.copies import local_copy, local_folder
from tokenization.storage.remote import Remote, is_remote, join

# 1: parquet shards, of earlier versions, which are still read. 2: shards of `files.py`.
FORMAT, FORMATS = 2, (1, 2)
# URLs that were found to hold shards: asking the Hub lists the whole folder.
_with_manifest: set[str] = set()


def read_manifest(folder: str | Path) -> dict:
    """The manifest of a folder of shards, which may be a URL.

    Raises:
        FileNotFoundError: there is no manifest. ValueError: it is damaged, or of another format.
    """
    file = join(folder, "manifest.json")
    if not has_manifest(folder):
        raise FileNotFoundError(f"{folder} is not a folder of token shards: {without(folder, 'manifest.json')}")
    file = local_copy(file)
    try:
        manifest = json.loads(file.read_text())
        known = manifest["format"] in FORMATS
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged; write the shards again with toto tokenize.") from error
    if not known:
        raise ValueError(
            f"{file} has format {manifest['format']}, but this version reads 1 and {FORMAT}; write the shards again."
        )
    return manifest


def has_manifest(folder: str | Path) -> bool:
    """Whether a folder or URL holds token shards."""
    if is_remote(folder):
        if folder not in _with_manifest and Remote(folder).info("manifest.json"):
            _with_manifest.add(folder)
        return folder in _with_manifest
    return Path(folder, "manifest.json").is_file()


def found_shards(name: str | None) -> str | None:
    """The hf:// URL of the token shards that are a data set of the Hub; any other name as it is."""
    parts = (name or "").split("/")
    is_id = len(parts) == 2 and all(re.fullmatch(r"[A-Za-z0-9][\w.-]*", part) for part in parts)
    if not is_id or Path(name).exists():
        return name
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        has = HfApi().file_exists(name, "manifest.json", repo_type="dataset")
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):  # whoever opens it reports that
        return name
    return f"hf://datasets/{name}" if has else name


def shard_file(folder: str | Path, entry: dict) -> Path:
    """A shard on this machine, fetched if the folder is a URL. entry: of the manifest."""
    return local_copy(join(folder, entry["file"]), entry.get("sha256"))


def processor_folder(folder: str | Path) -> Path | None:
    """The processor of a folder of shards, on this machine; None if it has none."""
    inside = join(folder, "processor")
    if is_remote(inside):
        return local_folder(inside) if Remote(inside).files() else None
    return inside if inside.is_dir() else None


def fingerprint(manifest: dict) -> str:
    """16 hex digits that change when the rows do; a folder that was converted keeps those of its parquet files."""
    kept = manifest.get("fingerprint")
    return kept or hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]


def verify(folder: str | Path) -> str:
    """Check a folder of shards against its manifest: checksums, row counts, code range and tokenizer.

    Returns:
        a line that describes the folder.
    Raises:
        ValueError, FileNotFoundError: the first check that fails.
    """
    import numpy as np

    from tokenization.processing_toto import TotoProcessor

    manifest = read_manifest(folder)
    h, w = manifest["grid"]
    width, rows = manifest["num_frames"] * h * w, 0
    for shard in manifest["shards"]:
        file = shard_file(folder, shard)
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; write the shards again with toto tokenize.")
        if sha256(file) != shard["sha256"]:
            raise ValueError(f"{file} is damaged (its sha256 differs from the manifest's); write the shards again.")
        codes = read_column(file, "codes")
        if codes.shape != (shard["rows"], width):
            raise ValueError(
                f"{file} holds {len(codes)} rows of {codes.shape[1]} codes, but its manifest lists {shard['rows']} of "
                f"{width}; write the shards again."
            )
        if codes.max(initial=np.uint16(0)) >= manifest["num_codes"]:
            raise ValueError(
                f"{file} holds code {codes.max()}, but the tokenizer has {manifest['num_codes']} codes; write the "
                "shards again."
            )
        if not is_old(shard) and (found := describe(file)) != shard:
            unlike = " and ".join(key for key in found if shard.get(key) != found[key])
            raise ValueError(f"{file} has another {unlike} than its manifest lists; write the shards again.")
        rows += len(codes)
    if rows != manifest["num_sequences"] or rows * width != manifest["num_tokens"]:
        raise ValueError(
            f"{folder} holds {rows} rows, but its manifest lists {manifest['num_sequences']}; write the shards again."
        )
    fingerprint = TotoProcessor.from_pretrained(local_folder(join(folder, manifest["processor"]))).fingerprint
    if fingerprint != manifest["tokenizer"]["fingerprint"]:
        raise ValueError(
            f"{folder} holds the tokenizer {fingerprint}, but its manifest names "
            f"{manifest['tokenizer']['fingerprint']}; write the shards again."
        )
    return (
        f"{folder}: {rows:,} rows of {width} codes in {len(manifest['shards'])} shards; checksums and code range are "
        f"correct (tokenizer {manifest['tokenizer']['name']}, {fingerprint})"
    )
