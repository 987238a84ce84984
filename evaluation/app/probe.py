"""The tab of probing: a linear classifier on the frozen features of a visitor's photos, next to its floors."""

from __future__ import annotations

import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import gradio as gr
import numpy as np
import torch

from evaluation.app import drawing
from evaluation.app.models import Loaded
from evaluation.app.wiring import Page
from evaluation.backbones.features import extract_features
from evaluation.backbones.floors import PixelBackbone
from evaluation.backbones.toto import TotoBackbone
from evaluation.probe.fit import FittedProbe, fit_probe
from tokenization.sampling import Sampling
from tokenization.sources.kinds import PICTURES, suffix_of
from tokenization.sources.labelled import carve
from tokenization.sources.pictures import image_crops
from tokenization.toyworld.items import digit
from training.flags import require
from training.scores import wilson_interval

ABOUT = (
    "A linear classifier on the frozen features of your photos: trained on three fifths of each class, its layer and "
    "penalty chosen on a fifth, tested once on the last fifth. The floors say what is easy: the same classifier on raw "
    "pixels, the same model with random weights, and always the commonest class."
)
EXAMPLE, UPLOADED, SERVED = "Example: handwritten digits", "Uploaded photos", "Folder of this server"
MAX_CLASSES, MIN_PHOTOS = 20, 5  # classes; photos of each, so that every part has one
MAX_PHOTOS = 160  # of all classes together, the first of each: more take longer than a visitor waits
MAX_BYTES = 32 * 2**20  # of one photo in a zip, unpacked
HEAD = "ridge"  # a closed form: milliseconds
UPLOADS = 3  # classes that can be uploaded without a zip
EXAMPLE_CLASSES, EXAMPLE_EACH = 10, 10


@dataclass(frozen=True)
class Photo:
    """label: its class. name: of the file. read: gives the pixels at a side R, uint8 (R, R, 3); raises ValueError."""

    label: str
    name: str
    read: Callable[[int], np.ndarray]


def photo(label: str, name: str, content: Callable[[], bytes]) -> Photo:
    """A photo from the bytes of a file, which are read when they are needed."""

    def read(resolution: int) -> np.ndarray:
        try:
            return next(image_crops(content(), name, Sampling(1, resolution=resolution))).frames[0]
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    return Photo(label, name, read)


def photos_of_zip(file: Path) -> list[Photo]:
    """The photos of a zip with a folder per class: the class is the name of the folder that a photo lies in.

    Nothing is unpacked to disk. Raises ValueError for a file that is no zip, or has no photos in folders.
    """
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{file.name} cannot be read as a zip; pack folders of photos into a .zip.") from error
    found = []
    for member in archive.infolist():
        path = PurePosixPath(member.filename)
        hidden = any(part.startswith((".", "__")) for part in path.parts)
        if member.is_dir() or hidden or len(path.parts) < 2 or suffix_of(path.name) not in PICTURES:
            continue
        require(
            member.file_size <= MAX_BYTES,
            f"{path.name} unpacks to {member.file_size / 2**20:.0f} MB; photos may have {MAX_BYTES // 2**20} MB.",
        )
        found.append(photo(path.parts[-2], path.name, lambda member=member: _unpacked(archive, member)))
    require(bool(found), f"{file.name} holds no photos in folders; put the photos of each class into a folder.")
    return found


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(member) as stream:
            return stream.read(MAX_BYTES)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError) as error:
        raise ValueError(f"it cannot be unpacked ({error}).") from error


def photos_of_uploads(classes: list[tuple[str, list[str] | None]]) -> list[Photo]:
    """The photos of (name of a class, its files). Raises ValueError for files that are no pictures."""
    found = []
    for number, (label, files) in enumerate(classes, 1):
        for file in map(Path, files or []):
            require(suffix_of(file.name) in PICTURES, f"{file.name} is no picture by its ending; upload photos.")
            found.append(photo((label or "").strip() or f"class {number}", file.name, file.read_bytes))
    return found


def photos_of_folder(folder: str) -> list[Photo]:
    """The photos of a folder with a subfolder per class, as `toto probe` reads it. Raises ValueError if it has none."""
    from tokenization.sources.labelled import label_columns
    from tokenization.sources.open import open_source

    source = open_source(folder, "train", kind="image")
    column = label_columns(source, None, "The folder")[0]
    names = source.label_names.get(column)
    found = []
    for item in source.list_items(0):
        label = item.labels.get(column)
        file = Path(folder) / item.name
        if label is not None and file.is_file():
            found.append(photo(names[label] if names else str(label), file.name, file.read_bytes))
    require(bool(found), "The folder of this server holds no photos in subfolders.")
    return found


