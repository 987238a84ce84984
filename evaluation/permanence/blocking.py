"""The causal test: what a returning object's tokens cost when attention to its last sighting is blocked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from evaluation.permanence.looking import rows_of
from evaluation.permanence.sightings import Sighting

# Name -> which keys are hidden, from which positions, in which heads.
TESTS = {
    "sighting": ("keys", "return", "all"),
    "matched": ("matched", "return", "all"),
    "sighting, chosen heads": ("keys", "return", "chosen"),
    "matched, chosen heads": ("matched", "return", "chosen"),
    "all sightings": ("seen", "return", "all"),
    "matched to all": ("matched_seen", "return", "all"),
    "all sightings, from then on": ("seen", "since", "all"),
    "matched to all, from then on": ("matched_seen", "since", "all"),
}
# A test -> its control.
CONTROLS = {
    "sighting": "matched",
    "sighting, chosen heads": "matched, chosen heads",
    "all sightings": "matched to all",
    "all sightings, from then on": "matched to all, from then on",
}


@contextmanager
def blocked(model: nn.Module, blocks: dict[int, torch.BoolTensor]) -> Iterator[None]:
    """Within it, blocks 1, 2 ... attend only where their mask, bool (B, heads or 1, L, L), is True."""

    def hook(mask: torch.BoolTensor):
        return lambda attention, args, kwargs: (args, kwargs | {"attention_mask": mask})

    layers = getattr(model, "model", model).layers
    hooks = [
        layers[number - 1].self_attn.register_forward_pre_hook(hook(mask), with_kwargs=True)
        for number, mask in blocks.items()
    ]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


@torch.no_grad()
def losses(
    model: nn.Module, processor, sighting: Sighting, chosen: Iterable[tuple[int, int]], seed: int = 0
) -> dict[str, float]:
    """Mean loss of the tokens of a returning object in nats, as it is (`open`) and with some attention blocked (TESTS).

    chosen: (block from 1, head from 0) of the heads that are blocked in the tests of chosen heads. seed: of the place
    that stands for `matched`.
    """
    ids = rows_of(processor, sighting.video).to(model.device)
    length, heads = ids.shape[1], model.config.num_attention_heads
    size = model.config.tokens_per_frame
    rng = np.random.RandomState([seed, sighting.index])
    sets = {"keys": sighting.keys, "seen": sighting.seen, "matched_seen": sighting.matched_seen}
    sets["matched"] = sighting.matched[rng.randint(len(sighting.matched))]
    # the first position that predicts a token of the frame of return; the first one after the last sighting's frame
    begins = {"return": sighting.back * size, "since": (sighting.last + 1) * size}
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    wanted = torch.from_numpy(sighting.queries) + 1

    def cost(masks: dict[int, torch.BoolTensor]) -> float:
        with blocked(model, masks):
            logits = model(input_ids=ids, use_cache=False).logits[0, wanted - 1].float()
        return float(cross_entropy(logits, ids[0, wanted]))

    found = {"open": cost({})}
    for name, (keys, since, where) in TESTS.items():
        shut = causal.clone()
        shut[begins[since] :, torch.from_numpy(sets[keys]) + 1] = False
        masks: dict[int, torch.BoolTensor] = {}
        if where == "all":
            every = shut[None, None].to(model.device)
            masks = dict.fromkeys(range(1, model.config.num_hidden_layers + 1), every)
        else:
            for block, head in chosen:
                mask = masks.setdefault(block, causal.repeat(1, heads, 1, 1).to(model.device))
                mask[0, head] = shut
        found[name] = cost(masks)
    return found
