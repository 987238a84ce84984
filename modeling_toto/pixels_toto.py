"""Pixels as input: `pixel_values` become rows of ids, made by the processor that was saved with the model."""

import torch
from transformers import AutoProcessor


class PixelInputMixin:
    """Mixin of the models that also take `pixel_values`, as transformers' vision pipelines and Trainer examples do.

    Fields:
        processor: The TotoProcessor that makes ids of pixels. It is loaded from the folder or repository of the model
            when the first pixels arrive; for a model that was not loaded from one, set it. It is not part of the
            model's weights.
    """

    processor = None

    def ids_of_pixels(self, pixel_values: torch.FloatTensor, is_clip: bool, *others) -> torch.LongTensor:
        """Rows of ids (B, L), on the device of the pixels.

        Args:
            pixel_values: RGB in [0, 1], as the image processor makes them. (B, T, 3, H, W): a row for each clip.
                (N, 3, H, W): a row for each image, or with `is_clip` the frames of clips: N / num_frames clips if N
                is a multiple of config.num_frames, or one clip if N is smaller. (The video pipeline joins the clips
                of a batch in this way.)
            others: Other inputs of the call, which must be None.
        Raises:
            ValueError: If the pixels have another shape or range, ids or embeddings are passed too, or no processor
                is known.
        """
        if any(other is not None for other in others):
            raise ValueError("pixel_values are passed together with ids or embeddings; pass one of them.")
        shape, frames = tuple(pixel_values.shape), self.config.num_frames
        if pixel_values.ndim not in (4, 5) or shape[-3] != 3 or not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values are {pixel_values.dtype} {shape}; pass floats (images, 3, H, W) or "
                "(clips, frames, 3, H, W), as the image processor makes them."
            )
        if pixel_values.ndim == 4 and is_clip:
            if len(pixel_values) > frames and len(pixel_values) % frames:
                raise ValueError(
                    f"pixel_values hold {len(pixel_values)} frames, which are not clips of the model's {frames} frames;"
                    " pass (clips, frames, 3, H, W)."
                )
            pixel_values = pixel_values.unflatten(0, (-1, min(frames, len(pixel_values))))
        low, high = pixel_values.aminmax()
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # false for NaN
            raise ValueError(
                f"pixel_values reach from {float(low):.4g} to {float(high):.4g}, not from 0 to 1; prepare them with "
                "the image processor that was saved with the model."
            )
        if self.processor is None:
            self.processor = self._saved_processor()
        # exact for pixels that were rounded to bfloat16 or float16, as pipelines do
        pictures = (pixel_values.float() * 255).round().to("cpu", torch.uint8).movedim(-3, -1).numpy()
        named = {"videos": list(pictures)} if pixel_values.ndim == 5 else {"images": list(pictures)}
        return self.processor.to(pixel_values.device)(**named, return_tensors="pt")["input_ids"].to(pixel_values.device)

    def _saved_processor(self):
        """The processor in the folder or repository that the model was loaded from."""
        place = self.config._name_or_path
        advice = "pass input_ids, or set model.processor to the TotoProcessor that the model was trained with."
        if not place:
            raise ValueError(f"The model was not loaded from a folder, so its visual tokenizer is not known; {advice}")
        is_remote = type(self).__module__.startswith("transformers_modules.")
        try:
            processor = AutoProcessor.from_pretrained(place, trust_remote_code=is_remote)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"The processor of {place} was not loaded, so its visual tokenizer is not known: save it there with "
                "processor.save_pretrained, `import tokenization` where that package is installed, or else load the "
                f"model with trust_remote_code=True; or {advice}"
            ) from error
        if not hasattr(processor, "visual_tokenizer"):
            raise ValueError(f"{place} holds a {type(processor).__name__} without a visual tokenizer; {advice}")
        return processor


__all__ = ["PixelInputMixin"]
