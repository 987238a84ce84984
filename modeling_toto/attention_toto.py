"""Attention modes (causal, prefix, full) and their masks, and checks of a call's inputs."""

import copy

import torch
from transformers import Cache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

from .configuration_toto import ATTENTION_MODES, TotoConfig


def resolve_mode(
    config: TotoConfig, attention_mode: str | None, prefix_length: int | torch.Tensor | None
) -> tuple[str, int | torch.Tensor | None]:
    """The attention mode and prefix length of a call: its arguments, or else the config's values.

    Raises:
        ValueError: If the mode is unknown, prefix mode has no length or another mode has one, or the attention
            implementation does not support the mode.
    """
    mode = attention_mode or config.attention_mode
    if mode not in ATTENTION_MODES:
        raise ValueError(f"attention_mode is {mode!r}; choose one of {', '.join(ATTENTION_MODES)}.")
    if mode != "prefix":
        if prefix_length is not None:
            raise ValueError(f"prefix_length is set but attention_mode is {mode!r}; use attention_mode='prefix'.")
        return mode, None
    length = config.prefix_length if prefix_length is None else prefix_length
    if length is None:
        raise ValueError("attention_mode is 'prefix' but prefix_length is None; set the prefix's length in tokens.")
    if isinstance(length, int) and length < 0:
        raise ValueError(f"prefix_length is {length}; set 0 or more.")
    implementation = config._attn_implementation or ""
    if "flash" in implementation or "paged" in implementation:
        raise ValueError(
            f"{implementation} does not support prefix attention; load the model with attn_implementation='sdpa', "
            "'flex_attention' or 'eager'."
        )
    return mode, length


