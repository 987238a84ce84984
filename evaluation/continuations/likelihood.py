"""Loss of the true frames of clips: after the true frames before them, and after those that the model drew itself."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from tokenization.sequences import video_rows
from tokenization.terminal.progress import tqdm

MOST = 32  # clips at a time: the logits of all their frames are held at once


@torch.no_grad()
def nats(
    model, codes: np.ndarray, drawings: dict[str, np.ndarray], batch_size: int, label: str = "likelihood"
) -> dict[str, np.ndarray]:
    """Mean negative log-likelihood of each true frame's codes, in nats per token over the whole vocabulary.

    "teacher_forced": each code is predicted from all true codes before it, as in training (`score_frames`). Under the
    name of a drawing: codes of true frame h are predicted from the prompt, the drawn frames before h, and the true
    codes before them in frame h itself. So both are equal in the first frame, and the latter says how far the model's
    own frames have led it away from the truth. Paper silent; ours.

    Args:
        model: TotoForCausalLM. codes: of all true frames, (C, P + G, h, w). drawings: name -> codes (C, G, h, w).
        batch_size: clips at a time, at most MOST. label: of the progress bar.
    Returns:
        float64 (C, G) each.
    """
    drawn_frames = next(iter(drawings.values())).shape[1]
    prompt = codes.shape[1] - drawn_frames
    # beyond the context the states of dropped frames matter, which only a row of its own for each frame has exactly
    score = _by_cache if codes.shape[1] <= model.config.context_frames else _by_rows
    found = {name: [] for name in ("teacher_forced", *drawings)}
    size = min(batch_size, MOST)
    for start in tqdm(range(0, len(codes), size), desc=label, unit="batch"):
        part = slice(start, start + size)
        true = video_rows(codes[part], end=False).to(model.device)
        rows = {
            name: _with_prompt(codes[part], prompt, drawn[part]).to(model.device) for name, drawn in drawings.items()
        }
        for name, losses in score(model, true, rows, prompt).items():
            found[name].append(losses.double().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _with_prompt(codes: np.ndarray, prompt: int, drawn: np.ndarray) -> torch.LongTensor:
    """The rows of ids of drawn frames after their prompts."""
    return video_rows(np.concatenate([codes[:, :prompt], drawn], axis=1), end=False)


def _losses(logits: torch.Tensor, wanted: torch.LongTensor, frames: int) -> torch.Tensor:
    """(B, frames * S, K) and ids (B, frames * S) -> mean over the S tokens of a frame, (B, frames)."""
    each = cross_entropy(logits.float().transpose(1, 2), wanted, reduction="none")
    return each.reshape(len(each), frames, -1).mean(2)


def _by_cache(model, true: torch.LongTensor, rows: dict, prompt: int) -> dict[str, torch.Tensor]:
    """Rows that fit into the context: the prompt is encoded once; each true frame is scored and taken back again."""
    size = model.config.tokens_per_frame
    begin, drawn = 1 + prompt * size, (true.shape[1] - 1) // size - prompt  # of the ids of the first drawn frame
    cache = DynamicCache()

    def logits(ids: torch.LongTensor, keep: int) -> torch.Tensor:
        return model(ids, past_key_values=cache, use_cache=True, logits_to_keep=keep).logits

    found = {"teacher_forced": _losses(logits(true[:, :-1], drawn * size), true[:, begin:], drawn)}
    for name, row in rows.items():
        losses = [found["teacher_forced"][:, :1]]
        for frame in range(1, drawn):
            at = begin + frame * size  # of the first id of the frame; its codes are predicted from the ids before it
            _shorten(cache, at - 1 - size)
            logits(row[:, at - 1 - size : at - 1], 1)
            predicted = logits(torch.cat([row[:, at - 1 : at], true[:, at : at + size - 1]], dim=1), size)
            losses.append(_losses(predicted, true[:, at : at + size], 1))
        found[name] = torch.cat(losses, dim=1)
    return found


def _shorten(cache: DynamicCache, length: int) -> None:
    """Keep the states of the first `length` ids."""
    if (beyond := cache.get_seq_length() - length) > 0:
        cache.crop(-beyond)


def _by_rows(model, true: torch.LongTensor, rows: dict, prompt: int) -> dict[str, torch.Tensor]:
    """Rows of any length, with `score_frames`: for each true frame a row of its own, which ends with it."""
    size = model.config.tokens_per_frame
    begin, frames = 1 + prompt * size, (true.shape[1] - 1) // size
    found = {"teacher_forced": model.score_frames(true)[:, prompt:]}
    for name, row in rows.items():
        ends = [
            model.score_frames(torch.cat([row[:, :at], true[:, at : at + size]], dim=1))[:, -1]
            for at in range(begin, 1 + frames * size, size)
        ]
        found[name] = torch.stack(ends, dim=1)
    return found
