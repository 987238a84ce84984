"""How likely a Toto finds clips, token by token and in both directions of time; teacher-forced and exact."""

from __future__ import annotations

import torch

from tokenization.sequences import video_rows


@torch.no_grad()
def surprise_of(model, ids: torch.LongTensor) -> torch.Tensor:
    """Negative log-likelihood of every code, given all the true ones before it, over the whole vocabulary.

    The mean over a frame is what `score_frames` gives for a clip inside the context.

    Args:
        model: TotoForCausalLM.
        ids: (B, 1 + T * h * w), a start token and T whole frames, without end token.
    Returns:
        float32 (B, T, h, w) in nats, on the CPU.
    Raises:
        ValueError: a model that predicts no next token, a clip longer than its context, or rows that are not whole
            frames.
    """
    check_predicts(model)
    config = model.config
    frames, rest = divmod(ids.shape[1] - 1, config.tokens_per_frame)
    if rest or not frames:
        raise ValueError(
            f"ids has rows of {ids.shape[1]} ids; pass a start token and whole frames of {config.tokens_per_frame} ids."
        )
    if frames > config.context_frames:
        raise ValueError(
            f"The clip has {frames} frames, but the context of the model has only {config.context_frames}; pass fewer."
        )
    was_training = model.training
    model.eval()
    try:
        ids = ids.to(model.device)
        losses = model(input_ids=ids, labels=ids, use_cache=False, skip_logits=True).token_losses
    finally:
        model.train(was_training)
    return losses[:, 1:].float().cpu().unflatten(1, (frames, *config.grid_size))


def check_predicts(model) -> None:
    """Raises ValueError for a model without a next-token head, or one whose attention shows it the next token."""
    from modeling_toto import TotoForCausalLM

    if not isinstance(model, TotoForCausalLM):
        raise ValueError(f"A {type(model).__name__} predicts no next token; name a model of toto pretrain.")
    if model.config.attention_mode != "causal":
        raise ValueError(
            f"The model has {model.config.attention_mode} attention, under which not every token is predicted; load it "
            "with attention_mode='causal'."
        )


def frame_surprise(model, codes) -> torch.Tensor:
    """Nats per code of each frame: codes (B, T, h, w), torch or numpy -> float64 (B, T).

    Raises:
        ValueError: as `surprise_of`.
    """
    return surprise_of(model, video_rows(codes, end=False)).double().mean((2, 3))


def arrow_of(model, codes) -> torch.Tensor:
    """Log-likelihood of each clip minus that of the same frames in reversed order, in nats per code; exact.

    The tokenizer encodes frames one by one, so the reversed clip has the same codes in reversed frames. Positive: the
    model finds the true direction of time more likely. The first frame of either direction, which nothing precedes,
    counts like all others. Times T * h * w it is the difference of the clips' log-likelihoods.

    Args:
        model: TotoForCausalLM. codes: integers (B, T, h, w), torch or numpy.
    Returns:
        float64 (B,).
    Raises:
        ValueError: as `surprise_of`.
    """
    codes = torch.as_tensor(codes)
    return (frame_surprise(model, codes.flip(1)) - frame_surprise(model, codes)).mean(1)
