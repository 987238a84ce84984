"""The image processor: pictures of any mode and size to square RGB pixels in [0, 1].

All resizing and cropping of the project is done here. It needs only PIL and numpy; torchvision stays optional.
"""

import importlib
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature, get_size_dict
from transformers.image_utils import load_image
from transformers.processing_utils import ImagesKwargs

CENTRE = (0.5, 0.5)
ORIENTATION = 0x0112  # EXIF tag; 1 is upright


def name_in_package(name: str) -> None:
    """Make the module `name` an attribute of its package.

    Importing does so, but not transformers' loading of remote code. Without it, dill, with which `datasets` hashes
    functions, does not find the classes of the module by name and pickles them and all that they refer to.
    """
    package, _, module = name.rpartition(".")
    setattr(importlib.import_module(package), module, sys.modules[name])


name_in_package(__name__)


def opened(picture):
    """The PIL image in a file or at an http(s) address; anything but a path is returned as it is.

    Raises:
        ValueError: the file does not exist or is not a picture.
    """
    if not isinstance(picture, (str, Path)):
        return picture
    if str(picture).startswith(("http://", "https://")):
        return load_image(str(picture))
    try:
        with Image.open(picture) as image:
            image.load()
            return image
    except (OSError, SyntaxError) as error:  # PIL raises a SyntaxError for some damaged PNG files
        raise ValueError(
            f"{picture} is not a picture that PIL can read ({error}); pass clips, which it does not read, as `videos`."
        ) from error


def _array_to_pil(array: np.ndarray, keep_channels: bool = False) -> Image.Image:
    """The 8-bit RGB picture of an array (H, W), (H, W, C) or (C, H, W); C is 1, 3 or 4 (alpha is dropped).

    With keep_channels, grey stays grey and alpha is kept.
    """
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)):
        raise ValueError(
            f"A picture must be (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, not {array.shape}."
        )
    if 0 in array.shape:
        raise ValueError(f"A picture must have pixels, got the shape {array.shape}.")
    if array.dtype.kind not in "bui" and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"A picture must hold numbers, uint8 or floats in [0, 1], not {array.dtype}.")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = (array // 257).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # also catches NaN
            raise ValueError("Float pictures must lie in [0, 1]; divide by the largest possible value, or pass uint8.")
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        if not (array.min() >= 0 and array.max() <= 255):
            raise ValueError(f"{array.dtype} pictures must lie in 0..255; pass uint8, uint16, or floats in [0, 1].")
        array = array.astype(np.uint8)
    grey = array.ndim == 2 or array.shape[-1] == 1
    if keep_channels:
        return Image.fromarray(np.ascontiguousarray(array.reshape(array.shape[:2]) if grey else array))
    if grey:
        array = np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=-1)
    return Image.fromarray(np.ascontiguousarray(array[..., :3]))


def to_rgb(image, keep_channels: bool = False) -> Image.Image:
    """Any picture as upright 8-bit RGB; for an animation, its current frame (the first one after opening).

    Grey is repeated over the channels and palettes are resolved. Alpha and transparent colours are dropped, which
    shows the colours below them, as in torchvision's loaders. EXIF rotation is applied. 16-bit values (PNG, TIFF) are
    scaled to 8 bits, where PIL's convert("RGB") would clip them to white. Floats (TIFF) are read as 0..1 or, if any is
    above 1, as 0..255.

    Args:
        image: PIL image, or numpy array / torch tensor (H, W), (H, W, C), (C, H, W): uint8, uint16, or float in [0, 1].
        keep_channels: keep grey and RGBA pictures as they are, in 8 bits.
    Raises:
        ValueError: any other type, shape or range.
    """
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()  # numpy has no bfloat16
    if isinstance(image, np.ndarray):
        return _array_to_pil(image, keep_channels)
    if not isinstance(image, Image.Image):
        raise ValueError(f"A picture must be a PIL image, a numpy array or a torch tensor, not {type(image).__name__}.")
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        values = np.asarray(image)
        return _array_to_pil(values / 255 if values.max(initial=0) > 1 else values, keep_channels)
    if image.mode.startswith("I"):  # I;16 and its byte orders; older PIL opens 16-bit PNG as 32-bit I
        values = np.asarray(image).astype(np.int64)
        low, high = values.min(initial=0), values.max(initial=0)
        wide = low >= 0 and high < 2**16 and (high > 255 or image.mode != "I")
        return _array_to_pil(values.astype(np.uint16) if wide else values, keep_channels)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA").convert("RGB")  # PIL warns about the direct conversion
    return image if keep_channels and image.mode in ("L", "RGBA") else image.convert("RGB")


def resize_and_crop(
    image, resolution: int, position: tuple[float, float] = CENTRE, pixel_aspect: float = 1
) -> np.ndarray:
    """Resize the shorter side to `resolution` and crop a square (paper Sec. 3.4), in one antialiased bicubic step.

    Args:
        image: see `to_rgb`; or a path or address.
        resolution: side R of the result in pixels.
        position: (y, x) of the crop as fractions 0..1 of the free space; (0.5, 0.5) is the centre.
        pixel_aspect: width of a pixel on show over its height; not 1 in anamorphic videos. The square is one on show.
    Returns:
        uint8 (R, R, 3).
    """
    return _square(to_rgb(opened(image)), resolution, position, pixel_aspect)


