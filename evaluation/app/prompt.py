"""The tab of prompting: depth, flow and masks by a model that `toto prompt train` made promptable."""

from __future__ import annotations

import gradio as gr
import numpy as np

from evaluation.app import drawing
from evaluation.app.clips import Opened
from evaluation.app.models import Loaded
from evaluation.app.wiring import PICTURE, Page
from evaluation.prompt.draw_labels import label_pictures
from evaluation.prompt.drawing import Prompted
from training.find_model import resolve_model
from training.flags import require
from training.prompting.tasks import Prompting, Task, read_prompting

ABOUT = (
    "A tuned model reads examples of a task, pictures with their labels drawn as frames (**orange**), and one more "
    "picture; then it draws that picture's label (**blue**), token by token. The examples are training scenes of "
    "toyworld:motion, and the picture is a frame of the open clip."
)
HOW = (
    "**{name} is not promptable.** Make it so with a tune of about 1,000 steps (12 minutes on one core for "
    "toto-motion), `toto prompt train --model {path} --task all --output_dir out/prompt`, and start the page with "
    "`toto app --model out/prompt`. docs/prompting.md has the details."
)


def prompting_of(loaded: Loaded) -> Prompting | None:
    """The tasks that a model was tuned on; None for a model that was not tuned for prompts.

    Raises:
        ValueError: its prompt.json cannot be read.
    """
    try:
        return read_prompting(resolve_model(loaded.path))
    except FileNotFoundError:
        return None


def prompted(loaded: Loaded, clip: Opened, name: str, frame: int, seed: int) -> tuple[Task, np.ndarray, np.ndarray]:
    """Draw the label of a frame of a clip, after examples of the embedded world.

    Args:
        name: of the task. frame: from 0; flow is from it to the next one. seed: which examples.
    Returns:
        (the task; the row of frames with the drawn label, uint8 (T, R, R, 3); its numbers, float32 (labels, R, R)).
    Raises:
        ValueError: a model that is not promptable, a task that it was not tuned on, or no next frame.
    """
    prompting = prompting_of(loaded)
    require(prompting is not None, f"{loaded.name} is not promptable; choose a model of toto prompt train.")
    require(name in prompting.tasks, f"{loaded.name} was tuned on {', '.join(prompting.tasks)}; choose one of these.")
    task = prompting.tasks[name]
    pictures = clip.frames[frame : frame + task.inputs]
    require(len(pictures) == task.inputs, f"{name} needs this frame and the next one; choose an earlier frame.")
    given = Prompted(loaded.model, loaded.processor, resolve_model(loaded.path))
    task, rows, numbers, _ = label_pictures(given, pictures, name, None, seed)
    return task, rows[0], numbers[0]


def said(task: Task, numbers: np.ndarray) -> str:
    """What the drawn label says, as Markdown: its range and how much of the picture has which number."""
    parts = []
    for label, each in zip(task.labels, numbers, strict=True):
        values, counts = np.unique(each, return_counts=True)
        most = np.argsort(-counts)[:6]
        listed = ", ".join(f"{values[k]:g} ({counts[k] / each.size:.0%})" for k in sorted(most))
        parts.append(f"**{label}** in {task.unit}: {listed} of the pixels.")
    return "\n\n".join(parts)


def build(page: Page) -> None:
    """Lay out the tab and say what happens when a clip is opened or a label asked for."""
    gr.Markdown(ABOUT)
    how = gr.Markdown("Open a clip first.", elem_id="promptable")
    with gr.Row():
        task = gr.Radio(["depth"], value="depth", label="Task", interactive=False)
        frame = gr.Slider(1, 2, value=1, step=1, label="Frame of the clip", min_width=150)
        seed = gr.Number(0, label="Seed of the examples", precision=0, minimum=0, maximum=2**31, min_width=120)
        start = gr.Button("Draw the label", variant="primary", elem_id="prompt", interactive=False)
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            row = gr.Image(
                label="Prompt and drawn label", alt_text="The frames of the prompt, then the drawn label", **PICTURE
            )
        with gr.Column(scale=2, min_width=280):
            label = gr.Image(label="Drawn label", alt_text="The drawn label, enlarged", **PICTURE)
    about = gr.Markdown("", elem_id="label")

    def opened(clip: Opened | None):
        loaded = page.model_of(clip)
        prompting = prompting_of(loaded)
        tasks = ["depth"] if prompting is None else list(prompting.tasks)
        text = HOW.format(name=loaded.name, path=loaded.path) if prompting is None else f"Tuned on {', '.join(tasks)}."
        able, last = prompting is not None, len(clip.frames)
        return [
            text,
            gr.Radio(tasks, value=tasks[0], interactive=able),
            gr.Slider(maximum=max(2, last), value=1, interactive=able and last > 1),
            gr.Button(interactive=able),
            None,
            None,
            "",
        ]

    def drawn(clip: Opened | None, name, frame, seed):
        loaded, frame, seed = page.model_of(clip), int(frame) - 1, int(seed or 0)
        require(0 <= frame < len(clip.frames), "The clip has no such frame; choose another.")
        require(0 <= seed <= 2**31, f"The seed is {seed}; choose 0 to {2**31}.")
        task, frames, numbers = prompted(loaded, clip, name, frame, seed)
        count = len(task.labels)
        large = np.concatenate([drawing.enlarged(each) for each in frames[-count:]], 1)
        return [drawing.film(frames, prompt=len(frames) - count), large, said(task, numbers)]

    page.when_opened(opened, [page.clip], [how, task, frame, start, row, label, about])
    page.on(start.click, drawn, [page.clip, task, frame, seed], [row, label, about])
