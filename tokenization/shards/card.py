"""Pushes a folder of token shards to the Hub, as a dataset repository with a card that describes it."""

from __future__ import annotations

import json
from pathlib import Path

from tokenization.markdown import markdown_template
from tokenization.shards.files import OLD_SUFFIX, SUFFIX, is_old
from tokenization.shards.format import read_manifest


def _public_name(name: str) -> str:
    """The name of a dataset or tokenizer without the folders of this machine."""
    path = Path(name)
    return path.resolve().name if path.exists() or path.is_absolute() else name


def shard_card(manifest: dict, repo: str) -> str:
    """The README.md of a folder of shards; `repo` is the Hub id or folder that its examples load."""
    import yaml

    is_video, split, (h, w) = manifest["kind"] == "video", manifest["split"], manifest["grid"]
    suffix = OLD_SUFFIX if any(map(is_old, manifest["shards"])) else SUFFIX
    files = [{"split": split, "path": f"{split}-*{suffix}"}]
    header = {
        "tags": ["toto", "visual-tokens", manifest["kind"]],
        "size_categories": [_size_category(manifest["num_sequences"])],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    sampling = ""
    if is_video:
        sampling = f", {manifest['fps']:g} per second" if manifest["fps"] else f", every {manifest['stride']}th frame"
        sampling += ", large frames reduced by the decoder" if manifest.get("resize") == "decoder" else ""
    precision = manifest["precision"]
    if manifest.get("bf16_agreement") is not None:
        precision += f" ({100 * manifest['bf16_agreement']:.2f} % of the codes of the first batch are the same in fp32)"
    facts = manifest | {"dataset": _public_name(manifest["dataset"]), "precision": precision}
    return markdown_template(Path(__file__).with_name("card.md.jinja")).render(
        facts | {"tokenizer": _public_name(manifest["tokenizer"]["name"])},
        header=yaml.safe_dump(header, sort_keys=False).strip(),
        name=repo.split("/")[-1],
        repo=repo,
        row=f"a clip of {manifest['num_frames']} frames" if is_video else "an image",
        num_shards=len(manifest["shards"]),
        tokenizer_class=manifest["tokenizer"]["class"],
        fingerprint=manifest["tokenizer"]["fingerprint"],
        last_code=manifest["num_codes"] - 1,
        h=h,
        w=w,
        sampling=sampling,
        to_rows="video_rows" if is_video else "image_rows",
    )


def _size_category(rows: int) -> str:
    """The Hub's name for the size of a dataset."""
    bounds = {"n<1K": 10**3, "1K<n<10K": 10**4, "10K<n<100K": 10**5, "100K<n<1M": 10**6, "1M<n<10M": 10**7}
    return next((name for name, bound in bounds.items() if rows < bound), "n>10M")


def create_repo(repo_id: str, private: bool = False) -> str:
    """Create the dataset repository if it does not exist; returns its full name.

    Called before the work, so that a missing token is reported early.

    Raises:
        ValueError: not a valid name. OSError: no token, no permission, or no connection.
    """
    from huggingface_hub import HfApi

    return HfApi().create_repo(repo_id, private=private, exist_ok=True, repo_type="dataset").repo_id


def push_shards(folder: str | Path, repo_id: str, private: bool = False) -> str:
    """Push a folder of shards in one commit and return its address. Shards of an earlier push are deleted.

    Local paths in the manifest are reduced to their last part.

    Raises:
        FileNotFoundError: there are no shards. OSError: the Hub refused, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    folder, manifest = Path(folder), read_manifest(folder)
    repo_id = create_repo(repo_id, private)
    public = manifest | {"dataset": _public_name(manifest["dataset"])}
    public["tokenizer"] = manifest["tokenizer"] | {"name": _public_name(manifest["tokenizer"]["name"])}
    files: dict[str, str | bytes] = {shard["file"]: str(folder / shard["file"]) for shard in manifest["shards"]}
    for path in sorted((folder / manifest["processor"]).rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            files[path.relative_to(folder).as_posix()] = str(path)
    files["manifest.json"] = (json.dumps(public, indent=2) + "\n").encode()
    files["README.md"] = shard_card(public, repo_id).encode()
    there = HfApi().list_repo_files(repo_id, repo_type="dataset")
    operations = [
        CommitOperationDelete(path) for path in there if path.endswith((SUFFIX, OLD_SUFFIX)) and path not in files
    ]
    operations += [CommitOperationAdd(path, content) for path, content in files.items()]
    message = f"Upload {manifest['num_sequences']:,} rows"
    return str(HfApi().create_commit(repo_id, operations, commit_message=message, repo_type="dataset").commit_url)