def _square(image: Image.Image, resolution: int, position: tuple[float, float], pixel_aspect: float = 1) -> np.ndarray:
    """`resize_and_crop` for any number of channels: uint8 (R, R, C), or (R, R) if the picture is grey."""
    width, height = image.size[0] * pixel_aspect, image.size[1]
    side = min(width, height)
    top, left = (height - side) * position[0], (width - side) * position[1]
    # Resizing only the square box of the source equals resizing all of it and cropping, without the wasted work.
    box = (left, top, left + side, top + side)
    if pixel_aspect != 1:
        box = (left / pixel_aspect, top, min((left + side) / pixel_aspect, image.size[0]), top + side)
    return np.asarray(image.resize((resolution, resolution), Image.Resampling.BICUBIC, box=box))


def limit_detail(frames: np.ndarray, detail: int) -> np.ndarray:
    """Frames reduced to `detail` pixels per side and enlarged again: the same number of tokens with less detail.

    A control that separates the effect of resolution from that of the number of tokens.

    Args:
        frames: uint8 (T, R, R, 3).
    Returns:
        uint8 (T, R, R, 3).
    """
    side = (frames.shape[1], frames.shape[1])
    small = [Image.fromarray(frame).resize((detail, detail), Image.Resampling.BICUBIC) for frame in frames]
    return np.stack([np.asarray(picture.resize(side, Image.Resampling.BICUBIC)) for picture in small])


def list_of_images(images) -> list:
    """A flat list of the pictures in one picture, a list, or a batch (B, H, W, C) / (B, C, H, W).

    Raises:
        ValueError: the list or batch is empty.
    """
    if isinstance(images, (list, tuple, np.ndarray, torch.Tensor)) and len(images) == 0:
        raise ValueError("There is no picture to encode: the list or batch is empty.")
    if isinstance(images, (list, tuple)):
        return [picture for item in images for picture in list_of_images(item)]
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        return list(images)
    return [images]


class TotoImageProcessorKwargs(ImagesKwargs, total=False):
    """resolution: side of the square result in pixels. crop_position: (y, x) of the crop as fractions 0..1."""

    resolution: int
    crop_position: tuple | list


def _same_side(kwargs: dict) -> dict:
    """`kwargs` with `resolution` set from transformers' `size` and `crop_size`, if they are given.

    Raises:
        ValueError: a size is not square, or two of the three disagree.
    """
    given = {name: kwargs[name] for name in ("resolution", "size", "crop_size") if kwargs.get(name) is not None}
    sides = {side for value in given.values() for side in dict(get_size_dict(value)).values() if side is not None}
    if len(sides) > 1:
        raise ValueError(f"The result is one square, but {given} name several sides; pass only resolution.")
    return {**kwargs, "resolution": sides.pop()} if sides else kwargs


class TotoImageProcessor(PilBackend):
    """Pictures -> `pixel_values` (B, 3, R, R): float32 RGB in [0, 1], without normalisation.

    `TotoImageProcessor(resolution=64)(images, return_tensors="pt")` accepts paths and any input of `to_rgb`, alone, in
    a list or stacked. The shorter side is resized to R, then the R x R square at the centre or at `crop_position` is
    cropped (paper Sec. 3.4). R can also be given as transformers' `size` or `crop_size`. do_convert_rgb, do_resize,
    do_rescale and do_normalize switch the steps as in other image processors; visual tokenizers need the defaults.
    """

    valid_kwargs = TotoImageProcessorKwargs
    model_input_names = ["pixel_values"]
    resolution = 64
    crop_position = CENTRE
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    resample = Image.Resampling.BICUBIC
    # Recorded in saved files, so that a repository on the Hub loads this class without the package.
    _auto_class = "AutoImageProcessor"

    def __init__(self, **kwargs):
        super().__init__(**_same_side(kwargs))

    def preprocess(self, images, *args, **kwargs) -> BatchFeature:
        return super().preprocess(images, *args, **_same_side(kwargs))

    def _standardize_kwargs(self, crop_position=CENTRE, **kwargs) -> dict:
        return {**super()._standardize_kwargs(**kwargs), "crop_position": list(crop_position)}  # a list, as JSON has it

    def _validate_preprocess_kwargs(self, **kwargs) -> None:
        side = kwargs["resolution"]  # the base class requires a size for resizing
        super()._validate_preprocess_kwargs(**{**kwargs, "size": kwargs["size"] or {"height": side, "width": side}})

    def _prepare_images_structure(self, images, expected_ndims: int = 3):
        return list_of_images(images)

    def process_image(self, image, do_convert_rgb: bool | None = None, **kwargs) -> Image.Image:
        return to_rgb(opened(image), keep_channels=not do_convert_rgb)

    def _preprocess(
        self,
        images: list[Image.Image],
        resolution: int,
        crop_position,
        do_resize: bool,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool | None,
        image_mean,
        image_std,
        return_tensors=None,
        **kwargs,
    ) -> BatchFeature:
        pixels = []
        for image in images:
            array = _square(image, resolution, tuple(crop_position)) if do_resize else np.asarray(image)
            array = np.atleast_3d(array).transpose(2, 0, 1).astype(np.float32)
            if do_rescale:
                array /= np.float32(1 / rescale_factor)  # divide by 255: its inverse is not exact in float32
            if do_normalize:
                array = self.normalize(array, image_mean, image_std)
            pixels.append(array)
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)
