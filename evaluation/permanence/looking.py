"""How much each head looks from a returning object to its last sighting, next to two controls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from evaluation.backbones.attention_maps import attention_rows
from evaluation.permanence.sightings import Sighting
from tokenization.sequences import video_rows


def rows_of(processor, video: np.ndarray) -> torch.LongTensor:
    """A clip, uint8 (T, R, R, 3), as one row of ids (1, L), without end token."""
    return video_rows(processor.encode_frames(video)[None], end=False)


def mass(attention: torch.Tensor, tokens: np.ndarray) -> torch.Tensor:
    """Attention to a set of tokens, mean over the queries: (blocks, heads, Q, L) -> (blocks, heads)."""
    return attention[..., torch.from_numpy(tokens) + 1].sum(-1).mean(-1)


def look(model, processor, sighting: Sighting, query: str = "predicting") -> dict[str, np.ndarray]:
    """Attention from the tokens of a returning object to its last sighting, in every block and head.

    query: "token", from the object's own tokens; "predicting", from the positions before them, which predict them.
    Returns:
        float32 (blocks, heads) each: `sighting`, to the tokens of the last sighting; `matched`, to as many tokens of
        the same frame, as far away (mean over all such places); `never`, to the tokens of the sighting in the same
        clip where nothing hides the object.
    """
    places = [int(token) + (query == "token") for token in sighting.queries]
    hid = attention_rows(model, rows_of(processor, sighting.video), places)
    never = attention_rows(model, rows_of(processor, sighting.never), places)
    return {
        "sighting": mass(hid, sighting.keys).numpy(),
        "matched": torch.stack([mass(hid, tokens) for tokens in sighting.matched]).mean(0).numpy(),
        "never": mass(never, sighting.keys).numpy(),
    }


def look_all(model, processor, sightings: Sequence[Sighting], query: str = "predicting") -> dict[str, np.ndarray]:
    """`look` of every sighting, float32 (N, blocks, heads) each."""
    found = [look(model, processor, each, query) for each in sightings]
    return {name: np.stack([each[name] for each in found]) for name in found[0]}


def lead(looks: dict[str, np.ndarray]) -> np.ndarray:
    """Attention to the sighting above the larger of the two controls' means, (blocks, heads).

    A head that always looks some frames back has as much in `never`; one that looks at the whole frame or at moving
    things has as much in `matched`.
    """
    sighting, matched, never = (looks[name].mean(0) for name in ("sighting", "matched", "never"))
    return sighting - np.maximum(matched, never)
