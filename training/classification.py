"""Fine-tuning for classification: the classifier made from a pre-trained Toto, its objective, and its scores."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn.functional import cross_entropy
from transformers import PretrainedConfig

from modeling_toto import TotoConfig, TotoForImageClassification, TotoForVideoClassification
from tokenization import TotoProcessor
from tokenization.sequences import image_rows, video_rows
from tokenization.terminal.progress import without_load_report
from training.architectures import DropPath
from training.engine.device import in_own_memory
from training.engine.moments import load_tensors
from training.engine.objective import Objective
from training.engine.optim import Average
from training.engine.progress import finite
from training.finetune_args import FinetuneModelArgs
from training.flags import require
from training.rows.clips import Clips

# Architectures that a fine-tuning can start from.
CLASSES = ("TotoForCausalLM", "TotoModel", "TotoForImageClassification", "TotoForVideoClassification")


def model_and_tokenizer(args: FinetuneModelArgs, start: str, resumed: bool) -> tuple[TotoConfig, TotoProcessor]:
    """(TotoConfig of the classifier to train, TotoProcessor at its resolution).

    Raises:
        ValueError: not a Toto, a tokenizer with another number of codes than the model, or contradictory settings.
    """
    kinds = PretrainedConfig.get_config_dict(start)[0]
    (kind,) = kinds.get("architectures") or ["no model"]
    require(kind in CLASSES, f"{start} is a {kind}; only a Toto of tokens can be fine-tuned: {', '.join(CLASSES)}.")
    has_processor = (Path(start) / "processor_config.json").is_file() or not Path(start).is_dir()
    require(
        has_processor or args.tokenizer is not None,
        f"{start} has no visual tokenizer; pass --tokenizer with a folder or Hub id.",
    )
    processor = TotoProcessor.from_visual_tokenizer(start if args.tokenizer is None or resumed else args.tokenizer)
    try:
        config = TotoConfig.from_pretrained(start, **({} if resumed else args.fields()))
        if not resumed:
            config = _with_sizes(config, args, processor, start)
    except StrictDataclassError as error:  # transformers wraps the errors of a config
        raise ValueError(f"The settings of the model are not valid: {error.__cause__}") from error
    require(
        processor.num_codes == config.num_codes,
        f"The visual tokenizer has {processor.num_codes} codes, but the model has {config.num_codes}; pass the "
        "--tokenizer that the model was trained with.",
    )
    side = math.isqrt(config.tokens_per_frame)
    require(
        side**2 == config.tokens_per_frame,
        f"tokens_per_frame is {config.tokens_per_frame}; it must be a square number, because frames are square.",
    )
    return config, processor.with_sizes(side * processor.visual_tokenizer.config.stride, config.num_frames)


def _with_sizes(config: TotoConfig, args: FinetuneModelArgs, processor: TotoProcessor, start: str) -> TotoConfig:
    """The config with the requested resolution and number of frames, enough positions for them, and a feature layer."""
    stride = processor.visual_tokenizer.config.stride
    require(
        args.resolution is None or args.resolution % stride == 0,
        f"--resolution is {args.resolution}; it must be a multiple of the visual tokenizer's stride {stride}.",
    )
    fields = args.fields()
    fields["tokens_per_frame"] = (args.resolution // stride) ** 2 if args.resolution else config.tokens_per_frame
    fields["num_frames"] = args.num_frames or config.num_frames
    length = TotoConfig(tokens_per_frame=fields["tokens_per_frame"]).row_length(fields["num_frames"])
    fields["max_position_embeddings"] = max(config.max_position_embeddings, length)
    if config.feature_layer is None:  # half depth is for frozen features; here all blocks are trained (paper silent)
        fields["feature_layer"] = config.num_hidden_layers
    return TotoConfig.from_pretrained(start, **fields)


def name_classes(config: TotoConfig, classes: list[str]) -> None:
    """Set the number and names of the classes in the config, in place."""
    config.num_labels = len(classes)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: number for number, name in enumerate(classes)}
    config.problem_type = "single_label_classification"


def check_rows(config: TotoConfig, kind: str) -> None:
    """Check that the attention mode is possible for a row of this data.

    Raises:
        ValueError: a prefix longer than the row, or a next-token loss under full attention.
    """
    length = config.row_length(1 if kind == "image" else config.num_frames)
    if config.attention_mode == "prefix":
        require(config.prefix_length is not None, "--attention_mode prefix needs --prefix_length.")
        require(
            config.prefix_length < length,
            f"--prefix_length is {config.prefix_length}, but a row has only {length} ids; use a shorter prefix, or "
            "--attention_mode full.",
        )
    require(
        config.next_token_loss is None or config.attention_mode != "full",
        "--next_token_loss does not work with full attention, which sees all tokens; leave one of them out.",
    )


def load_classifier(start: str, config: TotoConfig, kind: str):
    """The float32 classifier of a checkpoint; its head is new if the checkpoint has none for these classes."""
    cls = TotoForImageClassification if kind == "image" else TotoForVideoClassification
    with without_load_report():
        model = cls.from_pretrained(start, config=config, dtype=torch.float32, ignore_mismatched_sizes=True)
    return in_own_memory(model)


class Classify(Objective):
    """Classification of clips, from ids or from pixels that are tokenized in every step.

    The four sums of a row are: label loss, 1, next-token loss (0 if there is none), and whether the prediction is
    correct. The checkpoint with the best validation accuracy (in a tie, with the lower loss) is never deleted. With
    averaged weights, the averages are validated, and saved in a checkpoint's model files.

    Args:
        model: unwrapped, after the accelerator has prepared it.
        processor: tokenizes rows of pixels.
        validation: clips as codes.
        batches: (rows per micro-batch on a device, micro-batches per step), from `micro_batches`.
        rows_per_step: on all devices.
        is_mixed: whether rows are blends of clips, which have no single class.
        drop_path: of the model's blocks, or None.
        ema_decay: decay of the weights' moving average, or None.
    """

    verb = "finetune"
    validates = True

    def __init__(
        self,
        model,
        processor,
        validation: Clips,
        batches: tuple[int, int],
        rows_per_step: int,
        *,
        is_mixed: bool,
        drop_path: DropPath | None,
        ema_decay: float | None,
    ):
        self.model, self.processor, self.validation, self.drop_path = model, processor, validation, drop_path
        self.micro, self.accumulation = batches
        self.tokens_per_step = rows_per_step * validation.codes[0].size
        self.flops_per_token = classifier_flops(model, len(validation.codes[0]))
        self.has_next = model.config.next_token_loss is not None
        self.is_mixed = is_mixed
        self.average = None if ema_decay is None else Average(model, ema_decay)
        self.best: dict | None = None
        self.validated: dict | None = None

    def losses(self, model, rows: list[dict], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if self.drop_path is not None:
            self.drop_path.draw([row["number"] for row in rows], device)
        if "codes" in rows[0]:
            codes = np.stack([row["codes"] for row in rows])  # (B, T, h, w)
        else:
            frames = np.concatenate([row["frames"] for row in rows])  # (B * T, R, R, 3)
            codes = self.processor.encode_frames(frames).unflatten(0, (len(rows), -1))
        targets = torch.from_numpy(np.stack([row["target"] for row in rows])).to(device)  # (B, C)
        labels = targets.argmax(1)
        ids = ids_of(codes, self.validation.kind).to(device)
        # A model with a next-token loss computes it if it is given labels.
        outputs = model(input_ids=ids, **({"labels": labels} if self.has_next else {}))
        nats = cross_entropy(outputs.logits.float(), targets, reduction="none")  # (B,), of soft targets
        loss, next_tokens = nats.mean(), torch.zeros(())
        if self.has_next:
            next_tokens = outputs.next_token_loss
            loss = loss + self.model.config.next_token_loss_weight * next_tokens
        right = outputs.logits.argmax(1) == labels
        ones = torch.ones(len(rows), dtype=torch.float64)
        sums = [nats.detach().cpu(), ones, ones * next_tokens.item(), right.cpu()]
        return loss / self.accumulation, torch.stack([each.double() for each in sums], 1)

    def figures(self, sums: list[float]) -> dict[str, float | None]:
        nats, rows, next_tokens, right = sums
        found = {"loss": nats / rows}
        found |= {"next_token_loss": next_tokens / rows} if self.has_next else {}
        return found | ({} if self.is_mixed else {"accuracy": right / rows})  # a mixed clip has no single class

    def stepped(self, step: int) -> None:
        if self.average is not None:
            self.average.update(step)

    def validate(self, accelerator, model, run: Path, step: int) -> dict:
        with self.saved_weights():
            found = score(accelerator, model, self.validation, self.micro)
        row = {"val_loss": finite(found["loss"]), "val_accuracy": found["correct"] / found["total"]}
        self.validated = {"step": step, **row}
        return row | {"val_rows": found["total"]}

    def starved(self, waited: float) -> str:
        return (
            f"The data is too slow for the device: {waited:.0%} of the time since the last line was spent waiting; "
            "raise --workers, or use --augment none, which tokenizes once."
        )

    def saved_weights(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    def saved_tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        return {} if self.average is None else {"weights": self.average.put_aside()}

    def load(self, folder: Path, loop_state: dict, distributed: bool) -> None:
        self.best = loop_state["best"]
        if (folder / "weights").is_dir():  # the model files hold averages
            weights = {name: weight.detach() for name, weight in self.model.named_parameters() if weight.requires_grad}
            load_tensors(folder / "weights", weights, distributed)

    def state_dict(self, step: int) -> dict:
        is_new = self.validated is not None and self.validated["step"] == step
        if is_new and (self.best is None or _rank(self.validated) > _rank(self.best)):
            self.best = self.validated
        return {"best": self.best}

    def spared(self) -> set[int]:
        return {self.best["step"]} if self.best else set()


def _rank(row: dict) -> tuple[float, float]:
    return row["val_accuracy"], -(row["val_loss"] if row["val_loss"] is not None else float("inf"))


def ids_of(codes, kind: str) -> torch.LongTensor:
    """Codes (B, T, h, w) -> rows of ids (B, 1 + T*h*w + 1), of images (T = 1) or of videos."""
    rows: Callable = image_rows if kind == "image" else video_rows
    return rows(codes)


@torch.no_grad()
def score(accelerator, model, clips: Clips, batch_size: int) -> dict:
    """Scores of a classifier on clips that are codes; the ranks share the work.

    Returns:
        {"correct", "total", "loss" (mean nats), "predictions" (N,) class numbers, "top5": share of clips whose class is
        among the five most likely}
    """
    was_training = model.training
    model.eval()
    rank, world, count = accelerator.process_index, accelerator.num_processes, len(clips)
    # nats, prediction, and number of classes that are more likely than the true one; 0 on the other ranks
    found = torch.zeros(count, 3, dtype=torch.float32)
    for start in range(0, count, batch_size * world):
        mine = torch.arange(start, min(count, start + batch_size * world))[rank::world]
        # Every rank makes the same number of calls, since those of a sharded model wait for each other.
        taken = mine if len(mine) else torch.zeros(1, dtype=torch.long)
        ids = ids_of(clips.codes[taken.numpy()], clips.kind).to(accelerator.device)
        with accelerator.autocast():
            logits = model(input_ids=ids).logits.float().cpu()
        if len(mine):
            labels = torch.from_numpy(clips.labels[mine.numpy()])
            nats = cross_entropy(logits, labels, reduction="none")
            above = (logits > logits.gather(1, labels[:, None])).sum(1)
            found[mine] = torch.stack([nats, logits.argmax(1).float(), above.float()], 1)
    model.train(was_training)
    found = accelerator.reduce(found.to(accelerator.device), "sum").cpu()
    predictions = found[:, 1].long().numpy()
    return {
        "correct": int((predictions == clips.labels).sum()),
        "total": count,
        "loss": float(found[:, 0].double().mean()),
        "predictions": predictions,
        "top5": float((found[:, 2] < 5).double().mean()),
    }


def classifier_flops(model, frames: int) -> float:
    """Training FLOPs per code token of a row of `frames` frames.

    The count has 6 per weight of the blocks that run, 6 per causal pair (12 under full attention), and the readout of a
    next-token loss. It leaves out the head and the visual tokenizer.
    """
    config = model.config
    has_next = config.next_token_loss is not None
    d, layers = config.hidden_size, config.num_hidden_layers if has_next else model.feature_layer
    weights = layers * (4 * d * d + 3 * d * config.intermediate_size) + has_next * config.vocab_size * d
    return 6 * weights + (12 if config.attention_mode == "full" else 6) * layers * d * config.row_length(frames)