def digits() -> list[Photo]:
    """Handwritten digits of scikit-learn, which need no upload."""

    def shown(number: int):
        def read(resolution: int) -> np.ndarray:
            ink = digit("test", number, resolution)[0]
            return np.repeat(ink[..., None], 3, axis=-1)

        return read

    found = []
    for number in range(397):
        label = str(digit("test", number, 8)[1])
        found.append(Photo(label, f"digit {number}", shown(number)))
    return limited(found, EXAMPLE_CLASSES * EXAMPLE_EACH)


def limited(photos: list[Photo], most: int = MAX_PHOTOS) -> list[Photo]:
    """The first photos of every class, as many of each, at most `most` in all.

    Raises:
        ValueError: fewer than two classes, too many, or too few photos in one.
    """
    classes = defaultdict(list)
    for each in photos:
        classes[each.label].append(each)
    require(
        2 <= len(classes) <= MAX_CLASSES,
        f"There are photos of {len(classes)} classes; give 2 to {MAX_CLASSES}, each in a folder of its own.",
    )
    for label, members in sorted(classes.items()):
        require(
            len(members) >= MIN_PHOTOS,
            f"The class {label!r} has {len(members)} photos; give at least {MIN_PHOTOS} of every class.",
        )
    each = max(MIN_PHOTOS, most // len(classes))
    return [one for _, members in sorted(classes.items()) for one in members[:each]]


@dataclass(frozen=True, eq=False)
class Probed:
    """The result of `probed`.

    Fields:
        probe: of the model. floors: name -> (right, total) on the same photos. counts: photos of each class.
        test: pixels of the test photos, uint8 (N, R, R, 3). true: their labels. skipped: sentences about photos that
        could not be read. seconds: the time it took.
    """

    probe: FittedProbe
    floors: dict[str, tuple[int, int]]
    counts: dict[str, int]
    parts: tuple[int, int, int]
    test: np.ndarray
    true: np.ndarray
    skipped: list[str]
    seconds: float


def split(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """0, 1 or 2 (train, validation, test) of each photo, (N,): a fifth of each class is test, a fifth validation."""
    part = np.zeros(len(labels), int)
    for label in np.unique(labels):
        for number in (2, 1):
            rows = np.flatnonzero((labels == label) & (part == 0))
            share = round(np.sum(labels == label) / 5)
            part[rows[carve([str(row) for row in rows], "photos", seed, None, keep=len(rows) - share)]] = number
    return part


def probed(loaded: Loaded, photos: list[Photo], seed: int = 0) -> Iterator[str | Probed]:
    """Sentences about the progress, then the result.

    Raises:
        ValueError: as `limited`, after photos that cannot be read were left out.
    """
    began = time.perf_counter()
    pictures, labels, skipped = [], [], []
    for number, each in enumerate(limited(photos), 1):
        if number % 20 == 1:
            yield f"Reading photo {number}."
        try:
            pictures.append(each.read(loaded.processor.resolution))
            labels.append(each.label)
        except ValueError as error:
            skipped.append(str(error))
    counts = dict(sorted(Counter(labels).items()))
    require(
        len(counts) >= 2 and min(counts.values()) >= MIN_PHOTOS,
        f"Too few photos can be read ({len(labels)} of {len(labels) + len(skipped)}): "
        f"{skipped[0] if skipped else 'there are none'}",
    )
    pictures, labels = np.stack(pictures), np.array(labels)
    part = split(labels, seed)
    rows = [torch.from_numpy(np.flatnonzero(part == number)) for number in range(3)]
    backbone = TotoBackbone(loaded.model, loaded.processor, loaded.name, loaded.model.device)
    results = {}
    pixels = PixelBackbone(backbone.device)
    pixels.resolution = loaded.processor.resolution
    floors = {"the same model, random weights": backbone.untrained(0), "raw pixels": pixels}
    for name, reader in {"model": backbone, **floors}.items():
        yield f"Reading {len(pictures)} photos with {name}."
        features = extract_features(reader, pictures[:, None])
        given = [value for each in rows for value in (features.take(each), labels[each.numpy()])]
        results[name] = fit_probe(*given, head=HEAD)
    true = labels[rows[2].numpy()]
    floor_scores = {name: (int((results[name].predictions == true).sum()), len(true)) for name in floors}
    commonest = Counter(labels[rows[0].numpy()]).most_common(1)[0][0]
    floor_scores["always the commonest class"] = (int((true == commonest).sum()), len(true))
    seconds = time.perf_counter() - began
    parts = tuple(len(each) for each in rows)
    yield Probed(results["model"], floor_scores, counts, parts, pictures[rows[2].numpy()], true, skipped, seconds)


def table(name: str, result: Probed) -> str:
    """The result as Markdown."""
    total = len(result.true)
    right = int((result.probe.predictions == result.true).sum())
    lines = ["| features | test photos right | 95 % interval |", "|---|---|---|"]
    for label, (count, _) in {f"**{name}**, layer {result.probe.layer}": (right, total), **result.floors}.items():
        low, high = wilson_interval(count, total)
        lines.append(f"| {label} | {count} of {total} ({count / total:.0%}) | {low:.0%} to {high:.0%} |")
    classes = ", ".join(f"{label} ({count})" for label, count in result.counts.items())
    train, validation, test = result.parts
    lines += [
        "",
        f"{sum(result.counts.values())} photos of {len(result.counts)} classes: {classes}. Trained on {train}, layer "
        f"chosen on {validation}, tested on {test}, in {result.seconds:.1f} s. With so few photos only large "
        "differences mean something: compare the intervals.",
    ]
    if result.skipped:
        lines.append(f"\n{len(result.skipped)} photos were left out; the first: {result.skipped[0]}")
    return "\n".join(lines)


def gallery(result: Probed, most: int = 24) -> list[tuple[np.ndarray, str]]:
    """Test photos with what the probe says, the wrong ones first."""
    wrong = result.probe.predictions != result.true
    order = np.argsort(~wrong, kind="stable")[:most]
    said = [
        f"{result.true[k]}, not {result.probe.predictions[k]}" if wrong[k] else f"{result.true[k]}: right"
        for k in order
    ]
    return [(drawing.enlarged(result.test[k], 128), text) for k, text in zip(order, said, strict=True)]


def build(page: Page) -> None:
    """Lay out the tab and say what happens when photos are probed."""
    sources = [EXAMPLE, UPLOADED] + ([SERVED] if page.args.photos else [])
    gr.Markdown(ABOUT)
    with gr.Row():
        source = gr.Radio(sources, value=EXAMPLE, label="Photos")
        model = gr.Dropdown(list(page.models), value=next(iter(page.models)), label="Model to probe", filterable=False)
        start = gr.Button("Train the probe", variant="primary", elem_id="probe")
    with gr.Accordion("Your photos: a zip, or files of each class", open=False):
        archive = gr.File(label="A zip with one folder of photos per class", file_types=[".zip"], height=120)
        names, files = [], []
        for number in range(1, UPLOADS + 1):
            with gr.Row():
                names.append(gr.Textbox(label=f"Name of class {number}", placeholder=f"class {number}", max_length=40))
                files.append(
                    gr.File(
                        label=f"Photos of class {number}",
                        file_count="multiple",
                        file_types=sorted(PICTURES),
                        height=120,
                    )
                )
    status = gr.Markdown(
        f"At least {MIN_PHOTOS} photos of each of 2 to {MAX_CLASSES} classes; of more than {MAX_PHOTOS} photos, the "
        "first of each class are taken.",
        elem_id="probing",
    )
    shown = gr.Gallery(
        label="Test photos, wrong ones first", columns=6, height="auto", interactive=False, format="png", buttons=[]
    )

    def chosen(source, archive, given) -> list[Photo]:
        if source == EXAMPLE:
            return digits()
        if source == SERVED and page.args.photos:
            return photos_of_folder(page.args.photos)
        if archive:
            return photos_of_zip(Path(archive))
        found = photos_of_uploads(list(zip(given[:UPLOADS], given[UPLOADS:], strict=True)))
        require(bool(found), "There are no photos yet; upload a zip or files of each class.")
        return found

    def run(source, name, archive, *given):
        require(name in page.models, f"There is no model {name!r}; choose one of the list.")
        for step in probed(page.models[name], chosen(source, archive, given)):
            if isinstance(step, str):
                yield [step, gr.skip()]
            else:
                yield [table(name, step), gallery(step)]

    page.on(start.click, run, [source, model, archive, *names, *files], [status, shown], show_progress="minimal")
