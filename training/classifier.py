"""The classifier that is fine-tuned: its config and tokenizer from a pre-trained Toto, checked, and its weights."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from modeling_toto import TotoConfig, TotoForImageClassification, TotoForVideoClassification
from tokenization import TotoProcessor

from .args import require
from .device import in_own_memory
from .finetune_args import FinetuneModelArgs

# What a fine-tuning can begin from.
CLASSES = ("TotoForCausalLM", "TotoModel", "TotoForImageClassification", "TotoForVideoClassification")


def model_and_tokenizer(args: FinetuneModelArgs, start: str, resumed: bool) -> tuple[TotoConfig, TotoProcessor]:
    """(TotoConfig of the classifier to train, TotoProcessor at its resolution).

    Raises:
        ValueError: no Toto, a tokenizer whose codes are not the model's, or settings that contradict each other.
    """
    kinds = PretrainedConfig.get_config_dict(start)[0]
    (kind,) = kinds.get("architectures") or ["no model"]
    require(kind in CLASSES, f"{start} is a {kind}, and only a Toto of tokens can be fine-tuned: {', '.join(CLASSES)}.")
    has_processor = (Path(start) / "processor_config.json").is_file() or not Path(start).is_dir()
    require(
        has_processor or args.tokenizer is not None,
        f"{start} comes without its visual tokenizer; name it with --tokenizer (a folder or Hub id).",
    )
    processor = TotoProcessor.from_visual_tokenizer(start if args.tokenizer is None or resumed else args.tokenizer)
    try:
        config = TotoConfig.from_pretrained(start, **({} if resumed else args.fields()))
        if not resumed:
            config = _with_sizes(config, args, processor, start)
    except StrictDataclassError as error:  # transformers' own wrapping of what a config refuses
        raise ValueError(f"The model's settings are refused: {error.__cause__}") from error
    require(
        processor.num_codes == config.num_codes,
        f"The visual tokenizer has {processor.num_codes} codes and the model {config.num_codes}: name the one that "
        "the model was trained with (--tokenizer).",
    )
    side = math.isqrt(config.tokens_per_frame)
    require(
        side**2 == config.tokens_per_frame,
        f"Frames are square, and tokens_per_frame {config.tokens_per_frame} is no square number.",
    )
    return config, processor.with_sizes(side * processor.visual_tokenizer.config.stride, config.num_frames)


def _with_sizes(config: TotoConfig, args: FinetuneModelArgs, processor: TotoProcessor, start: str) -> TotoConfig:
    """The config at the asked resolution and number of frames, with the positions that they need, and its layer."""
    stride = processor.visual_tokenizer.config.stride
    require(
        args.resolution is None or args.resolution % stride == 0,
        f"--resolution {args.resolution} is no multiple of the visual tokenizer's stride {stride}.",
    )
    fields = args.fields()
    fields["tokens_per_frame"] = (args.resolution // stride) ** 2 if args.resolution else config.tokens_per_frame
    fields["num_frames"] = args.num_frames or config.num_frames
    length = TotoConfig(tokens_per_frame=fields["tokens_per_frame"]).row_length(fields["num_frames"])
    fields["max_position_embeddings"] = max(config.max_position_embeddings, length)
    if config.feature_layer is None:  # half depth is for frozen features; here all blocks learn (paper silent)
        fields["feature_layer"] = config.num_hidden_layers
    return TotoConfig.from_pretrained(start, **fields)


def name_classes(config: TotoConfig, classes: list[str]) -> None:
    """Give the config a head of these classes, in place."""
    config.num_labels = len(classes)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: number for number, name in enumerate(classes)}
    config.problem_type = "single_label_classification"


def check_rows(config: TotoConfig, kind: str) -> None:
    """Refuse attention that a row of this data cannot have.

    Raises:
        ValueError: a prefix that is longer than the row, or next tokens under full attention.
    """
    length = config.row_length(1 if kind == "image" else config.num_frames)
    if config.attention_mode == "prefix":
        require(config.prefix_length is not None, "--attention_mode prefix needs --prefix_length.")
        require(
            config.prefix_length < length,
            f"--prefix_length {config.prefix_length} is longer than a row, which has {length} ids; take "
            "--attention_mode full, or a shorter prefix.",
        )
    require(
        config.next_token_loss is None or config.attention_mode != "full",
        "There are no next tokens to learn under full attention, where all are seen; leave --next_token_loss out.",
    )


def load_classifier(start: str, config: TotoConfig, kind: str):
    """The float32 classifier of a checkpoint; a head for other classes is new."""
    cls = TotoForImageClassification if kind == "image" else TotoForVideoClassification
    model = cls.from_pretrained(start, config=config, dtype=torch.float32, ignore_mismatched_sizes=True)
    return in_own_memory(model)
