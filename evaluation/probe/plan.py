"""What a probe will keep on disk, before anything is read: features, or with --stream the inputs of backbones."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import PartialState

from evaluation.backbones.extraction import Job
from evaluation.backbones.inputs import input_jobs
from tokenization.sampling import Sampling
from tokenization.shards.parts import on_main
from tokenization.sources.open import ClipSource


@dataclass(frozen=True)
class Disk:
    """Bytes on disk: kept in the end, and at most while the files of parts are merged, or clips are carved off.

    exact: whether the number of clips is known, apart from damaged ones; else it is the upper limit.
    """

    kept: int
    peak: int
    exact: bool

    def __str__(self) -> str:
        return f"{'' if self.exact else 'at most '}{_size(self.kept)} ({_size(self.peak)} while it is merged)"


def _size(count: int) -> str:
    power = next(power for power in (12, 9, 6, 3) if count >= 10**power or power == 3)
    return f"{count / 10**power:.3g} {({3: 'kB', 6: 'MB', 9: 'GB', 12: 'TB'})[power]}"


def bytes_of_clip(job, sampling: Sampling, is_image: bool) -> int:
    """What a `Job` or `InputJob` keeps of a clip, found by running it on a black one."""
    side, length = sampling.resolution, 1 if is_image else sampling.num_frames
    made = job.run(job.backbone.prepare(np.zeros((1, length, side, side, 3), np.uint8), image=is_image)).values()
    return sum(each.numel() * each.element_size() for pair in made for each in pair if each is not None)


def disk_of(jobs: list, parts: dict[str, tuple[ClipSource, Path | None]], sampling: Sampling) -> Disk:
    """What jobs would add on disk. parts: by part, its source and the folder of what is kept."""
    total, largest, exact = 0, 0, True
    for source, folder in parts.values():
        known = source.count_clips()
        clips = source.limit if known is None else known
        missing = {job.key(): job for job in jobs if folder is None or not (folder / job.key() / "done.json").is_file()}
        added = clips * sum(bytes_of_clip(job, sampling, source.kind == "image") for job in missing.values())
        total, largest, exact = total + added, max(largest, added), exact and known is not None
    return Disk(total, total + largest, exact)


def check_disk(
    jobs: list[Job],
    parts: dict[str, tuple[ClipSource, Path | None]],
    sampling: Sampling,
    cache: Path,
    stream: bool,
) -> None:
    """Prints what a streamed probe keeps and what it saves, or that features may not fit.

    Args:
        jobs: of features. parts: as in `disk_of`. sampling: of a clip. cache: folder on the disk.
    Raises:
        ValueError: it does not fit.
    """
    on_main(PartialState(), lambda: _check_disk(jobs, parts, sampling, cache, stream))


def _check_disk(jobs, parts, sampling: Sampling, cache: Path, stream: bool) -> None:
    features, free = disk_of(jobs, parts, sampling), shutil.disk_usage(cache).free
    if stream:
        source = next(iter(parts.values()))[0]
        inputs = disk_of(input_jobs([job.backbone for job in jobs], source), parts, sampling)
        print(f"streamed: inputs of the backbones add {inputs} to {cache}; features would add {features}", flush=True)
        if inputs.exact and inputs.peak > free:
            raise ValueError(
                f"The inputs take {inputs} and {cache} has {_size(free)} free; name a folder on a larger disk with "
                "--feature_cache, or probe a folder of files, which are read again."
            )
    elif features.peak > free:
        sentence = (
            f"The features take {features} and {cache} has {_size(free)} free; add --stream, which keeps token ids in "
            "their place, or name a folder on a larger disk with --feature_cache"
        )
        if features.exact:
            raise ValueError(f"{sentence}.")
        print(f"warning: {sentence}", flush=True)
