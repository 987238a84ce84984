"""How many frames of a clip a model is given, and how many it draws, where a caller does not say."""


def frame_counts(config, num_prompt_frames: int | None, num_frames: int | None) -> tuple[int, int]:
    """(prompt frames, new frames) for a TotoConfig; None is replaced by a default from the model's number of frames.

    Together they may exceed the model's context, from which the oldest frames are then dropped. Raises ValueError if
    the prompt alone exceeds it.
    """
    most = config.context_frames
    half = max(1, min(config.num_frames // 2, most))
    if num_prompt_frames is not None:
        prompt = num_prompt_frames
    else:  # leave room for the new frames if they fit
        prompt = half if num_frames is None or num_frames >= most else min(half, most - num_frames)
    if prompt > most:
        raise ValueError(
            f"num_prompt_frames is {prompt}, but the context of the model has only {most} frames; give fewer. Any "
            "number of frames may be generated."
        )
    return prompt, num_frames or max(1, min(config.num_frames, most) - prompt)
