"""The processor: pixels to rows of ids and back, with an image processor and a visual tokenizer saved as one object.

transformers stores only the *name* of a processor's tokenizer model, which is a dangling reference after a push. Here
the weights are saved in `visual_tokenizer/`, next to the files of the model.
"""

import hashlib
import json
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils import cached_file

from .image_processing_toto import TotoImageProcessor, list_of_images, name_in_package, resize_and_crop
from .modeling_dvae import TotoDVAEModel
from .modeling_vqgan import TotoVQGANModel
from .precision import bf16_encoder, without_tf32
from .sampling import Sampling
from .sequences import END_ID, PAD_ID, codes_of, image_rows, video_rows
from .tokenizer_base import SUBFOLDER
from .video import read_clip

name_in_package(__name__)

VISUAL_TOKENIZERS = {"toto_vqgan": TotoVQGANModel, "toto_dvae": TotoDVAEModel}
SHIPPED = Path(__file__).parent / "weights" / "toto-tokenizer-64"
_IMAGE_KWARGS = set(TotoImageProcessor.valid_kwargs.__annotations__)
_HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


def shipped() -> Path:
    """The folder of the small tokenizer that is shipped with this package.

    Raises:
        FileNotFoundError: the folder is not there.
    """
    if not (SHIPPED / "config.json").is_file():
        raise FileNotFoundError(
            f"The shipped tokenizer is not at {SHIPPED}; install the modeling-toto package, or name a tokenizer."
        )
    return SHIPPED


def load_visual_tokenizer(path, subfolder: str = "", **hub_kwargs) -> PreTrainedModel:
    """The visual tokenizer in a folder or Hub id, in fp32 and eval mode; the config's model_type selects its class.

    AutoModel is not used, so that a processor loaded as remote code needs no registration and no second consent.

    Raises:
        ValueError: the config is not that of a visual tokenizer. OSError: there is no such folder or id.
    """
    config, _ = PreTrainedConfig.get_config_dict(path, subfolder=subfolder, **hub_kwargs)
    model_type = config.get("model_type")
    if model_type not in VISUAL_TOKENIZERS:
        raise ValueError(
            f"{path} holds no visual tokenizer: its model_type is {model_type!r}, not {' or '.join(VISUAL_TOKENIZERS)}."
        )
    model = VISUAL_TOKENIZERS[model_type].from_pretrained(path, subfolder=subfolder, dtype=torch.float32, **hub_kwargs)
    return model.eval()


class TotoImagesKwargs(TypedDict, total=False):
    """crop_position: (y, x) of the crop as fractions 0..1; default: that of the image processor."""

    crop_position: tuple | list
    return_tensors: str


class TotoVideosKwargs(TypedDict, total=False):
    """How a video *file* is sampled: every `stride`-th frame (default and paper: 4), or `fps` frames per second.

    resize: "decoder" lets FFmpeg reduce large frames before PIL resizes them; see `sampling.Sampling`.
    Every frame of an array is used, as with transformers' `do_sample_frames=False`.
    """

    stride: int
    fps: float | None
    resize: str
    do_sample_frames: bool | None
    return_tensors: str


class TotoProcessorKwargs(ProcessingKwargs, total=False):
    """add_end_token: False for a prompt that is to be continued. return_tensors: "pt" or "np"."""

    images_kwargs: TotoImagesKwargs
    videos_kwargs: TotoVideosKwargs
    add_end_token: bool
    return_tensors: str


class NoTextTokenizer:
    """Takes the place of a text tokenizer, which transformers expects in every processor; it defines no tokens."""

    eos_token_id = bos_token_id = pad_token_id = None


