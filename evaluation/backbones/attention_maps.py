"""Attention of one token of a Toto to the tokens of its row, from the queries and keys of its blocks."""

from __future__ import annotations

import torch
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from modeling_toto.attention_toto import resolve_mode


@torch.no_grad()
def attention_rows(model: nn.Module, ids: torch.LongTensor, place: int) -> torch.Tensor:
    """Attention probabilities of one position of a row, exact, in every block and head.

    Only this position's row of the attention matrix is computed, so that a long row needs little memory (eager
    attention would hold L x L numbers per head). Positions that it cannot see have probability 0, and each row sums
    to 1.

    Args:
        model: TotoForCausalLM or TotoModel.
        ids: (1, L) or (L,), a row without padding.
        place: the position that attends, 0 (the start token) to L - 1.
    Returns:
        float32 (blocks, heads, L); entry k - 1 is of block k, whose output is layer k.
    Raises:
        ValueError: not one row, a place outside of it, or a row longer than the model's positions.
    """
    trunk = getattr(model, "model", model)
    ids = ids.view(-1) if ids.ndim == 2 and len(ids) == 1 else ids
    if ids.ndim != 1:
        raise ValueError(f"ids has the shape {tuple(ids.shape)}; pass one row, (L,) or (1, L).")
    length, most = len(ids), trunk.config.max_position_embeddings
    if not 0 <= place < length:
        raise ValueError(f"The position {place} is outside of the row, which has positions 0 to {length - 1}.")
    if length > most:
        raise ValueError(f"The row has {length} tokens, but the model reads at most {most}; pass fewer frames.")
    mode, prefix = resolve_mode(trunk.config, None, None)
    causal = mode == "causal" or (mode == "prefix" and place >= prefix)
    seen = length if mode == "full" else place + 1 if causal else prefix
    given = ids[: place + 1] if mode == "causal" else ids  # later tokens change nothing under causal attention
    found = torch.zeros(len(trunk.layers), trunk.config.num_attention_heads, length)

    def of_block(number: int):
        def hook(attention: nn.Module, args: tuple, kwargs: dict) -> None:
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]  # (1, L, D)
            shape = (*hidden.shape[:2], -1, attention.head_dim)
            queries, keys = (
                project(hidden).view(shape).transpose(1, 2) for project in (attention.q_proj, attention.k_proj)
            )
            queries, keys = apply_rotary_pos_emb(queries, keys, *kwargs["position_embeddings"])
            keys = repeat_kv(keys, attention.num_key_value_groups)[0, :, :seen]  # (heads, seen, d)
            scores = keys @ queries[0, :, place, :, None] * attention.scaling
            found[number, :, : keys.shape[1]] = scores[..., 0].float().softmax(-1).cpu()

        return hook

    hooks = [
        layer.self_attn.register_forward_pre_hook(of_block(number), with_kwargs=True)
        for number, layer in enumerate(trunk.layers)
    ]
    was_training = trunk.training
    trunk.eval()
    try:
        trunk(input_ids=given[None].to(trunk.embed_tokens.weight.device), use_cache=False)
    finally:
        trunk.train(was_training)
        for hook in hooks:
            hook.remove()
    return found


def attention_of(
    model: nn.Module, ids: torch.LongTensor, position: tuple[int, int, int], predicting: bool = False
) -> torch.Tensor:
    """Attention of the token at a place of a clip to every token of the clip, exact.

    Args:
        model: TotoForCausalLM or TotoModel.
        ids: a row (1, L) or (L,): a start token and T whole frames of h * w codes, without end token.
        position: (frame, row, column) of the token.
        predicting: of the position from which the model predicts this token, which is the one before it.
    Returns:
        float32 (blocks, heads, T, h, w). What is missing to a sum of 1 is the attention to the start token; tokens that
        the position cannot see, under causal attention those after it, have 0.
    Raises:
        ValueError: a position outside of the clip, rows that are not whole frames, or as `attention_rows`.
    """
    rows, columns = getattr(model, "model", model).config.grid_size
    frames, rest = divmod(ids.numel() - 1, rows * columns)
    if rest or not frames:
        raise ValueError(
            f"The row has {ids.numel()} ids; pass a start token and whole frames of {rows * columns} codes, without an "
            "end token."
        )
    for name, number, count in zip(("frame", "row", "column"), position, (frames, rows, columns), strict=True):
        if not 0 <= number < count:
            raise ValueError(f"The {name} is {number}, but the clip has {name}s 0 to {count - 1}.")
    frame, row, column = position
    place = 1 + (frame * rows + row) * columns + column - predicting
    return attention_rows(model, ids, place)[..., 1:].unflatten(-1, (frames, rows, columns))
