"""Folders of real pairs for `toto prompt score --data`, from local copies of two collections of data.

`python -m studies.prompt_pairs --dense media/dense --davis media/davis_mini --output out/pairs` writes `depth/`,
`flow/` and `segmentation/`, each with image/, label/ and, of flow, second/.

- dense: a folder NAME per pair with img0.png, img1.png and truth.npz (`valid`, and `flow` or `disparity` in pixels).
- davis: the tree of DAVIS-2016, JPEGImages/480p/SEQUENCE/00000.jpg with Annotations/480p/SEQUENCE/00000.png.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tokenization.terminal.command_line import parse_flags

SEQUENCES = ["blackswan", "camel", "car-shadow", "dog"]  # each has one large object near the centre


@dataclass(frozen=True)
class PromptPairsArgs:
    output: str = field(metadata={"help": "folder to write; it must not exist yet"})
    dense: str | None = field(default=None, metadata={"help": "folder of image pairs with dense truth"})
    davis: str | None = field(default=None, metadata={"help": "folder of sequences with masks"})
    sequences: list[str] = field(default_factory=lambda: SEQUENCES, metadata={"help": "sequences of --davis"})

    def __post_init__(self):
        if self.dense is None and self.davis is None:
            raise ValueError("Neither --dense nor --davis is given; name a folder of data.")
        if Path(self.output).exists():
            raise ValueError(f"{self.output} exists already; remove it or name another folder.")
        for folder in (self.dense, self.davis):
            if folder is not None and not (Path(folder) / "test").is_dir():
                raise FileNotFoundError(f"There is no folder {folder}/test; check the path.")


def relative_depth(disparity: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Depth from disparity, (H, W) -> float32 (H, W), nan where it is not valid.

    Depth is proportional to 1 / disparity. The factor, which only the cameras would tell, is such that the 99th
    percentile of the valid disparities is at 1: the near end of the range of depths of `toyworld:motion` (1 to 6).
    """
    known = valid & (disparity > 0)
    nearest = np.percentile(disparity[known], 99)
    return np.where(known, nearest / np.where(known, disparity, 1), np.nan).astype(np.float32)


def write_dense(source: Path, output: Path) -> None:
    """The pairs of dense: those with disparity as depth, those with flow as flow."""
    for file in sorted(source.glob("test/*/truth.npz")):
        with np.load(file) as truth:
            if "flow" in truth:
                task, label = "flow", np.where(truth["valid"][..., None], truth["flow"], np.nan).astype(np.float32)
            else:
                task, label = "depth", relative_depth(truth["disparity"], truth["valid"])
        shown = {"image": "img0.png", "second": "img1.png"} if task == "flow" else {"image": "img0.png"}
        for kind, picture in shown.items():
            copy(file.parent / picture, output / task / kind / f"{file.parent.name}.png")
        (output / task / "label").mkdir(parents=True, exist_ok=True)
        np.save(output / task / "label" / f"{file.parent.name}.npy", label)


def write_davis(source: Path, output: Path, sequences: list[str]) -> None:
    """The first frame of every sequence with its mask, whose object is class 1."""
    for name in sequences:
        for kind, tree, suffix in (("image", "JPEGImages", ".jpg"), ("label", "Annotations", ".png")):
            file = source / "test" / tree / "480p" / name / f"00000{suffix}"
            if not file.is_file():
                raise FileNotFoundError(f"There is no file {file}; check --sequences.")
            copy(file, output / "segmentation" / kind / f"{name}{suffix}")


def copy(source: Path, target: Path) -> None:
    """Copy a file into a folder that is made if needed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def main(argv: list[str] | None = None) -> None:
    args = parse_flags(PromptPairsArgs, argv, "python -m studies.prompt_pairs", __doc__)
    output = Path(args.output)
    if args.dense is not None:
        write_dense(Path(args.dense), output)
    if args.davis is not None:
        write_davis(Path(args.davis), output, args.sequences)
    if not output.is_dir():
        raise ValueError(f"{args.dense} holds no test/NAME/truth.npz; check --dense.")
    for folder in sorted(output.iterdir()):
        print(f"{folder}: {len(list((folder / 'image').iterdir()))} pairs")


if __name__ == "__main__":
    from toto_cli import run

    run(main)
