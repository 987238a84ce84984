"""Tasks are data: complete, consistent, and under what the user says; views are spread and averaged."""

import dataclasses
import re

import pytest

from evaluation.probe.command import ProbeArgs
from evaluation.probe.tasks import TASKS, apply_task, get_task
from tokenization.toyworld.world import ToyWorld

NEEDED = {"imagenet-1k", "kinetics-400", "cifar10", "cifar100", "something-something-v2", "ucf101", "toyworld"}


def test_the_table_is_complete_and_consistent():
    assert set(TASKS) == NEEDED
    for name, task in TASKS.items():
        assert task.kind in ("image", "video") and task.note.endswith("."), name
        assert task.kind == "video" or (task.num_frames == task.views == 1 and task.stride is None is task.fps), name
        assert task.stride is None or task.fps is None, name
        assert task.test != task.validation, f"{name}: what chooses may not be what is scored"
        assert (task.dataset is None) <= ("--dataset FOLDER" in task.note), name
    assert set(ToyWorld().label_names) == {"digit", "texture", "motion"}, "the note of toyworld names three"


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_settings_are_fields_of_the_probe(name):
    settings = apply_task(name, {"dataset": "folder"})
    assert set(settings) <= {field.name for field in dataclasses.fields(ProbeArgs)}
    ProbeArgs(model="model", output="a.json", **settings)


def test_the_user_wins():
    assert apply_task("cifar100", {}) == {
        "dataset": "uoft-cs/cifar100",
        "label_column": ["fine_label"],
        "image_column": "img",
        "train_split": "train",
        "test_split": "test",
    }
    mine = apply_task("cifar100", {"label_column": ["coarse_label"], "seed": 3, "max_train": None})
    assert mine["label_column"] == ["coarse_label"] and mine["seed"] == 3 and "max_train" not in mine
    copy = apply_task("cifar100", {"dataset": "pictures"})
    assert copy["dataset"] == "pictures" and "image_column" not in copy
    assert apply_task("cifar100", {"dataset": "pictures", "image_column": "photo"})["image_column"] == "photo"


def test_clips_of_one_ucf101_recording_are_one_group():
    pattern = apply_task("ucf101", {"dataset": "folder"})["group_by"]
    names = [f"train/Diving/v_Diving_g{group}_c{clip}.avi" for group in ("01", "02") for clip in ("01", "02")]
    assert [re.search(pattern, name).group() for name in names] == ["v_Diving_g01"] * 2 + ["v_Diving_g02"] * 2


def test_time_steps():
    folder = {"dataset": "folder"}
    assert apply_task("kinetics-400", folder)["stride"] == 4 and "fps" not in apply_task("kinetics-400", folder)
    assert apply_task("something-something-v2", folder)["fps"] == 6
    mine = apply_task("something-something-v2", folder | {"stride": 2})
    assert mine["stride"] == 2 and "fps" not in mine, "a stride would not be used next to a rate"
    assert "stride" not in apply_task("kinetics-400", folder | {"fps": 7.5})


def test_unknown_tasks_and_tasks_without_data_are_one_sentence():
    with pytest.raises(ValueError, match=r"no task 'cifar-10'; the tasks are imagenet-1k, .* did you mean cifar10\?"):
        get_task("cifar-10")
    with pytest.raises(ValueError, match="did you mean imagenet-1k"):
        apply_task("ImageNet", {})
    with pytest.raises(ValueError, match=r"takes any data\)\.$"):
        get_task("zzz")
    with pytest.raises(ValueError, match=r"kinetics-400 is not on the Hub .*; give --dataset FOLDER"):
        apply_task("kinetics-400", {"dataset": None})
