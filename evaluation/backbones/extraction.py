"""Extracts features of clips with frozen backbones in one pass: pooled features and tokens of each layer, in files.

`<cache>/<data key>/` describes the clips (items.json) and has a folder for each combination of backbone, layers and
number of tokens. This folder holds `pooled-0.npy` (L, N, P) and `tokens-0.npy` (L, N, n, D), one pair for each width of
layers. Keys are hashes of the fingerprints of dataset and model and of the precision, so an entry is never stale. The
work is split into parts: a run that was killed resumes after its finished parts, and several processes (`torchrun`,
`accelerate launch`) share them through the cache folder, which must be on a shared file system. The result does not
depend on the number of processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file

from evaluation.backbones.contract import Backbone, Features
from tokenization.files import write_json, write_whole
from tokenization.precision import bf16_is_fast
from tokenization.shards.parts import FinishedParts, work_in_parts
from tokenization.sources.cater import folder_of
from tokenization.sources.folders import Tree, walk
from tokenization.sources.open import ClipSource
from tokenization.storage.remote import Remote, is_remote, version
from tokenization.terminal.progress import tqdm
from tokenization.video import Clip
from training.engine.device import EVALUATION_LIMIT

FORMAT = 2  # of the cache; to be raised when its contents change, or what is read of a folder
PART_ROWS = 256  # pictures of a part, or frames of its clips
IN_MEMORY = 2**28  # bytes below which a selection of rows is kept in memory, not in a file


@dataclass(frozen=True)
class Job:
    """The features to extract with one backbone. max_tokens: tokens for the attention heads; None for no tokens."""

    backbone: Backbone
    layers: list[int]
    max_tokens: int | None

    def key(self) -> str:
        facts = {"of": self.backbone.fingerprint(), "layers": self.layers, "tokens": self.max_tokens}
        return job_key(self.backbone.device, facts)

    def made(self, inputs: torch.Tensor) -> dict[int, tuple[torch.Tensor, torch.Tensor | None]]:
        """{layer: (pooled (B, P) float32, tokens (B, n, D) float16 or None)} of prepared inputs, on the device."""
        made = self.backbone.grids(inputs, self.layers, lambda grid: self.backbone.summarise(grid, self.max_tokens))
        return {k: (mean.float(), None if few is None else few.half()) for k, (mean, few) in made.items()}

    def run(self, inputs: torch.Tensor) -> dict[int, tuple[torch.Tensor, torch.Tensor | None]]:
        """As `made`, on the CPU."""
        return {k: (mean.cpu(), None if few is None else few.cpu()) for k, (mean, few) in self.made(inputs).items()}


@dataclass
class ClipSet:
    """Clips of one split with their features.

    split: description of its origin. kind: "image" or "video". labels: column -> (N,) class numbers (-1 if missing) or
    text (empty if missing). sources: file or row of each clip. features: for each `Job`, one `Features` for each width
    of its layers.
    """

    split: str
    kind: str
    label_names: dict[str, list[str]]
    labels: dict[str, np.ndarray]
    sources: list[str]
    features: list[list[Features]]
    skipped: list[dict] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sources)

    def take(self, rows: np.ndarray, split: str, folder: Path | None = None) -> ClipSet:
        """Some of the clips, by number. folder: for features that are too large for memory."""
        rows = torch.as_tensor(rows)
        return ClipSet(
            split,
            self.kind,
            self.label_names,
            {column: values[rows.numpy()] for column, values in self.labels.items()},
            [self.sources[row] for row in rows.tolist()],
            [[_take(group, rows, folder) for group in groups] for groups in self.features],
            self.skipped,
        )


def _take(features: Features, rows: torch.Tensor, folder: Path | None) -> Features:
    if not isinstance(features, Features):  # the inputs of a streamed probe, which are not copied
        return features.take(rows)

    def select(kept: torch.Tensor | None) -> torch.Tensor | None:
        if kept is None:
            return None
        shape = (kept.shape[0], len(rows), *kept.shape[2:])
        if folder is None or int(np.prod(shape)) * kept.element_size() < IN_MEMORY:
            return kept[:, rows]
        with tempfile.NamedTemporaryFile(dir=folder) as file:  # the mapping outlives the name
            chosen = torch.from_numpy(np.memmap(file.name, kept.numpy().dtype, "w+", shape=shape))
        for layer, source in zip(chosen, kept, strict=True):
            for start in range(0, len(rows), 1024):
                layer[start : start + 1024] = source[rows[start : start + 1024]]
        return chosen

    return Features(features.layers, select(features.pooled), select(features.tokens))


def _key(facts: dict) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:20]


def job_key(device: torch.device, facts: dict) -> str:
    """The name of the folder of what is computed from these facts on a device."""
    return _key({"device": device.type, "bf16": bf16_is_fast(device), "format": FORMAT} | facts)


def dataset_fingerprint(dataset: str) -> str | None:
    """A hash that changes with the data: code of the embedded world, files of a folder, or commit of a Hub repository.

    None where the version is unknown (a Hub id without a network); such features are not kept.
    """
    path = Path(folder_of(dataset) or dataset)
    digest = hashlib.sha256()
    if dataset.split(":")[0] == "toyworld":
        import tokenization

        digest.update(dataset.encode())
        for file in sorted(Path(tokenization.__file__).parent.glob("toyworld/*.py")):
            digest.update(file.read_bytes())
    elif is_remote(dataset):
        for name, info in Remote(dataset).files().items():
            digest.update(f"{name} {version(info)}\n".encode())
    elif path.exists():
        tree = walk(path) if path.is_dir() else Tree(str(path.parent), [path.name])
        for name in tree.files:
            facts = os.stat(tree.path(name))
            digest.update(f"{name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    else:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        try:
            digest.update(HfApi().dataset_info(dataset).sha.encode())
        except (HfHubHTTPError, OfflineModeIsEnabled, ConnectionError, OSError):
            return None
    return digest.hexdigest()


def data_key(fingerprint: str, split: str, options: dict) -> str:
    """The cache key of a stream of clips, from the dataset (`dataset_fingerprint`) and the options of reading it."""
    return _key({"data": fingerprint, "split": split, "format": FORMAT} | options)


def extract(
    source: ClipSource,
    split: str,
    jobs: list[Job],
    folder: Path,
    *,
    change: Callable[[np.ndarray, str], np.ndarray] | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> ClipSet:
    """Features of all clips of a `ClipSource` for every job; those that are in `folder` are read from there.

    Every process of a launch calls this with the same arguments.

    Args:
        change: (frames (T, R, R, 3), name of the clip) -> other frames, for controls.
    Raises:
        ValueError: no clip could be read.
    """
    state = PartialState(timeout=EVALUATION_LIMIT)
    folders = [folder / job.key() for job in jobs]
    # jobs of equal weights, such as an untrained model and its untrained twin, share a folder
    missing = [k for k, at in enumerate(folders) if not (at / "done.json").is_file() and at not in folders[:k]]
    if missing or not (folder / "items.json").is_file():
        for each in (folder, *folders):
            (each / "parts").mkdir(parents=True, exist_ok=True)
        its_jobs = [(jobs[k], folders[k]) for k in missing]
        frames = 1 if source.kind == "image" else jobs[0].backbone.num_frames
        work = _Pass(source, split, folder, its_jobs, frames, batch_size, change)
        _fill(work, state, progress)
        state.wait_for_everyone()
        if state.is_main_process:
            _merge(work)
        state.wait_for_everyone()
    items = json.loads((folder / "items.json").read_text())
    text = dict.fromkeys(source.text_labels, object)  # an array of text pads every value to the longest, say a caption
    if not items["sources"]:
        skipped = items["skipped"]
        why = f" ({len(skipped)} skipped; the first: {skipped[0]['why']})" if skipped else ""
        raise ValueError(f"Split {split} gave no clips{why}; check --dataset, --num_frames, --stride and --fps.")
    return ClipSet(
        split,
        source.kind,
        dict(source.label_names),
        {column: np.array(values, text.get(column)) for column, values in items["labels"].items()},
        items["sources"],
        [_open(each) for each in folders],
        items["skipped"],
    )


@dataclass(frozen=True)
class _Pass:
    """A pass over the clips of a `ClipSource`.

    folder: of the items. jobs: those whose features are not there yet, each with its folder. frames: of a clip.
    change: as in `extract`.
    """

    source: ClipSource
    split: str
    folder: Path
    jobs: list[tuple[Job, Path]]
    frames: int
    batch_size: int
    change: Callable[[np.ndarray, str], np.ndarray] | None = None

    @property
    def columns(self) -> list[str]:
        return [*self.source.label_names, *self.source.text_labels]

    def finished(self) -> dict[str, dict]:
        """Parts that every job has."""
        return {
            name: info
            for name, info in FinishedParts(self.folder / "parts").items()
            if all((folder / "parts" / f"{name}.safetensors").is_file() for _, folder in self.jobs)
        }


def _fill(work: _Pass, state: PartialState, progress: bool) -> None:
    """Write the parts that are this process's and not there yet."""
    source = work.source
    finished = work.finished().values()
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # not on macOS
    # Videos give as many clips as their length allows, so files or rows are counted; a limit of clips may end them.
    total, counts_clips = source.count_clips(), source.clips_each is not None
    total = total if counts_clips else source.count_items()
    before = sum(info["rows" if counts_clips else "items"] for info in finished)
    unit = (" images" if source.kind == "image" else " clips") if counts_clips else " videos"
    bar = tqdm(total=total, initial=min(before, total or before), unit=unit, disable=not progress)
    bar.set_description(f"{work.split}: {'features' if work.jobs else 'labels'}")
    clips = sum(info["rows"] for info in finished)
    done = work_in_parts(
        source,
        lambda name: _Part(name, work),
        work.finished,
        items_per_part=max(1, PART_ROWS // work.frames),
        limit=source.limit,
        threads=min(4, cpus),
        items_ahead=4 * work.batch_size,
        clips_each=4,
        rank=state.process_index,
        world=state.num_processes,
    )
    with contextlib.closing(done), bar:
        for step in done:
            clips += step.clip is not None
            if not counts_clips:
                at_most = "" if source.limit is None else f" of at most {source.limit:,}"
                bar.set_postfix_str(f"{clips:,} clips{at_most}", refresh=False)
            bar.update(step.clip is not None if counts_clips else step.item_ends)


class _Part:
    """The clips of consecutive items, whose features are written to a file for every missing job."""

    def __init__(self, name: str, work: _Pass):
        self.name, self.work = name, work
        self.clips: list = []
        self.kept: list[dict[int, list]] = [{} for _ in work.jobs]
        self.info = {"rows": 0, "sources": [], "labels": {c: [] for c in work.columns}, "skipped": []}

    @property
    def rows(self) -> int:
        return self.info["rows"]

    def add(self, item: int, clip: Clip) -> None:
        self.info["sources"].append(clip.source)
        for column, values in self.info["labels"].items():
            values.append(clip.labels.get(column, "" if column in self.work.source.text_labels else -1))
        self.info["rows"] += 1
        change = self.work.change
        self.clips.append(clip.frames if change is None else change(clip.frames, clip.source))
        if len(self.clips) == self.work.batch_size:
            self._run()

    def skip(self, item: int, source: str, why: str) -> None:
        self.info["skipped"].append({"source": source, "why": why})

    def _run(self) -> None:
        frames, prepared = np.stack(self.clips), {}
        self.clips = []
        for kept, (job, _) in zip(self.kept, self.work.jobs, strict=True):
            backbone = job.backbone
            if backbone.reads not in prepared:
                prepared[backbone.reads] = backbone.prepare(frames, image=self.work.source.kind == "image")
            for layer, made in job.run(prepared[backbone.reads]).items():
                kept.setdefault(layer, []).append(made)

    def close(self, items: int, shard_ends: bool) -> dict:
        """Write the features, and last the JSON, which marks the part as finished."""
        if self.clips:
            self._run()
        for kept, (_, folder) in zip(self.kept, self.work.jobs, strict=True):
            tensors = {}
            for layer, batches in kept.items():
                tensors[f"pooled.{layer}"] = torch.cat([vector for vector, _ in batches])
                if batches[0][1] is not None:
                    tensors[f"tokens.{layer}"] = torch.cat([few for _, few in batches])
            file = folder / "parts" / f"{self.name}.safetensors"
            write_whole(file, lambda path, tensors=tensors: save_file(tensors, path))
        info = self.info | {"items": items, "shard_ends": shard_ends}
        file = self.work.folder / "parts" / f"{self.name}.json"
        write_whole(file, lambda path: path.write_text(json.dumps(info)))
        return info

    def abandon(self) -> None:
        """Nothing needs to be deleted, since all files are written at the end."""


def _merge(work: _Pass) -> None:
    """The files of the parts, one after the other up to the limit, as one file for each job and width."""
    parts, rows, limit = [], 0, work.source.limit
    for name, info in FinishedParts(work.folder / "parts").items():
        taken = info["rows"] if limit is None else min(info["rows"], limit - rows)
        if taken or not info["rows"]:
            parts.append((name, info, taken))
            rows += taken
    items = {
        "split": work.split,
        "sources": [name for _, info, taken in parts for name in info["sources"][:taken]],
        "labels": {c: [v for _, i, taken in parts for v in i["labels"][c][:taken]] for c in work.columns},
        "skipped": [skip for _, info, _ in parts for skip in info["skipped"]],
    }
    for _, folder in work.jobs:
        _merge_job(folder, [(name, taken) for name, _, taken in parts if taken], rows)
    write_json(work.folder / "items.json", items)
    for _, folder in work.jobs:
        shutil.rmtree(folder / "parts")


def _merge_job(folder: Path, parts: list[tuple[str, int]], rows: int) -> None:
    groups: list[dict] = []
    maps: dict[str, tuple[np.ndarray, int]] = {}
    start = 0
    for name, taken in parts:
        tensors = load_file(folder / "parts" / f"{name}.safetensors")
        if not groups:
            groups = _groups(tensors)
            for number, group in enumerate(groups):
                for kind in group["kinds"]:
                    like = tensors[f"{kind}.{group['layers'][0]}"]
                    shape = (len(group["layers"]), rows, *like.shape[1:])
                    file = folder / f"{kind}-{number}.npy"
                    array = np.lib.format.open_memmap(file, "w+", like.numpy().dtype, shape)
                    maps |= {f"{kind}.{layer}": (array, place) for place, layer in enumerate(group["layers"])}
        for key, tensor in tensors.items():
            array, place = maps[key]
            array[place, start : start + taken] = tensor[:taken].numpy()
        start += taken
    for array, _ in maps.values():
        array.flush()
    write_json(folder / "done.json", {"groups": groups})


def _groups(tensors: dict[str, torch.Tensor]) -> list[dict]:
    """[{"layers": layers of the same width, "kinds": what is stored of them}], in the order of the layers."""
    layers = sorted(int(key.split(".")[1]) for key in tensors if key.startswith("pooled."))
    kinds = ["pooled", "tokens"] if any(key.startswith("tokens.") for key in tensors) else ["pooled"]
    groups: dict[tuple, list[int]] = {}
    for layer in layers:
        groups.setdefault(tuple(tensors[f"{kind}.{layer}"].shape[1:] for kind in kinds), []).append(layer)
    return [{"layers": members, "kinds": kinds} for members in groups.values()]


def _open(folder: Path) -> list[Features]:
    found = []
    for number, group in enumerate(json.loads((folder / "done.json").read_text())["groups"]):
        # "c" maps a private copy, because torch does not support read-only arrays; nothing is written back
        arrays = {k: torch.from_numpy(np.load(folder / f"{k}-{number}.npy", mmap_mode="c")) for k in group["kinds"]}
        found.append(Features(group["layers"], arrays["pooled"], arrays.get("tokens")))
    return found
