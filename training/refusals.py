"""What a command refuses before torch is imported: names in its flags that stand for nothing, or for another kind."""

from __future__ import annotations

import json
from pathlib import Path

from tokenization.shards.format import read_manifest
from tokenization.sources.named import near_path, require_dataset, require_on_hub
from training.find_model import resolve_model

MODELS = ("model", "init_from", "untuned", "scratch")
DATASETS = ("dataset", "input")
SHARDS = ("shards", "val_shards")
# What a flag names, of those whose files can only be here.
HERE = {"video": "file or folder", "inputs": "picture", "photos": "folder", "results": "result file", "runs": "run"}
HERE |= {"generations": "folder or sheet"}
# Commands that read a Toto and nothing else.
TOTO_ONLY = ("toto generate", "toto finetune", "toto prompt", "toto permanence", "toto export")
TOTO_ONLY += ("toto visualize attention", "toto visualize surprise", "toto visualize arrow")
TOKENIZERS = ("toto_vqgan", "toto_dvae")


def refuse_names(prog: str, typed: dict[str, object]) -> None:
    """Check what the flags name, in the order in which they were typed.

    Args:
        typed: flag -> its value, of the flags that were typed; those of a recipe are left to the command.
    Raises:
        FileNotFoundError, ValueError: a name that stands for nothing, or for something of another kind.
    """
    for flag, value in typed.items():
        for name in value if isinstance(value, list) else [value]:
            if not isinstance(name, str):
                continue
            if flag in MODELS and not name.startswith("{"):  # the JSON of toto train-tokenizer
                require_model(name, prog)
            elif flag in DATASETS:
                require_dataset(name)
            elif flag in SHARDS:
                read_manifest(name)
            elif flag == "tokenizer" and not Path(name).exists():
                require_on_hub(name, "model")
            elif flag == "policy" and not (Path(name) / "config.json").is_file():
                raise FileNotFoundError(
                    f"{name} is not a policy folder: it has no config.json; name the --output of toto robot train."
                )
            elif flag in HERE and name.partition(":")[0] != "toyworld" and not Path(name).exists():
                raise FileNotFoundError(f"There is no {HERE[flag]} '{name}'; {near_path(name) or 'check the path.'}")
    if "output_dir" in typed and "resume" not in typed:
        require_new_run(Path(str(typed["output_dir"])))


def require_model(name: str, prog: str) -> None:
    """Refuse a model that is not there, or whose config says that it is of another kind than the command reads."""
    path = resolve_model(name)
    kind = _model_type(path)
    if kind in TOKENIZERS:
        raise ValueError(f"{name} is a visual tokenizer ({kind}), not a model; name the folder of a model.")
    if kind not in (None, "toto") and prog.startswith(TOTO_ONLY):
        raise ValueError(f"{name} is a '{kind}' model, not a Toto; give a checkpoint of toto pretrain.")


def require_new_run(run: Path) -> None:
    """Refuse a run folder that holds something."""
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ValueError(f"{run} is not empty; choose another --output_dir, or continue it with --resume {run}.")


def _model_type(path: str) -> str | None:
    """The model_type in the config.json of a folder, or of a repository in the cache; None if it is not known."""
    from huggingface_hub import try_to_load_from_cache

    file = Path(path) / "config.json" if Path(path).is_dir() else try_to_load_from_cache(path, "config.json")
    if not isinstance(file, (str, Path)) or not Path(file).is_file():
        return None
    try:
        return json.loads(Path(file).read_text()).get("model_type")
    except (json.JSONDecodeError, AttributeError):
        return None  # loading it says what is wrong
