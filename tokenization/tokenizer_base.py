"""What both visual tokenizers share: the checks of their inputs, and where `push_to_hub` puts them."""

import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import has_file

SUBFOLDER = "visual_tokenizer"  # in a repository or folder that holds a model and its processor


def check_pixels(pixel_values: torch.Tensor, stride: int, check_values: bool = True) -> None:
    """Raise if a visual tokenizer cannot encode these pictures. One pass over the values finds both min and max.

    A traced graph (torch.compile, torch.export) cannot branch on values: there only type and shape are checked.

    Args:
        pixel_values: should be a float tensor (B, 3, H, W), RGB in [0, 1], H and W multiples of `stride`.
        stride: side in pixels of the square that one code stands for.
        check_values: False for pictures that were bytes, and so are in range; a GPU is then not waited for.

    Raises:
        ValueError: wrong type, shape or size; NaN or infinity; values more than 1e-3 outside [0, 1].
    """
    if not isinstance(pixel_values, torch.Tensor):
        raise ValueError(
            f"pixel_values must be a torch tensor (B, 3, H, W), got {type(pixel_values).__name__}; "
            "prepare pictures with the processor or image processor."
        )
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values must be floats in [0, 1], got {pixel_values.dtype}; divide 8-bit pictures by 255 first."
        )
    shape = tuple(pixel_values.shape)
    if len(shape) != 4 or shape[1] != 3:
        raise ValueError(
            f"pixel_values must have the shape (B, 3, H, W), got {shape}; "
            "put the RGB channels second and fold the frames of a video into the batch."
        )
    if pixel_values.numel() == 0 or shape[2] % stride or shape[3] % stride:
        raise ValueError(
            f"pixel_values must hold at least one picture with height and width multiples of {stride}, "
            f"got {shape}; resize or crop them."
        )
    if not check_values or torch.compiler.is_compiling():
        return
    low, high = (bound.item() for bound in torch.aminmax(pixel_values.detach()))
    # aminmax propagates NaN, and every comparison with NaN is false: hence `not (... <= ...)`.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(
            f"pixel_values must be finite and within [0, 1], got values from {low:.4g} to {high:.4g}; "
            "divide 8-bit pictures by 255 and do not normalise them."
        )


def check_codes(ids: torch.Tensor, num_codes: int) -> None:
    """Raise unless these are integers 0..num_codes-1, of any shape. A traced graph checks the type only.

    Raises:
        ValueError: not an integer tensor, or a code outside the codebook.
    """
    if not isinstance(ids, torch.Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        got = ids.dtype if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise ValueError(f"codes must be an integer tensor, got {got}.")
    if ids.numel() == 0 or torch.compiler.is_compiling():
        return
    # int64 first: min and max are not defined for uint16, the type of token shards.
    low, high = (int(bound) for bound in torch.aminmax(ids.long()))
    if low < 0 or high >= num_codes:
        raise ValueError(
            f"codes must lie within the codebook 0..{num_codes - 1}, got values from {low} to {high}; "
            "remove special ids and subtract the code offset first."
        )


class VisualTokenizer(PreTrainedModel):
    """Base class of the visual tokenizers: models with `encode` (pixels to codes) and `decode` (codes to pixels)."""

    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def check_code_grids(self, codes: torch.LongTensor) -> None:
        """Raise unless `codes` are integers (B, h, w) within the codebook.

        Raises:
            ValueError: not integers, another shape, or a code outside the codebook.
        """
        check_codes(codes, self.config.num_codes)
        if codes.ndim != 3:
            raise ValueError(f"codes must have the shape (B, h, w), got {tuple(codes.shape)}.")

    def _upload_modified_files(self, working_dir, repo_id, files_timestamps, *args, **kwargs):
        """Upload to `visual_tokenizer/` in the repository of a Toto model, to the top level of any other.

        At the top level, config.json and model.safetensors would replace those of the Toto model.
        """
        token = kwargs.get("token")
        if has_file(repo_id, "config.json", token=token):
            there, _ = PreTrainedConfig.get_config_dict(repo_id, token=token)
            if there.get("model_type") == "toto":
                with tempfile.TemporaryDirectory() as folder:
                    self.save_pretrained(Path(folder) / SUBFOLDER)
                    return super()._upload_modified_files(folder, repo_id, {}, *args, **kwargs)
        return super()._upload_modified_files(working_dir, repo_id, files_timestamps, *args, **kwargs)
