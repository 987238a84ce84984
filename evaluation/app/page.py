"""The page: what is open at the top, a tab for each kind of question below."""

from __future__ import annotations

import os
from pathlib import Path

import gradio as gr

from evaluation.app import continuation, drawing, inside, probe, prompt, tokens
from evaluation.app.args import AppArgs
from evaluation.app.clips import MAX_INDEX, SUFFIXES, WORLDS, open_clip
from evaluation.app.models import Loaded
from evaluation.app.wiring import PICTURE, Page
from training.flags import require

TITLE = "Toto: what a video model sees, predicts and has learnt"
TABS = {"Tokens": tokens, "Continuation": continuation, "Inside": inside, "Prompt": prompt, "Probe": probe}
CACHE_SECONDS = 3600  # pictures and uploads are deleted after this time
CSS = """
img { image-rendering: pixelated; }
.picture label[data-testid="block-label"] { position: static; width: fit-content; }  /* above the picture, not on it */
@media (max-width: 480px) { .tab-container button { padding: 0 4px !important; font-size: 13px !important; } }
"""


def theme():
    """Fonts of the visitor's own system, so that none is fetched."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return gr.themes.Default(**fonts)


def build(models: dict[str, Loaded], args: AppArgs) -> gr.Blocks:
    """The page of some models. Uploads and movies go to the folder GRADIO_TEMP_DIR."""
    first = next(iter(models))
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(CACHE_SECONDS, CACHE_SECONDS)) as blocks:
        gr.Markdown(f"# {TITLE}")
        with gr.Row():
            with gr.Column(min_width=280):
                model = gr.Dropdown(list(models), value=first, label="Model", filterable=False)
                upload = gr.File(
                    label=f"Your clip or picture (at most {args.max_upload} MB)", file_types=SUFFIXES, height=150
                )
            with gr.Column(min_width=280):
                world = gr.Dropdown(
                    list(WORLDS),
                    value=world_of(models[first]),
                    label="or a test clip of the embedded world",
                    filterable=False,
                )
                index = gr.Number(0, label="Number of the clip", precision=0, minimum=0, maximum=MAX_INDEX)
            with gr.Column(min_width=280):
                count = gr.Slider(1, models[first].context, value=models[first].frames, step=1, label="Frames to read")
                stride = gr.Slider(1, 16, value=4, step=1, label="Of a video, every n-th frame")
                start = gr.Button("Open", variant="primary", elem_id="open")
        status = gr.Markdown("", elem_id="status")
        film = gr.Image(label="The clip", alt_text="The frames of the clip", **PICTURE)
        page = Page(models, args, Path(os.environ["GRADIO_TEMP_DIR"]), gr.State(None))
        with gr.Tabs():
            for name, tab in TABS.items():
                with gr.Tab(name, id=name.lower()):
                    tab.build(page)

        def opened(name, upload, world, index, count, stride):
            require(name in models, f"There is no model {name!r}; choose one of the list.")
            loaded = models[name]
            clip = open_clip(loaded, upload, world, index, min(int(count), loaded.context), stride)
            side, (h, w) = clip.frames.shape[1], clip.codes.shape[1:]
            text = (
                f"**{clip.name}**, read by **{name}**: {len(clip.frames)} frames of {side} x {side} pixels, {h} x {w} "
                f"tokens each, of {loaded.processor.num_codes} codes."
            )
            return [clip, text, drawing.film(clip.frames)]

        def other_model(name):
            require(name in models, f"There is no model {name!r}; choose one of the list.")
            return [gr.Slider(maximum=max(2, models[name].context), value=models[name].frames), world_of(models[name])]

        inputs, outputs = [model, upload, world, index, count, stride], [page.clip, status, film]
        page.on(model.input, other_model, [model], [count, world])
        for listener in (blocks.load, start.click):
            event = page.on(listener, opened, inputs, outputs)
            for function, given, made in page.refreshed:
                event = page.on(event.success, function, given, made)
    return blocks


def world_of(loaded: Loaded) -> str:
    """The world whose clips a model is shown first: that of moving sprites if its name says so or it is promptable."""
    return WORLDS[0] if "motion" in loaded.name or prompt.prompting_of(loaded) else WORLDS[1]