class TotoProcessor(ProcessorMixin):
    """`processor(images=..., videos=...) -> input_ids, attention_mask`; `processor.decode(ids) -> uint8 frames`.

    Args:
        image_processor: TotoImageProcessor; its resolution R determines the grid, (R / stride, R / stride).
        visual_tokenizer: TotoVQGANModel or TotoDVAEModel; default: the small one that is shipped with this package.
        num_frames: frames taken from a video file (paper: 16).

    Raises:
        ValueError: R is not a multiple of the visual tokenizer's stride.
    """

    valid_processor_kwargs = TotoProcessorKwargs
    model_input_names = ["input_ids", "attention_mask"]
    add_end_token = True
    return_tensors = "pt"

    # Recorded in saved files, so that a repository on the Hub loads this class without the package.
    _auto_class = "AutoProcessor"

    def __init__(self, image_processor, visual_tokenizer=None, num_frames: int = 16):
        super().__init__(image_processor)
        if visual_tokenizer is None:
            visual_tokenizer = load_visual_tokenizer(shipped())
        stride, resolution = visual_tokenizer.config.stride, image_processor.resolution
        if resolution % stride:
            raise ValueError(f"resolution {resolution} is not a multiple of the visual tokenizer's stride {stride}.")
        self.visual_tokenizer = visual_tokenizer.eval()
        self.num_frames = num_frames
        self._bf16: tuple[list, PreTrainedModel] | None = None

    @classmethod
    def get_attributes(cls) -> list[str]:
        # transformers would treat `visual_tokenizer` as a text tokenizer, because of its name.
        return ["image_processor"]

    @classmethod
    def default(cls) -> "TotoProcessor":
        """A processor with the small tokenizer that is shipped with this package (8 x 8 tokens for 64 x 64 pixels)."""
        return cls.from_visual_tokenizer(shipped())

    @classmethod
    def from_visual_tokenizer(cls, path, **hub_kwargs) -> "TotoProcessor":
        """A processor from a folder or Hub id that holds a visual tokenizer or a whole processor.

        Raises:
            FileNotFoundError: there is no such folder or id, or it holds neither.
        """
        try:
            found = [
                cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
                for name in ("processor_config.json", "config.json")
            ]
        except OSError as error:
            raise FileNotFoundError(
                f"There is no tokenizer {path}: no such folder and no such id on the Hub."
            ) from error
        if found[0]:
            return cls.from_pretrained(path, **hub_kwargs)
        if not found[1]:
            raise FileNotFoundError(f"{path} holds neither a visual tokenizer nor a processor: no config.json in it.")
        tokenizer = load_visual_tokenizer(path, **hub_kwargs)
        return cls(TotoImageProcessor(resolution=tokenizer.config.resolution), tokenizer)

    def with_sizes(self, resolution: int | None = None, num_frames: int | None = None) -> "TotoProcessor":
        """The same tokenizer at another side R in pixels, or for another number of frames."""
        image_processor = TotoImageProcessor(resolution=resolution or self.resolution)
        return type(self)(image_processor, self.visual_tokenizer, num_frames or self.num_frames)

    # --- properties of the tokenizer

    @property
    def tokenizer(self) -> NoTextTokenizer:
        """What the Trainer reads special tokens from (`processing_class=processor`): the model keeps its own."""
        return NoTextTokenizer()

    @property
    def resolution(self) -> int:
        """Side R of the frames in pixels."""
        return self.image_processor.resolution

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens per frame as (h, w)."""
        side = self.resolution // self.visual_tokenizer.config.stride
        return side, side

    @property
    def num_codes(self) -> int:
        """Size K of the codebook; ids reach CODE_OFFSET + K - 1."""
        return self.visual_tokenizer.config.num_codes

    @property
    def fingerprint(self) -> str:
        """16 hex digits of a sha256 of the tokenizer's class, names and fp32 weights; if equal, codes are equal."""
        digest = hashlib.sha256(type(self.visual_tokenizer).__name__.encode())
        for name, tensor in sorted(self.visual_tokenizer.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def to(self, device) -> "TotoProcessor":
        """Move the visual tokenizer to a device; pictures and ids stay on the CPU."""
        self.visual_tokenizer.to(device)
        return self

    # --- pixels to ids

    def encode_frames(self, frames, batch_size: int | None = None, exact: bool = True) -> torch.LongTensor:
        """Codes of frames that are already R x R.

        Args:
            frames: uint8 (N, R, R, 3), numpy or torch.
            batch_size: frames at a time; default: 8 on a CPU, where more is slower, and 64 elsewhere.
            exact: compute in fp32. False computes in bf16: faster where `precision.bf16_is_fast`, some codes differ.
        Returns:
            codes (N, h, w), int64, on the CPU.
        Raises:
            ValueError: wrong type or shape.
        """
        if not isinstance(frames, (np.ndarray, torch.Tensor)):
            raise ValueError(f"frames must be a uint8 array (N, R, R, 3), not {type(frames).__name__}.")
        side, is_uint8 = self.resolution, frames.dtype in (np.uint8, torch.uint8)
        if frames.ndim != 4 or tuple(frames.shape[1:]) != (side, side, 3) or not is_uint8:
            raise ValueError(
                f"frames must be uint8 (N, {side}, {side}, 3), not {frames.dtype} {tuple(frames.shape)}; "
                "call the processor itself, which resizes and crops."
            )
        frames = torch.as_tensor(frames)
        if not len(frames):
            return torch.empty(0, *self.grid, dtype=torch.long)
        batches = frames.split(batch_size or (8 if self.visual_tokenizer.device.type == "cpu" else 64))
        # outside inference mode: an ordinary tensor that training can use
        return torch.cat([self.encode_batch(batch, exact).cpu() for batch in batches])

    def encode_batch(self, frames: torch.Tensor, exact: bool = True) -> torch.LongTensor:
        """Codes (B, h, w) of a batch of frames, on the tokenizer's device, which is not waited for.

        Args:
            frames: uint8 (B, R, R, 3) on the CPU; from pinned memory the copy to a GPU does not wait either, and then
                they must not change until the codes are there. exact: see `encode_frames`.
        """
        self.visual_tokenizer.to(memory_format=torch.channels_last)  # 1.5 times as fast on a CPU, with the same codes
        tokenizer = self.visual_tokenizer if exact else self._in_bf16()
        frames = frames.to(self.visual_tokenizer.device, non_blocking=frames.is_pinned())
        pixels = frames.permute(0, 3, 1, 2).float() / 255  # (B, 3, R, R), channels last in memory
        with torch.inference_mode(), without_tf32():
            return tokenizer.encode(pixels, check_values=False)  # which were bytes

    def _in_bf16(self) -> PreTrainedModel:
        """The bf16 copy of the visual tokenizer, copied again after its weights were moved or changed."""
        state = [(weight.data_ptr(), weight._version) for weight in self.visual_tokenizer.parameters()]
        if self._bf16 is None or self._bf16[0] != state:
            self._bf16 = state, bf16_encoder(self.visual_tokenizer)
        return self._bf16[1]

    def _video_frames(self, video, sampled: dict) -> np.ndarray:
        """Frames, uint8 (T, R, R, 3), of a path, an array (T, H, W, 3) or a list of pictures.

        sampled: fields of Sampling, for a path.
        """
        if isinstance(video, (str, Path)):
            return read_clip(video, Sampling(self.num_frames, resolution=self.resolution, **sampled)).frames
        return np.stack([resize_and_crop(frame, self.resolution) for frame in list_of_images(video)])

    def __call__(self, images=None, videos=None, **kwargs: Unpack[TotoProcessorKwargs]) -> BatchFeature:
        """Rows of ids of the images, followed by those of the videos.

        Args:
            images: one picture or several (paths, PIL images, arrays): each becomes a row `3, codes, 2`.
            videos: (T, H, W, 3) or (B, T, H, W, 3) uint8, a path, or a list of these: each becomes a row `1, codes, 2`.
            kwargs: see TotoProcessorKwargs; those of images and videos can also be passed in `images_kwargs` and
                `videos_kwargs`.
        Returns:
            input_ids (B, L) int64 and attention_mask (B, L); shorter rows are padded on the right with id 0.
        Raises:
            ValueError: neither images nor videos are given, or some cannot be encoded.
            TypeError: an unknown argument.
        """
        if images is None and videos is None:
            raise ValueError("There is nothing to encode; pass images or videos.")
        known = {"add_end_token", *TotoImagesKwargs.__annotations__, *TotoVideosKwargs.__annotations__}
        if unknown := sorted(set(kwargs) - known - set(TotoProcessorKwargs.__annotations__)):
            raise TypeError(
                f"TotoProcessor does not accept {', '.join(unknown)}; it accepts {', '.join(sorted(known))}."
            )
        merged = self._merge_kwargs(**kwargs)
        end, rows = merged["add_end_token"], []
        if images is not None:
            position = tuple(merged["images_kwargs"].get("crop_position", self.image_processor.crop_position))
            pictures = [resize_and_crop(image, self.resolution, position) for image in list_of_images(images)]
            rows += list(image_rows(self.encode_frames(np.stack(pictures)), end=end))
        if videos is not None:
            given = merged["videos_kwargs"]
            sampled = {name: given[name] for name in ("stride", "fps", "resize") if name in given}
            clips = [self._video_frames(video, sampled) for video in _list_of_videos(videos)]
            codes = self.encode_frames(np.concatenate(clips)).split([len(clip) for clip in clips])
            rows += [video_rows(code[None], end=end)[0] for code in codes]
        input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD_ID)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
        data = {"input_ids": input_ids.numpy(), "attention_mask": mask.numpy()}
        return BatchFeature(data, tensor_type=merged["return_tensors"])

    # --- ids to pixels

    @torch.inference_mode()
    def decode(self, ids, batch_size: int = 64) -> np.ndarray:
        """Frames of a row of ids (L,) -> uint8 (T, R, R, 3), or of rows (B, L) -> (B, T, R, R, 3).

        Special tokens are skipped; ids after an end token are not decoded.

        Raises:
            ValueError: not integers, a row that does not end on a whole frame, or rows of different lengths.
        """
        ids = torch.as_tensor(ids).cpu()
        if ids.is_floating_point():
            raise ValueError(f"ids must be integers, not {ids.dtype}.")
        ids = ids.long()
        ended = (ids == END_ID).long().cumsum(-1) > 0
        codes = codes_of(ids.masked_fill(ended, PAD_ID), self.grid)  # (B, T, h, w)
        device = self.visual_tokenizer.device
        pixels = [
            self.visual_tokenizer.decode(batch.to(device)).cpu() for batch in codes.flatten(0, 1).split(batch_size)
        ]
        frames = (torch.cat(pixels).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        frames = frames.reshape(*codes.shape[:2], *frames.shape[1:]).numpy()
        return frames[0] if ids.dim() == 1 else frames

    def batch_decode(self, *args, **kwargs):
        """There is no text in ids; `decode` gives their frames.

        Raises:
            ValueError: always.
        """
        raise ValueError("Ids of a TotoProcessor are pictures, not text; call decode(ids), which also takes (B, L).")

    # --- saving and loading

    def __reduce__(self):
        """Pickle the content: settings, class, configuration and weights.

        Equal processors give equal bytes, whatever they were used for and wherever they were loaded from, so that
        `datasets` finds what it has computed with them. The copy is on the CPU.
        """
        tokenizer = self.visual_tokenizer
        settings = {"image_processor": self.image_processor.to_dict(), "config": tokenizer.config.to_diff_dict()}
        for fields in settings.values():
            for name in _OF_A_FILE & set(fields):
                del fields[name]
        settings["num_frames"] = self.num_frames
        # as text, in which numbers are the same whether they were given or read from a file
        text = json.dumps(settings, sort_keys=True)
        weights = [
            (name, str(weight.dtype).split(".")[-1], tuple(weight.shape), _bytes_of(weight))
            for name, weight in sorted(tokenizer.state_dict().items())
        ]
        return _restored, (type(self), type(self.image_processor), type(tokenizer), text, weights)

    def to_dict(self) -> dict:
        return {
            "processor_class": type(self).__name__,
            "auto_map": {"AutoProcessor": f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"},
            "image_processor": self.image_processor.to_dict(),
            "num_frames": self.num_frames,
        }

    def save_pretrained(self, save_directory, push_to_hub: bool = False, repo_id: str | None = None, **kwargs):
        """Write processor_config.json, the code that it needs, and the tokenizer in `visual_tokenizer/`.

        The files of a model saved in the same folder are not changed. `max_shard_size`, which push_to_hub passes, is
        ignored.
        """
        kwargs.pop("max_shard_size", None)
        self.visual_tokenizer.save_pretrained(Path(save_directory) / SUBFOLDER)
        files = super().save_pretrained(save_directory)
        if push_to_hub:
            self.push_to_hub(repo_id or Path(save_directory).name, **kwargs)
        return files

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        subfolder = kwargs.get("subfolder") or ""
        hub_kwargs = {key: kwargs[key] for key in _HUB_KWARGS if key in kwargs}
        image_kwargs = {key: kwargs[key] for key in _IMAGE_KWARGS & set(kwargs)}
        image_processor = TotoImageProcessor.from_dict(
            (processor_dict or {}).get("image_processor", {}), **image_kwargs
        )
        tokenizer_folder = f"{subfolder}/{SUBFOLDER}" if subfolder else SUBFOLDER
        return [
            image_processor,
            load_visual_tokenizer(pretrained_model_name_or_path, subfolder=tokenizer_folder, **hub_kwargs),
        ]


# Fields that saving adds to a configuration or image processor.
_OF_A_FILE = {"_name_or_path", "architectures", "auto_map", "dtype", "processor_class", "transformers_version"}


def _bytes_of(weight: torch.Tensor) -> bytes:
    """The values of a tensor in raster order, whatever its memory format."""
    return weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _restored(cls, image_processor_class, model_class, text: str, weights: list) -> TotoProcessor:
    """The processor that was pickled; see `TotoProcessor.__reduce__`."""
    settings = json.loads(text)
    with torch.random.fork_rng(devices=[]):  # a new model draws weights, which are replaced
        tokenizer = model_class(model_class.config_class.from_dict(settings["config"]))
    state = {
        name: torch.frombuffer(bytearray(content), dtype=getattr(torch, dtype)).reshape(shape)
        for name, dtype, shape, content in weights
    }
    tokenizer.load_state_dict(state, assign=True)
    image_processor = image_processor_class.from_dict(settings["image_processor"])
    return cls(image_processor, tokenizer, settings["num_frames"])


def _list_of_videos(videos) -> list:
    """A list of the given video or videos.

    Raises:
        ValueError: there is none, or the input is not a video.
    """
    if isinstance(videos, (str, Path)):
        return [videos]
    if not isinstance(videos, (np.ndarray, torch.Tensor, list, tuple)):
        raise ValueError(f"A video must be a path, an array (T, H, W, 3) or a list, not {type(videos).__name__}.")
    if len(videos) == 0:
        raise ValueError("There is no video to encode: the list or array is empty.")
    if isinstance(videos, (np.ndarray, torch.Tensor)):
        return list(videos) if videos.ndim == 5 else [videos]
    first = videos[0]
    is_frame = not isinstance(first, (str, Path, list, tuple)) and getattr(first, "ndim", 3) == 3
    return [videos] if is_frame else list(videos)
