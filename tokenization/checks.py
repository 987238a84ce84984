"""Input checks shared by the visual tokenizers: every wrong picture or code is refused with one sentence."""

import torch


def check_pixels(pixel_values: torch.Tensor, stride: int) -> None:
    """Refuse pictures that a visual tokenizer cannot encode. One pass over the values (min and max together).

    A traced graph (torch.compile, torch.export) cannot branch on values: there only type and shape are checked.

    Args:
        pixel_values: should be a float tensor (B, 3, H, W), RGB in [0, 1], H and W multiples of `stride`.
        stride: side of the pixel square behind one token.

    Raises:
        ValueError: wrong type, shape or size; NaN or infinity; values more than 1e-3 outside [0, 1].
    """
    if not isinstance(pixel_values, torch.Tensor):
        raise ValueError(
            f"pixel_values must be a torch tensor (B, 3, H, W), got {type(pixel_values).__name__}; "
            "let the processor or image processor prepare pictures."
        )
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values must be floats in [0, 1], got {pixel_values.dtype}; divide 8-bit pictures by 255 first."
        )
    shape = tuple(pixel_values.shape)
    if len(shape) != 4 or shape[1] != 3:
        raise ValueError(
            f"pixel_values must have the shape (B, 3, H, W), got {shape}; "
            "put the RGB channels second and fold a video's frames into the batch."
        )
    if pixel_values.numel() == 0 or shape[2] % stride or shape[3] % stride:
        raise ValueError(
            f"pixel_values must hold at least one picture with height and width multiples of {stride}, "
            f"got {shape}; resize or crop them."
        )
    if torch.compiler.is_compiling():
        return
    low, high = (bound.item() for bound in torch.aminmax(pixel_values.detach()))
    # aminmax hands NaN through, and every comparison with NaN is false: hence `not (... <= ...)`.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(
            f"pixel_values must be finite and within [0, 1], got values from {low:.4g} to {high:.4g}; "
            "divide 8-bit pictures by 255 and do not normalise them."
        )


def check_codes(ids: torch.Tensor, num_codes: int) -> None:
    """Refuse anything but integers 0..num_codes-1, of any shape (in a traced graph anything but integers).

    Raises:
        ValueError: not an integer tensor, or a code outside the codebook.
    """
    if not isinstance(ids, torch.Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        got = ids.dtype if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise ValueError(f"codes must be an integer tensor, got {got}.")
    if ids.numel() == 0 or torch.compiler.is_compiling():
        return
    # int64 first: min and max are not defined for the uint16 that token shards use.
    low, high = (int(bound) for bound in torch.aminmax(ids.long()))
    if low < 0 or high >= num_codes:
        raise ValueError(
            f"codes must lie within the codebook 0..{num_codes - 1}, got values from {low} to {high}; "
            "take the special ids and the code offset off first."
        )
