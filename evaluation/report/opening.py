"""The first screen of a report: a continued clip, frame by frame, and what was learnt in a few sentences."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from evaluation.metrics import verdict
from evaluation.pictures import cut
from evaluation.report.comparisons import Comparison
from evaluation.report.reading import AGAINST, Generation, Probe

COLOURS = 128  # of a frame's PNG on the page; enough for its codes, at a third of the size


def opening(generations: list[Generation], probes: list[Probe], comparisons: list[Comparison]) -> dict:
    """The facts of the first screen.

    Returns:
        frames: of `clip_frames`, of the first continued clip that has them, else an empty list; source: of that clip;
        clip: a sentence about it; learnt: sentences.
    """
    said = learnt(probes, comparisons)
    for generation in generations:
        if frames := clip_frames(generation):
            about = generation.about
            count = about.num_prompt_frames
            given = "the first frame" if count == 1 else f"the first {count} frames"
            clip = f"{Path(about.model).name} was given {given} of a clip and drew the next {about.num_frames}."
            return {"frames": frames, "source": about.source, "clip": clip, "learnt": said}
    return {"frames": [], "source": "", "clip": "", "learnt": said}


def clip_frames(generation: Generation) -> list[dict]:
    """number, drawn (or given), true and generated (PNG in base64; the tokenizer's prompt, then the model's frames).

    Empty if the sheet has no result beside it or was not written by `toto generate`.
    """
    about = generation.about
    if about is None:
        return []
    with Image.open(generation.sheet) as sheet:
        rows = cut(sheet.convert("RGB"), about.num_prompt_frames + about.num_frames)
    if rows is None:
        return []
    return [
        {
            "number": time + 1,
            "drawn": time >= about.num_prompt_frames,
            "true": png(rows[0][time]),
            "generated": png(rows[2][time]),
        }
        for time in range(len(rows[0]))
    ]


def png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def learnt(probes: list[Probe], comparisons: list[Comparison]) -> list[str]:
    """A sentence about the best read label of each model, and how many of all comparisons hold."""
    found = [sentence for probe in probes if (sentence := best_label(probe)) is not None]
    if comparisons:
        held = sum(each.holds for each in comparisons)
        found.append(f"{held} of {len(comparisons)} comparisons hold, {len(comparisons) - held} fail.")
    return found


def best_label(probe: Probe) -> str | None:
    """The label whose lead over its strongest floor is largest, next to that floor; None without a paired lead."""
    leads = {
        label: min((lead.difference, who) for who, lead in task.best.versus.items() if who in task.baselines)
        for label, task in probe.tasks.items()
        if task.best.versus and set(task.best.versus) & set(task.baselines)
    }
    if not leads:
        return None
    label = max(leads, key=lambda name: leads[name][0])
    task, who = probe.tasks[label], leads[label][1]
    best, floor = task.best, task.baselines[who]
    numbers = f"{100 * best.accuracy:.1f} % right at layer {best.layer}"
    rival = AGAINST.get(who, who)
    if verdict(best.versus[who].ci95) == "above":
        return (
            f"Of the labels read from the frozen features of {probe.name}, {label} leads most: {numbers}, where the "
            f"best measured floor, {rival}, gets {100 * floor.accuracy:.1f} %."
        )
    return (
        f"No label read from the frozen features of {probe.name} is above all its floors; {label} comes closest: "
        f"{numbers}, against {100 * floor.accuracy:.1f} % of {rival}."
    )
