"""Splits, groups, label columns and class numbers: properties that probes and fine-tuning both rely on."""

from types import SimpleNamespace

import numpy as np
import pytest

from tokenization.sources.labelled import carve, group_of, label_columns, number_classes, open_splits

UCF = [f"Archery/v_Archery_g{group:02d}_c{clip:02d}.avi" for group in range(1, 26) for clip in range(1, 6)]
GROUP = r"v_\w+_g\d+"


def source(numbers=(), text=(), no_labels=None, **named):
    label_names = {name: list(classes) for name, classes in named.items()} | {name: [] for name in numbers}
    return SimpleNamespace(label_names=label_names, text_labels=list(text), no_labels=no_labels or {})


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_on_both_sides(seed):
    inside = carve(UCF, "train", seed, GROUP)
    groups = np.array([group_of(name, GROUP) for name in UCF])
    assert len(set(groups)) == 25 and not set(groups[inside]) & set(groups[~inside])
    assert inside.sum() == 25, "a fifth of 125 files is five whole groups"


def test_what_is_carved_follows_the_seed_and_the_limits():
    names = [f"{k}.png" for k in range(100)]
    first, again, other = (carve(names, "train", seed, None) for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any() and first.sum() == 20
    assert carve(names, "train", 0, None, most=7).sum() == 7
    assert carve(names, "train", 0, None, most=7, keep=50).sum() == 50
    assert (carve(names[::-1], "train", 0, None)[::-1] == first).all(), "the order of listing does not matter"
    with pytest.raises(ValueError, match="one group"):
        carve(["v_A_g01_c01", "v_A_g01_c02"], "train", 0, GROUP)
    with pytest.raises(ValueError, match=r"does not match the name 'x.avi'"):
        carve(["x.avi", "y.avi"], "train", 0, GROUP)


def opener(*splits):
    def open_split(name, part):
        if name not in splits:
            raise ValueError(f"no split {name!r}")
        return f"{name} as {part}"

    return open_split


def test_splits_are_found_by_their_usual_names():
    assert open_splits(opener("train", "val", "test"), "d", "train") == (
        ("train", "train as train"), ("val", "val as validation"), ("test", "test as test"),
    )  # fmt: skip
    _, validation, test = open_splits(opener("train", "valid"), "d", "train")
    assert validation is None and test == ("valid", "valid as test"), "the only other split is the test"
    _, validation, test = open_splits(opener("train", "valid"), "d", "train", "valid")
    assert validation == ("valid", "valid as validation") and test is None, "it was named for validation"
    with pytest.raises(ValueError, match="no split 'held_out'"):
        open_splits(opener("train"), "d", "train", test="held_out")
    with pytest.raises(ValueError, match="--train_split and --test_split both name the split 'test'"):
        open_splits(opener("test"), "d", "test", test="test")


def test_a_split_of_two_names_is_one_split():
    """The folder val is also the split validation, and must not serve as both train and validation."""
    named = {"train": "train", "val": "val", "validation": "val"}

    def open_split(name, part):
        if name not in named:
            raise ValueError(f"no split {name!r}")
        return SimpleNamespace(split_name=named[name])

    train, validation, test = open_splits(open_split, "d", "val")
    assert train[0] == "val" and validation is None and test is None
    assert [found and found[0] for found in open_splits(open_split, "d", "train")] == ["train", None, "val"]
    with pytest.raises(ValueError, match="--test_split val is a split that another flag names too"):
        open_splits(open_split, "d", "train", "validation", "val")


def test_one_file_is_one_split(tmp_path):
    file = tmp_path / "rows.parquet"
    file.touch()
    assert open_splits(opener("train", "test"), str(file), "train")[1:] == (None, None)
    with pytest.raises(ValueError, match="one file and therefore one split"):
        open_splits(opener("train", "test"), str(file), "train", test="test")


def test_which_columns_are_labels():
    assert label_columns(source(digit="01", motion="ab", numbers=["fold"]), None, "d") == ["digit", "motion"]
    assert label_columns(source(numbers=["label", "fold"]), None, "d") == ["label"]
    assert label_columns(source(numbers=["fold"], text=["caption"]), None, "d") == ["fold"]
    assert label_columns(source(numbers=["row"], text=["label"]), None, "d") == ["label"]
    assert label_columns(source(text=["breed"]), None, "d") == ["breed"]
    assert label_columns(source(label="ab", text=["breed"]), ["breed"], "d") == ["breed"]
    for has, asked, words in [
        (source(text=["breed", "caption"]), None, "several label columns"),
        (source(), None, "no label column; put its files into class folders"),
        (source(label="ab"), ["colour"], "no label column 'colour'; it has label"),
        (source(no_labels={"age": "'age' holds fractions"}), ["age"], "the column 'age' holds fractions"),
        (source(no_labels={"label": "'label' holds fractions"}), None, "the column 'label' holds fractions"),
    ]:
        with pytest.raises(ValueError, match=words):
            label_columns(has, asked, "d")


def test_text_becomes_classes_in_sorted_order():
    labels = [np.array(["dog", "cat", "dog", "eel"]), np.array(["cat", "ape"]), np.array(["eel"])]
    numbered, classes = number_classes("breed", labels, [None] * 3)
    assert classes == ["ape", "cat", "dog", "eel"]
    assert [part.tolist() for part in numbered] == [[2, 1, 2, 3], [1, 0], [3]]
    numbered, classes = number_classes("big", [np.array(["True", "False"]), np.array(["True"])], [None] * 2)
    assert classes == ["False", "True"] and numbered[0].tolist() == [1, 0]


def test_classes_are_matched_by_name():
    numbered, classes = number_classes("label", [np.array([0, 1, 2]), np.array([1, 0])], [["a", "b", "c"], ["b", "c"]])
    assert classes == ["a", "b", "c"] and numbered[1].tolist() == [2, 1]
    with pytest.raises(ValueError, match="No two clips have the same 'id'"):
        number_classes("id", [np.array([1, 2]), np.array([3])], [None, None])
    with pytest.raises(ValueError, match="All training clips have the same 'label'"):
        number_classes("label", [np.array([0, 0]), np.array([1])], [["a", "b"]] * 2)
    with pytest.raises(ValueError, match="hold 2 of 6 classes"):
        number_classes("label", [np.array([0, 1, 1])], [list("abcdef")])