def exactly_one(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
    """Whichever of input_ids (B, L) and inputs_embeds (B, L, D) was passed.

    Raises:
        ValueError: If both or neither were passed.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("You must specify exactly one of input_ids or inputs_embeds.")  # transformers' own message
    return input_ids if inputs_embeds is None else inputs_embeds


def is_padding_mask(attention_mask) -> bool:
    """True for a mask (B, past + L) with 0 for padding; False for None and for complete masks (4-D or flex)."""
    return isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2


def in_prefix(
    length: int,
    prefix_length: int | torch.Tensor,
    attention_mask: torch.Tensor | None,
    device: torch.device,
    past: int | torch.Tensor = 0,
) -> torch.BoolTensor:
    """True for the first `prefix_length` tokens of each row, not counting left padding: (1 or B, L).

    Args:
        length: L, the number of tokens, which follow `past` others.
        prefix_length: An integer, or one per row (B,).
        attention_mask: (B, past + L), 0 for padding, or None.
    """
    if isinstance(prefix_length, torch.Tensor):
        prefix_length = prefix_length.to(device).reshape(-1, 1)
    if not is_padding_mask(attention_mask):
        return (torch.arange(length, device=device) + past)[None] < prefix_length
    real = attention_mask.to(device).bool()
    return ((real.cumsum(-1) <= prefix_length) & real)[:, past : past + length]


def next_token_labels(
    labels: torch.LongTensor,
    mode: str,
    prefix_length: int | torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    past: int | torch.Tensor = 0,
) -> torch.LongTensor:
    """Labels (B, L) with -100 for tokens that are visible to the position that predicts them: those in a prefix.

    Raises:
        ValueError: If the mode is full attention, under which every token attends to the next one.
    """
    if mode == "full":
        raise ValueError(
            "There is no next-token loss under full attention, because every token attends to the one it predicts; use "
            "attention_mode='causal' or 'prefix'."
        )
    if mode == "causal":
        return labels
    return labels.masked_fill(in_prefix(labels.shape[1], prefix_length, attention_mask, labels.device, past), -100)


def _at_this_length(cache: Cache) -> Cache:
    """The cache with its present length fixed, for a flex mask.

    A flex mask is evaluated in the attention, after a static cache has counted the new tokens. transformers passes the
    cache's own counter, with which every query would attend to too many positions.
    """
    offset = cache.get_query_offset()
    if not isinstance(offset, torch.Tensor):
        return cache
    cache, offset = copy.copy(cache), offset.clone()
    cache.get_query_offset = lambda layer_idx=0: offset
    return cache


def make_mask(
    config: TotoConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    position_ids: torch.Tensor | None,
    mode: str = "causal",
    prefix_length: int | torch.Tensor | None = None,
):
    """The mask in the attention implementation's format, or None where `is_causal` (or no mask) is equivalent.

    A mask that is already 4-D, or a flex BlockMask, is returned as it is.

    Args:
        inputs_embeds: (B, L, D); only its shape, dtype and device are used.
        attention_mask: (B, past + L), 0 for padding, or None.
    Raises:
        ValueError: If the prefix extends beyond the first call of a cached sequence.
    """
    given = (config, inputs_embeds, attention_mask)
    if mode == "full":
        return create_bidirectional_mask(*given)
    if config._attn_implementation == "flex_attention" and past_key_values is not None:
        past_key_values = _at_this_length(past_key_values)
    shared = {"past_key_values": past_key_values, "position_ids": position_ids}
    if mode == "causal" or not (attention_mask is None or is_padding_mask(attention_mask)):
        return create_causal_mask(*given, **shared)
    batch, length = inputs_embeds.shape[:2]
    past = 0 if past_key_values is None else past_key_values.get_seq_length()
    if isinstance(past, torch.Tensor) and torch.compiler.is_compiling():
        raise ValueError(
            "The prefix mask of a static cache cannot be made under torch.compile; pass the result of make_mask."
        )
    if past == 0:
        inside = in_prefix(length, prefix_length, attention_mask, inputs_embeds.device).expand(batch, -1)
        # equal ids attend to each other; -1 stays causal
        return create_causal_mask(*given, **shared, block_sequence_ids=torch.where(inside, 0, -1))
    longest = int(torch.as_tensor(prefix_length).max())
    if longest > past:
        raise ValueError(
            f"The prefix has {longest} tokens but the cache holds only {past} of them, which have not attended to the "
            "others; pass the whole prefix in one call."
        )
    return create_causal_mask(*given, **shared)


def check_backward(config: TotoConfig, module: torch.nn.Module, device: torch.device) -> None:
    """Raise ValueError if the call needs a gradient that the attention implementation lacks.

    This is the case for FlexAttention on a CPU outside `torch.no_grad()`.
    """
    if config._attn_implementation != "flex_attention" or device.type != "cpu" or not torch.is_grad_enabled():
        return
    if any(weight.requires_grad for weight in module.parameters()):
        raise ValueError(
            "flex_attention has no backward pass on a CPU; call the model under torch.no_grad(), or load it with "
            "attn_implementation='sdpa' to train."
        )


def check_ids(input_ids: torch.LongTensor, vocab_size: int) -> None:
    """Raise ValueError if ids are outside the vocabulary.

    On devices other than a CPU a device-side assertion fails instead, because reading the result here would wait for
    the device at every call.
    """
    if torch.compiler.is_compiling() or input_ids.numel() == 0 or input_ids.device.type == "meta":
        return
    low, high = input_ids.aminmax()
    if input_ids.device.type != "cpu":
        torch._assert_async((low >= 0) & (high < vocab_size), f"An id is outside the vocabulary of {vocab_size}.")
    elif low < 0 or high >= vocab_size:
        wrong = int(low if low < 0 else high)
        raise ValueError(
            f"The id {wrong} is outside the vocabulary of {vocab_size}; use the tokenizer that the model was trained "
            "with, and do not pass labels (padded with -100) as ids."
        )


def check_cache(cache: Cache, batch: int, length: int, num_layers: int, attention_mask: torch.Tensor | None) -> None:
    """Raise ValueError unless `batch` rows of `length` more tokens can continue this cache.

    They cannot if it is another model's cache, has another number of rows or no room left, or if the attention mask has
    another length.
    """
    past = cache.get_seq_length()
    if torch.compiler.is_compiling() or (isinstance(past, torch.Tensor) and past.device.type != "cpu"):
        return  # reading the length would break the graph, or wait for the device
    room = cache.get_max_length() if cache.layers else -1
    if 0 < room < past + length:
        raise ValueError(
            f"The cache has room for {room} tokens and holds {int(past)}, so {length} more do not fit; create it with "
            f"max_cache_len={int(past) + length} or more."
        )
    if past == 0:
        return
    if len(cache.layers) != num_layers:
        raise ValueError(
            f"The cache has {len(cache.layers)} layers but the model has {num_layers}; pass a cache of this model."
        )
    keys = cache.layers[0].keys
    if keys is not None and keys.ndim == 4 and keys.shape[0] != batch:
        raise ValueError(f"The cache holds {keys.shape[0]} rows but the input has {batch}; start with an empty cache.")
    if is_padding_mask(attention_mask) and attention_mask.shape[1] not in (past + length, room):
        raise ValueError(
            f"attention_mask covers {attention_mask.shape[1]} tokens, but the cache holds {int(past)} and {length} "
            f"are new; pass a mask of shape ({batch}, {int(past) + length})."
        )


def check_length(
    length: int, past: int | torch.Tensor, most: int, position_ids: torch.LongTensor | None = None
) -> None:
    """Raise ValueError if a row of `past` + `length` tokens is longer than `most`, the model's number of positions.

    With `position_ids`, as in packed rows, whose positions start again, only the highest position counts.
    """
    if torch.compiler.is_compiling() or (isinstance(past, torch.Tensor) and past.device.type != "cpu"):
        return
    if past + length <= most:
        return
    if position_ids is None:
        raise ValueError(
            f"The sequence of {int(past) + length} tokens is longer than the model's {most} positions "
            "(max_position_embeddings); pass fewer frames, or raise it in the config together with a RoPE scaling."
        )
    if position_ids.device.type != "meta" and (highest := int(position_ids.max())) >= most:
        raise ValueError(
            f"position_ids reach {highest}, but the model has the positions 0 to {most - 1} (max_position_embeddings); "
            "let them start again in every packed row, or pass fewer frames."
        )
