"""The models that a page offers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modeling_toto import TotoForCausalLM
from tokenization.processing_toto import TotoProcessor
from training.flags import require


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model with the processor saved next to it. name: in the page. path: as it was given."""

    name: str
    path: str
    model: TotoForCausalLM
    processor: TotoProcessor

    @property
    def context(self) -> int:
        """Number of frames that the model reads at a time."""
        return self.model.config.context_frames

    @property
    def frames(self) -> int:
        """Number of frames that the model was trained on, at most `context`."""
        return min(self.model.config.num_frames, self.context)


def load_models(paths: list[str]) -> dict[str, Loaded]:
    """{name: Loaded} of `--model`; a name is the last part of a path, or all of it where two would be equal.

    Raises:
        ValueError: no such model, no processor next to it, a model that does not generate, or a processor of another
            grid.
    """
    from evaluation.backbones.contract import default_device
    from training.load import load_run

    device = default_device()
    names = [Path(path).name for path in paths]
    found = {}
    for path, name in zip(paths, names, strict=True):
        _check_files(path)
        try:
            model, processor = load_run(path)
        except FileNotFoundError as error:
            raise ValueError(str(error)) from error
        except OSError as error:
            raise ValueError(
                f"There is no model '{path}' with its processor: no such folder, and no such id in the Hub's cache; "
                "check --model."
            ) from error
        require(
            isinstance(model, TotoForCausalLM),
            f"{path} is a {type(model).__name__}, which predicts no tokens; pass a TotoForCausalLM to --model.",
        )
        require(
            tuple(processor.grid) == tuple(model.config.grid_size) and processor.num_codes <= model.config.num_codes,
            f"{path} has a processor of {tuple(processor.grid)} tokens per frame, but its model reads "
            f"{tuple(model.config.grid_size)}; save both from the same run.",
        )
        name = name if names.count(name) == 1 else path
        require(name not in found, f"--model names '{path}' twice; name each model once.")
        found[name] = Loaded(name, path, model.to(device), processor.to(device))
    return found


def _check_files(path: str) -> None:
    """Raises ValueError for a folder that holds a model but no processor; a Hub id is checked when it is loaded."""
    from training.find_model import resolve_model

    try:
        folder = Path(resolve_model(path))
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    require(
        not folder.is_dir() or (folder / "processor_config.json").is_file(),
        f"{path} holds a model but no processor (processor_config.json); save the TotoProcessor into the same folder.",
    )
