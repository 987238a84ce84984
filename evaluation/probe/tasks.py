"""The tasks that `toto probe --task NAME` knows: where the data is and how it is read, as plain data.

Any other dataset needs no entry here: `--dataset` takes a Hub id, an image or video folder, parquet or webdataset.
"""

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One row of the table.

    dataset: Hub id, "toyworld", or None where the Hub holds no copy that `datasets` reads without a script.
    kind: "image" or "video".
    label_column: None takes all of them. media_column: None takes the only one.
    train, validation, test: splits; a validation split of None is carved from train.
    group_by: regular expression for the part of an item's name that identifies its recording, which no carved split
    divides.
    num_frames: of a clip (1: an image). stride, fps: of a video, one of them None.
    views, crops: temporal windows and spatial crops whose probabilities the literature averages at test
    (`tokenization.video.view_positions`). note: further information.
    """

    dataset: str | None
    kind: str
    label_column: str | None = "label"
    media_column: str | None = None
    train: str = "train"
    validation: str | None = None
    test: str = "test"
    group_by: str | None = None
    num_frames: int = 1
    stride: int | None = None
    fps: float | None = None
    views: int = 1
    crops: int = 1
    note: str = ""


# The paper (arXiv 2501.05453) has the two whose comment says so.
TASKS = {
    # Paper, Table 7: attention probe of every layer, best one kept, 256 px (32 x 32 tokens); linear probe: Table 14.
    # The choices of Tables 3 to 6 are made on probes of layer 9 of the large model, mostly at 128 px.
    "imagenet-1k": Task(
        dataset="ILSVRC/imagenet-1k",
        kind="image",
        media_column="image",
        test="validation",
        note="The Hub's copy asks for an agreement, and its test labels are hidden (-1): the 50,000 validation "
        "images are the test set, as everywhere, so the layer is chosen on images carved from train. Centre crop; the "
        "paper is silent on crops at test and on the probe's augmentation.",
    ),
    "cifar10": Task(
        dataset="uoft-cs/cifar10",
        kind="image",
        media_column="img",
        note="50,000 / 10,000 images of 32 x 32, enlarged to the model's resolution.",
    ),
    "cifar100": Task(
        dataset="uoft-cs/cifar100",
        kind="image",
        label_column="fine_label",
        media_column="img",
        note="As cifar10; --label_column coarse_label asks for its 20 groups of classes instead.",
    ),
    # Paper, Table 8: attention probe of every layer, best one kept, 16 frames, 128 px (4,096 tokens); the head of
    # cross-attention and MLP: appendix.
    "kinetics-400": Task(
        dataset=None,
        kind="video",
        test="validation",
        num_frames=16,
        stride=4,
        views=5,
        crops=3,
        note="We know no whole copy on the Hub that datasets reads: pass --dataset FOLDER with train/ and "
        "validation/ of class folders. The validation videos are the test set, as everywhere. Views and crops at "
        "test: paper silent; 5 x 3 is VideoMAE's. A model that saw clips of the validation set in pre-training may "
        "not be scored.",
    ),
    "something-something-v2": Task(
        dataset=None,
        kind="video",
        test="validation",
        num_frames=16,
        stride=None,
        fps=6.0,
        views=2,
        crops=3,
        note="The Hub's HuggingFaceM4/something_something_v2 is a script for videos downloaded by hand, which "
        "datasets 4 and later do not run: pass --dataset FOLDER with train/ and validation/ of class folders. The "
        "validation videos are the test set, as everywhere. The videos run at 12 frames a second for 2 to 6 s, so "
        "that 16 frames are taken at 6 a second; videos shorter than 2.6 s are skipped. 2 x 3 views are VideoMAE's.",
    ),
    "ucf101": Task(
        dataset=None,
        kind="video",
        group_by=r"v_\w+_g\d+",
        num_frames=16,
        stride=4,
        views=5,
        crops=3,
        note="flwrlabs/ucf101 on the Hub holds single frames, no videos: pass --dataset FOLDER with train/ and test/ "
        "of class folders, by the official lists, of which list 1 is usual; groups of clips (g01 to g25 in the "
        "names) come from one video, and validation is carved by them. 5 x 3 views are VideoMAE's.",
    ),
    "toyworld": Task(
        dataset="toyworld",
        kind="video",
        label_column=None,
        validation="validation",
        num_frames=16,
        note="Rendered: three labels (10 digits, 8 textures, 8 motions), as many clips as requested.",
    ),
}


def get_task(name: str) -> Task:
    """Raises ValueError for a task that is not in the table, with the nearest name."""
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name.lower(), TASKS, n=1, cutoff=0.5)
    meant = f"; did you mean {near[0]}?" if near else "."
    raise ValueError(f"There is no task {name!r}; the tasks are {', '.join(TASKS)} (--dataset takes any data){meant}")


def apply_task(name: str, given: dict) -> dict:
    """Settings for `toto probe` (fields of `ProbeArgs`): the task's, overridden by those that the user gave.

    given: {field: value} of the flags that the user typed, None for none. A dataset given there replaces the task's;
    its column of images or videos is then found by type, since a copy may name it differently.

    Raises ValueError for an unknown task, or one without a copy on the Hub when no dataset is given.
    """
    task = get_task(name)
    given = {field: value for field, value in given.items() if value is not None}
    settings = {
        "dataset": task.dataset,
        "label_column": [task.label_column] if task.label_column else None,
        "image_column": None if "dataset" in given else task.media_column,
        "group_by": task.group_by,
        "train_split": task.train,
        "validation_split": task.validation,
        "test_split": task.test,
    }
    if task.kind == "video":
        settings |= {"num_frames": task.num_frames}
        settings |= {"views": [task.views, task.crops]} if task.views * task.crops > 1 else {}
        if not {"stride", "fps"} & set(given):
            settings |= {"fps": task.fps} if task.fps else {"stride": task.stride} if task.stride else {}
    settings |= given
    if settings["dataset"] is None:
        raise ValueError(f"{name} is not on the Hub in a form that can be read; give --dataset FOLDER. {task.note}")
    return {field: value for field, value in settings.items() if value is not None}
