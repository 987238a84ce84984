"""What a name that a user typed stands for: something here, on the Hub, or nothing. It does not import torch."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from tokenization.sources.kinds import ARCHIVES, PICTURES, TABLES, TARS, VIDEOS, by_suffix, counted, suffix_of
from tokenization.storage.remote import is_remote

# Entries of a folder that are looked at before it is opened in earnest.
MOST_LOOKED_AT = 1000
HUB_SECONDS = 10


def require_dataset(name: str) -> None:
    """Refuse a data set that is neither here nor on the Hub, or a folder that holds no media.

    Raises:
        FileNotFoundError, ValueError: with a sentence that names it.
    """
    kind, _, rest = name.partition(":")
    if kind == "toyworld" or (kind == "cater" and rest) or is_remote(name):
        return
    path = Path(name)
    if path.is_dir():
        _require_media(path)
    elif not path.exists():
        require_on_hub(name, "dataset")


def require_on_hub(name: str, kind: str) -> None:
    """Refuse a name that is no path here and no repository of the Hub, at once where the Hub cannot be reached.

    Args:
        kind: "model" or "dataset".
    Raises:
        FileNotFoundError: it is not there, or cannot be looked up and is not in the cache of the Hub.
    """
    if is_remote(name):  # opening it says more
        return
    try:
        import httpx2 as httpx
    except ImportError:  # huggingface_hub before 2.0
        import httpx
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    if name.startswith((".", "/", "~")) or name.count("/") > 1 or (kind == "dataset" and Path(name).suffix):
        what = "model folder" if kind == "model" else "folder or file"
        raise FileNotFoundError(f"There is no {what} '{name}'; {near_path(name) or 'check the path.'}")
    if (Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}").is_dir():
        return
    here, advice = f"The {kind} '{name}' is neither here nor on the Hub", near_path(name) or "check the name."
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(f"{here} as far as its cache knows (HF_HUB_OFFLINE is set); {advice}")
    try:
        HfApi().repo_info(name, repo_type=kind, timeout=HUB_SECONDS)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise FileNotFoundError(f"{here}; {advice}") from error
    except (httpx.TransportError, ConnectionError, OfflineModeIsEnabled) as error:
        raise FileNotFoundError(f"{here} as far as its cache knows, and the Hub cannot be reached; {advice}") from error
    except OSError:
        return  # such as a gated repository, about which loading it says more


def near_path(name: str) -> str | None:
    """ "did you mean my_photos?", of what lies where the name would; None if nothing there has such a name."""
    folder = Path(name).expanduser().parent
    there = os.listdir(folder)[:MOST_LOOKED_AT] if folder.is_dir() and os.access(folder, os.R_OK) else []
    near = difflib.get_close_matches(Path(name).name, [each for each in there if not each.startswith(".")], n=1)
    return f"did you mean {folder / near[0]}?" if near else None


def without(folder: str | Path, what: str) -> str:
    """Why a folder is not what it should be: there is none of this name, or what it does not hold.

    what: such as "manifest.json".
    """
    if is_remote(folder) or Path(folder).exists():
        return f"it holds no {what}."
    return f"there is no such folder; {near_path(str(folder)) or 'check the path.'}"


def _require_media(folder: Path) -> None:
    """Raises ValueError if a small folder holds no file that could be data; a large or linked one is left to `open`."""
    known = VIDEOS | PICTURES | TABLES | TARS | ARCHIVES
    found, waiting = [], [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                is_folder = entry.is_dir(follow_symlinks=False)
                if entry.is_symlink() or suffix_of(entry.name) in known or len(found) == MOST_LOOKED_AT:
                    return
                if is_folder:
                    waiting.append(entry.path)
                else:
                    found.append(entry.name)
    if not found:
        raise FileNotFoundError(f"The folder {folder} is empty; put videos, images, parquet or tar files into it.")
    raise ValueError(f"There are no videos and no images in {folder} (found {counted(by_suffix(found))}).")
