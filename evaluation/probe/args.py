"""Flags of `toto probe`, and the values that follow from the model, the data or a task."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from tokenization.sampling import TimeStepArgs

BASELINES = ("pixels", "untrained", "random_filters", "histogram", "hog")
FRAME_ORDERS = ("ordered", "reversed", "shuffled", "middle")


@dataclass(frozen=True)
class ProbeArgs(TimeStepArgs):
    model: str | None = field(
        default=None,
        metadata={"help": "Hub id, Hugging Face folder or run folder of the backbone: Toto, or any vision model"},
    )
    output: str | None = field(
        default=None, metadata={"help": "result file to write (.json); a plot (.png) is written next to it"}
    )
    task: str | None = field(
        default=None,
        metadata={
            "help": "imagenet-1k, kinetics-400, cifar10, cifar100, something-something-v2, ucf101 or toyworld: sets "
            "the dataset, its columns, splits and sampling, unless a flag does"
        },
    )
    dataset: str = field(
        default="toyworld", metadata={"help": "toyworld, a Hub id, a folder, parquet or webdataset, cater:FOLDER"}
    )
    label_column: list[str] | None = field(
        default=None,
        metadata={
            "help": "label columns, of whole numbers, text or booleans; by default all that have class names, or the "
            "only one"
        },
    )
    layers: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={
            "help": "all, best (search all, report the one chosen on validation), or layer numbers; 0 = embeddings"
        },
    )
    heads: list[str] = field(
        default_factory=lambda: ["linear", "attention"],
        metadata={"help": "linear, attention, cross_attention_mlp; ridge, logistic, knn as checks"},
    )
    baselines: list[str] | None = field(
        default=None,
        metadata={
            "help": "pixels, untrained, random_filters (2,048 convolution filters), histogram (of a Toto's codes), "
            "hog, or none; by default pixels and untrained"
        },
    )
    train_split: str = field(default="train", metadata={"help": "split that the heads train on"})
    validation_split: str | None = field(
        default=None,
        metadata={
            "help": "split to choose layer and head on; by default the dataset's, or a part of the training split"
        },
    )
    test_split: str | None = field(
        default=None,
        metadata={"help": "split to score; by default the dataset's, or its validation split, or a part of train"},
    )
    image_column: str | None = field(default=None, metadata={"help": "column of the images or videos, if ambiguous"})
    config_name: str | None = field(default=None, metadata={"help": "configuration of a dataset that has several"})
    max_train: int = field(default=5000, metadata={"help": "maximum number of clips or images to train on"})
    max_eval: int = field(
        default=2000,
        metadata={"help": "maximum number of clips or images (with --views: videos) to test on; validation: a quarter"},
    )
    num_frames: int | None = field(default=None, metadata={"help": "frames per clip; the model's own by default"})
    epochs: int | None = field(
        default=None,
        metadata={"help": "epochs of the heads (default: 60, cross_attention_mlp 20)"},
    )
    max_tokens: int = field(default=64, metadata={"help": "tokens per clip, after averaging, for the heads on tokens"})
    rope_base: float | None = field(
        default=None,
        metadata={
            "help": "RoPE base other than the one that the Toto was trained with: a control, marked in the result; the "
            "paper trains further after such a change (Table 4), as toto pretrain --init_from does"
        },
    )
    resolution: int | None = field(
        default=None, metadata={"help": "side of the frames in pixels; by default what the model was trained on"}
    )
    detail: int | None = field(
        default=None,
        metadata={
            "help": "control: reduce frames to this many pixels a side, then enlarge them again (as many tokens, less "
            "detail)"
        },
    )
    frame_order: str = field(
        default="ordered",
        metadata={"help": "ordered; or as a control for the role of time: reversed, shuffled, or middle (one frame)"},
    )
    group_by: str | None = field(
        default=None,
        metadata={
            "help": "regular expression on the clips' names, such as '^[^_]+'; clips with the same match are never on "
            "both sides of a carved split, and intervals of test scores resample them as wholes"
        },
    )
    leave_one_group_out: bool = field(
        default=False,
        metadata={
            "help": "score each group of the test split with heads trained on the training split and on the other test "
            "groups"
        },
    )
    allow_seen: bool = field(
        default=False,
        metadata={
            "help": "a control, marked in the result: test items that the model was trained on, which are otherwise "
            "refused"
        },
    )
    average_clips: bool = field(
        default=False,
        metadata={"help": "score videos, not clips: the mean of the class probabilities of all clips of a video"},
    )
    views: list[int] | None = field(
        default=None,
        metadata={
            "help": "windows and crops of a test video, such as 5 3, or of a test image, such as 1 3, whose "
            "probabilities are averaged; a training video then gives its middle window. Default: those of --task; "
            "without a task, all windows that do not overlap, with the centre crop"
        },
    )
    batch_norm: bool = field(
        default=False, metadata={"help": "batch normalisation before the linear heads, as in MAE's linear probe"}
    )
    predictions: bool = field(
        default=False, metadata={"help": "keep the predicted class of every test clip in the result (for --compare)"}
    )
    compare: list[str] | None = field(
        default=None,
        metadata={
            "help": "result files of earlier probes: instead of probing, write one table and figure of all of them "
            "(--output, .png), with paired intervals if they hold --predictions of the same clips"
        },
    )
    feature_cache: str | None = field(
        default=None,
        metadata={"help": "folder that keeps features between probes (default: toto_features in HF_HOME), or none"},
    )
    stream: bool = field(
        default=False,
        metadata={
            "help": "keep token ids, not features, and run the backbone again in every epoch of the heads: the same "
            "numbers up to rounding, for data whose features fit on no disk"
        },
    )
    batch_size: int = field(default=8, metadata={"help": "clips in one forward pass of the backbone"})
    seed: int = field(default=0, metadata={"help": "seed of the heads, their batches and the untrained model"})
    split_seed: int = field(
        default=0,
        metadata={"help": "seed of carved splits, which --seed does not change, so that seeds are comparable"},
    )

    def __post_init__(self):
        from evaluation.heads import BANKS, HEADS

        super().__post_init__()
        if self.compare is None:
            for name, flag in (("model", "--model MODEL"), ("output", "--output FILE.json")):
                if getattr(self, name) is None:
                    raise ValueError(f"{flag} is missing; name what to probe and where to write.")
            if Path(self.output).suffix != ".json":
                raise ValueError(f"--output {self.output} must end in .json.")
        for flag, given, known in (
            ("heads", self.heads, HEADS),
            ("baselines", self.baselines, (*BASELINES, "none")),
            ("frame_order", [self.frame_order], FRAME_ORDERS),
        ):
            for name in given or []:
                if name not in known:
                    raise ValueError(f"--{flag} has no {name!r}; choose from {', '.join(known)}.")
        if self.baselines is not None and "none" in self.baselines and len(self.baselines) > 1:
            raise ValueError(f"--baselines is {' '.join(self.baselines)}; leave out none, or all the others.")
        if self.views is not None and (len(self.views) != 2 or min(self.views) < 1):
            raise ValueError("--views takes two numbers of 1 or more, windows and crops, such as 5 3.")
        if self.views is not None and self.average_clips:
            raise ValueError("--average_clips averages all windows, and --views only some; leave one of them out.")
        if self.leave_one_group_out and self.group_by is None:
            raise ValueError("--leave_one_group_out needs --group_by, which says what a group is.")
        kept = [head for head in self.heads if head not in BANKS]
        if self.stream and kept:
            raise ValueError(f"--stream keeps no features, which the heads {', '.join(kept)} read; leave out either.")
        if self.stream and self.leave_one_group_out:
            raise ValueError("--leave_one_group_out trains on kept features only; leave --stream out.")
        if self.rope_base is not None and not self.rope_base > 0:
            raise ValueError(f"--rope_base is {self.rope_base:g}; it must be above 0.")
        counts = ("max_train", "max_eval", "max_tokens", "batch_size", "resolution", "detail", "num_frames", "epochs")
        for name in counts:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 1.")
        if self.layers not in (["all"], ["best"]) and not all(layer.isdigit() for layer in self.layers):
            raise ValueError(f"--layers takes all, best or layer numbers, not {' '.join(self.layers)!r}.")


def refuse_idle_flags(args: ProbeArgs, argv: list[str]) -> None:
    """Raises ValueError for a typed flag that would have no effect next to the others."""
    from evaluation.heads import BANKS
    from training.flags import refuse_idle, typed_flags

    typed = typed_flags(argv)
    if args.compare is not None:
        others = typed - {"compare", "output"}
        refuse_idle(argv, tuple(sorted(others)), "with --compare, which reads result files only")
    if not set(args.heads) & set(BANKS):
        refuse_idle(argv, ("epochs",), f"on the heads {', '.join(args.heads)}, which are closed forms")
    if "linear" not in args.heads:
        refuse_idle(argv, ("batch_norm",), "without linear heads")
    if "fps" in typed:
        refuse_idle(argv, ("stride",), "next to --fps")
    if args.dataset.split(":")[0] == "toyworld":
        refuse_idle(argv, ("stride", "fps", "resize", "image_column", "config_name"), "on toyworld, which is drawn")


def idle_flags(args: ProbeArgs, argv: list[str], kind: str) -> list[str]:
    """Sentences on typed flags that had no effect on data of this kind, "image" or "video", or with these heads."""
    from evaluation.heads import TOKEN_HEADS
    from training.flags import idle

    found = []
    if kind == "image" and (
        flags := idle(argv, "num_frames", "stride", "fps", "resize", "frame_order", "average_clips")
    ):
        found.append(f"{flags}: no effect on images, each of which is one frame")
    if not set(args.heads) & set(TOKEN_HEADS) and (flags := idle(argv, "max_tokens")):
        found.append(f"{flags}: no effect without heads on tokens ({', '.join(TOKEN_HEADS)})")
    return found


def of_task(args: ProbeArgs, argv: list[str]) -> ProbeArgs:
    """The settings of --task, overridden by the flags that were typed."""
    from evaluation.probe.tasks import apply_task
    from training.flags import typed_flags

    typed = typed_flags(argv)
    given = {name: value for name, value in vars(args).items() if name in typed}
    settings = apply_task(args.task, given)
    if Path(settings["dataset"]).is_file():  # one file is one split, whatever the task calls its splits
        settings = {key: value for key, value in settings.items() if not key.endswith("_split") or key in given}
    if ("average_clips" in given or Path(settings["dataset"]).is_file()) and "views" not in given:
        settings.pop("views", None)
    return replace(args, **settings)


def choose_layers(asked: list[str], depth: int, name: str) -> list[int]:
    """Layer numbers for --layers. Raises ValueError for one that the model does not have."""
    if asked in (["all"], ["best"]):
        return list(range(depth + 1))
    layers = sorted({int(layer) for layer in asked})
    if layers[-1] > depth:
        raise ValueError(f"{name} has layers 0 (embeddings) to {depth}, not {layers[-1]}; see --layers.")
    return layers
