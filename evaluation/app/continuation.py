"""The tab of continuations: several draws of the next frames side by side, each frame shown as soon as it is drawn."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import numpy as np
import torch

from evaluation.app import drawing
from evaluation.app.clips import Opened
from evaluation.app.models import Loaded
from evaluation.app.wiring import PICTURE, Page
from evaluation.pictures import panel, write_movie
from modeling_toto.decoding_toto import FrameWindow
from modeling_toto.generation_toto import check_rows, draw
from tokenization.sequences import codes_of, video_rows
from tokenization.sources.open import TOYWORLD_FPS
from training.flags import require

ABOUT = (
    "The model reads the first frames of the clip and draws the next ones, token by token. An **orange** border marks "
    "frames that it was given, a **blue** one frames that it drew. Beyond the model's context the oldest frames are "
    "dropped."
)
MAX_SEEDS = 4
QUICK = 512  # tokens of a draw that is offered first: seconds on a laptop for the models that ship
SLOW_FPS = TOYWORLD_FPS / 2  # of the movie, so that single frames can be seen


@torch.no_grad()
def drawn_frames(
    model, ids: torch.LongTensor, num_frames: int, temperature: float, top_k: int | None, seeds: list[int]
) -> Iterator[torch.LongTensor]:
    """The frames that `generate_frames` draws, one at a time, each row with a seed of its own.

    A row is what `generate_frames` gives for it alone with its seed (up to rounding, since rows share a batch).

    Args:
        ids: prompt (1, L). seeds: one per row B.
    Yields:
        ids of the next frame, (B, tokens_per_frame).
    Raises:
        ValueError: as `generate_frames`.
    """
    config = model.config
    begin, total = ids.shape[1], ids.shape[1] + num_frames * config.tokens_per_frame
    check_rows(config, ids, total, None)
    rows = torch.empty(len(seeds), total, dtype=torch.long, device=model.device)
    rows[:, :begin] = ids.to(model.device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    window = FrameWindow(model, rows)
    for start in range(begin, total, config.tokens_per_frame):
        end = start + config.tokens_per_frame
        window.make_room(end)
        for position in range(start, end):
            logits = window.code_logits(position)
            codes = [draw(logits[k : k + 1], temperature, top_k, generator=each) for k, each in enumerate(generators)]
            rows[:, position] = torch.cat(codes) + config.code_offset
        yield rows[:, start:end].cpu()


def continued(
    loaded: Loaded, clip: Opened, prompt: int, new: int, temperature: float, top_k: int | None, seeds: list[int]
) -> Iterator[np.ndarray]:
    """The frames so far after every drawn one, uint8 (seeds, prompt + drawn, R, R, 3), the prompt as reconstructed.

    Raises:
        ValueError: a prompt longer than the clip or the context, or an option out of range.
    """
    require(
        1 <= prompt <= len(clip.frames),
        f"The clip has {len(clip.frames)} frames; give the model as many or fewer.",
    )
    require(prompt <= loaded.context, f"{loaded.name} reads at most {loaded.context} frames; give it fewer.")
    require(0 <= temperature <= 2, f"The temperature is {temperature:g}; choose 0 to 2.")
    require(top_k is None or top_k >= 1, f"The number of likeliest tokens is {top_k}; choose 1 or more.")
    ids = video_rows(clip.codes[None, :prompt], end=False)
    so_far = [clip.reconstructed[None, :prompt].repeat(len(seeds), 0)]
    for frame in drawn_frames(loaded.model, ids, new, temperature, top_k, seeds):
        codes = codes_of(frame, loaded.processor.grid)  # (seeds, 1, h, w)
        so_far.append(loaded.processor.decode(video_rows(codes, end=False)))
        yield np.concatenate(so_far, 1)


def movie(clip: Opened, generated: np.ndarray, prompt: int, folder: Path) -> str:
    """An mp4 of the true frames, their reconstruction and all draws next to each other; returns its path."""
    total = generated.shape[1]
    result = {
        "true": clip.frames[:total],
        "reconstructed": clip.reconstructed[:total],
        "generated": generated,
        "num_prompt_frames": prompt,
        "num_frames": total - prompt,
    }
    file = folder / f"continued_{time.time_ns()}.mp4"
    write_movie(file, panel(result), SLOW_FPS)
    return str(file)


def build(page: Page) -> None:
    """Lay out the tab and say what happens when it is asked for frames."""
    gr.Markdown(ABOUT)
    with gr.Row():
        prompt = gr.Slider(1, 16, value=8, step=1, label="Frames given to the model", min_width=150)
        new = gr.Slider(1, page.args.max_frames, value=8, step=1, label="Frames to draw", min_width=150)
        temperature = gr.Slider(
            0, 2, value=1.0, step=0.05, label="Temperature", info="0: the likeliest token each time", min_width=150
        )
        top_k = gr.Slider(
            0, 256, value=0, step=1, label="Draw from the k likeliest tokens", info="0: from all", min_width=150
        )
    with gr.Row():
        seeds = gr.Slider(1, MAX_SEEDS, value=2, step=1, label="Draws side by side", min_width=150)
        first = gr.Number(0, label="First seed", precision=0, minimum=0, maximum=2**31, min_width=150)
        start = gr.Button("Draw the next frames", variant="primary", elem_id="draw")
        stop = gr.Button("Stop", elem_id="stop")
    status = gr.Markdown("Open a clip, then press Draw.", elem_id="drawing")
    with gr.Row():
        options = {"min_width": 300, **PICTURE}
        true = gr.Image(label="True frames", alt_text="The true frames of the clip", **options)
        draws = [
            gr.Image(label=f"Draw {k + 1}", alt_text=f"Frames of draw {k + 1}", visible=k < 2, **options)
            for k in range(MAX_SEEDS)
        ]
    film = gr.Video(
        label="Movie: true, through the tokenizer, drawn",
        interactive=False,
        visible=False,
        loop=True,
        height=260,
    )
    outputs = [status, true, *draws, film]

    def opened(clip: Opened | None):
        loaded = page.model_of(clip)
        half = max(1, min(len(clip.frames), loaded.frames) // 2)
        most = min(len(clip.frames), loaded.context)
        quick = max(1, QUICK // loaded.model.config.tokens_per_frame)
        sliders = [
            gr.Slider(maximum=max(2, most), value=half, interactive=most > 1),
            gr.Slider(value=min(page.args.max_frames, max(1, loaded.frames - half), quick)),
            gr.Slider(maximum=loaded.processor.num_codes),
        ]
        empty = [gr.Image(value=None) for _ in draws]
        return [*sliders, "Press Draw.", drawing.film(clip.frames), *empty, gr.Video(value=None, visible=False)]

    def drawn(clip: Opened | None, prompt, new, temperature, top_k, seeds, first):
        loaded = page.model_of(clip)
        prompt, new, seeds, first = int(prompt), int(new), int(seeds), int(first or 0)
        require(1 <= new <= page.args.max_frames, f"Choose 1 to {page.args.max_frames} frames to draw, not {new}.")
        require(1 <= seeds <= MAX_SEEDS, f"Choose 1 to {MAX_SEEDS} draws, not {seeds}.")
        require(0 <= first <= 2**31, f"The first seed is {first}; choose 0 to {2**31}.")
        names, began = list(range(first, first + seeds)), time.perf_counter()
        places = drawing.film(clip.frames[: prompt + new], prompt + new)
        wait = [gr.Image(visible=k < seeds, value=None) for k in range(MAX_SEEDS)]
        yield ["Reading the given frames.", places, *wait, gr.Video(value=None, visible=False)]
        frames = None
        rows = continued(loaded, clip, prompt, new, float(temperature), int(top_k) or None, names)
        for number, frames in enumerate(rows, 1):
            seconds = time.perf_counter() - began
            rate = number * seeds * loaded.model.config.tokens_per_frame / seconds
            text = f"Frame {number} of {new}, {seconds:.1f} s, {rate:,.0f} tokens per second."
            films = [
                gr.Image(value=drawing.film(each, prompt + new, prompt), label=f"Draw with seed {seed}")
                for each, seed in zip(frames, names, strict=True)
            ]
            yield [text, gr.skip(), *films, *[gr.skip()] * (MAX_SEEDS - seeds), gr.skip()]
        folder = Path(tempfile.mkdtemp(dir=page.folder))
        shown = gr.Video(value=movie(clip, frames, prompt, folder), visible=True)
        yield [f"Done. {text}", *[gr.skip()] * (1 + MAX_SEEDS), shown]

    page.when_opened(opened, [page.clip], [prompt, new, top_k, *outputs])
    inputs = [page.clip, prompt, new, temperature, top_k, seeds, first]
    running = page.on(start.click, drawn, inputs, outputs, show_progress="minimal")
    stop.click(None, cancels=[running], api_visibility="private")
