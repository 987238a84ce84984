"""Label frames that a model draws after a prompt, and the likelihood of the true ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tokenization.sequences import codes_of, prompted_rows, video_rows
from tokenization.terminal.progress import tqdm
from training.flags import require
from training.prompting.tasks import Task


@dataclass(frozen=True)
class Prompted:
    """A model in eval mode with its processor, on the default device. path: its resolved folder."""

    model: torch.nn.Module
    processor: object
    path: str


def load(name: str) -> Prompted:
    """The model behind `--model`. Raises FileNotFoundError, OSError or ValueError if it cannot be loaded."""
    from evaluation.backbones.contract import default_device
    from training.find_model import resolve_model
    from training.load import load_run

    model, processor = load_run(name)
    require(
        hasattr(model, "generate_frames"),
        f"{name} is a {type(model).__name__}, which draws no frames; give a Toto of toto prompt train.",
    )
    device = default_device()
    return Prompted(model.to(device), processor.to(device), resolve_model(name))


def draw(model, codes: np.ndarray, task: Task, prompt_id: int, batch_size: int, label: str) -> np.ndarray:
    """The most likely codes of the labels of the last group, drawn token by token.

    Args:
        codes: (N, frames, h, w) of whole rows, whose last label frames are not looked at.
        label: of the progress bar.
    Returns:
        (N, labels, h, w).
    """
    count, found = len(task.labels), []
    rows = prompted_rows(codes[:, :-count], prompt_id, end=False)
    with tqdm(total=len(rows), desc=label, unit="row") as bar:
        for batch in rows.split(batch_size):
            drawn = model.generate_frames(batch.to(model.device), count, temperature=0.0)
            found.append(codes_of(drawn.cpu(), codes.shape[2:])[:, -count:])
            bar.update(len(batch))
    return torch.cat(found).numpy()


def nats(model, codes: np.ndarray, task: Task, prompt_id: int, batch_size: int) -> np.ndarray:
    """Mean negative log-likelihood of the last group's label tokens, each after the true ones before it: (N,) nats."""
    return token_nats(model, codes, task, prompt_id, batch_size).mean((1, 2, 3))


@torch.no_grad()
def token_nats(model, codes: np.ndarray, task: Task, prompt_id: int, batch_size: int) -> np.ndarray:
    """Negative log-likelihood of each of the last group's label tokens: (N, labels, h, w) nats."""
    rows, found = prompted_rows(codes, prompt_id, end=False), []
    shape = (len(task.labels), *codes.shape[2:])
    labels = int(np.prod(shape))
    for batch in rows.split(batch_size):
        ids = batch.to(model.device)
        found.append(model(input_ids=ids, labels=ids, skip_logits=True).token_losses[:, -labels:].cpu())
    return torch.cat(found).double().numpy().reshape(-1, *shape)


def encoded(processor, frames: np.ndarray) -> np.ndarray:
    """Frames uint8 (N, F, R, R, 3) -> codes (N, F, h, w)."""
    found = [processor.encode_frames(each).numpy() for each in tqdm(frames, desc="tokens", unit="row")]
    return np.stack(found)


def decoded(processor, codes: np.ndarray) -> np.ndarray:
    """Codes (N, F, h, w) -> frames uint8 (N, F, R, R, 3)."""
    return np.concatenate(
        [processor.decode(video_rows(part, end=False)) for part in np.array_split(codes, -(-len(codes) // 32))]
    )
