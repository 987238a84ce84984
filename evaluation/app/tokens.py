"""The tab of tokens: a frame, its reconstruction, codes, error and surprise; and everything about one token."""

from __future__ import annotations

import gradio as gr
import numpy as np
import torch

from evaluation.app import drawing
from evaluation.app.clips import Opened
from evaluation.app.models import Loaded
from evaluation.app.wiring import PICTURE, Page, place_of_click, sliders_of_place
from evaluation.visualize.drawing import heat
from evaluation.visualize.likelihood import check_predicts, surprise_of
from tokenization.evaluate_tokenizer.scores import psnr, ssim
from tokenization.sequences import CODE_OFFSET, video_rows

ABOUT = (
    "A visual tokenizer turns each 8 x 8 patch or so of a frame into one code of its codebook; the model reads and "
    "predicts these codes. **Click a picture** or use the sliders to choose a token."
)
ERROR_TOP = 64  # mean difference of a pixel's channels, of 255, that is drawn lightest
LIKELIEST = 5
TITLES = ("True frame", "Reconstruction from codes", "Codes", f"Error (0 to {ERROR_TOP} of 255)", "Surprise")


def surprises(loaded: Loaded, clip: Opened) -> np.ndarray | None:
    """Nats of every token given those before it, float32 (T, h, w); None for a model that does not predict them all."""
    try:
        check_predicts(loaded.model)
    except ValueError:
        return None
    return surprise_of(loaded.model, clip.ids)[0].numpy()


def most_surprising(clip: Opened, nats: np.ndarray | None) -> list[int]:
    """[frame, row, column], from 1, of the token with most nats; the middle of the first frame without any."""
    h, w = clip.codes.shape[1:]
    found = (0, h // 2, w // 2) if nats is None else np.unravel_index(nats.argmax(), nats.shape)
    return [int(number) + 1 for number in found]


def surprise_top(num_codes: int) -> float:
    """Nats that are drawn lightest: those of a guess among all codes."""
    return float(np.log(num_codes))


def pictures(
    loaded: Loaded, clip: Opened, nats: np.ndarray | None, frame: int, row: int, column: int
) -> list[np.ndarray]:
    """The pictures of TITLES for a frame (from 0), uint8 (SIDE, SIDE, 3) each, with one token marked."""
    true, copy = clip.frames[frame], clip.reconstructed[frame]
    difference = np.abs(true.astype(float) - copy).mean(-1)
    codes = loaded.processor.num_codes
    nats = np.zeros(clip.codes.shape) if nats is None else nats
    found = [
        drawing.enlarged(true),
        drawing.enlarged(copy),
        drawing.code_map(clip.codes[frame]),
        drawing.enlarged(heat(difference, ERROR_TOP)),
        drawing.enlarged(heat(nats[frame], surprise_top(codes))),
    ]
    return [drawing.marked(picture, row, column, clip.codes.shape[1:]) for picture in found]


def patches(loaded: Loaded, clip: Opened, frame: int, row: int, column: int) -> np.ndarray:
    """The token's pixels: true, reconstructed, and its code alone (in a frame full of it): uint8 (H, W, 3)."""
    code = int(clip.codes[frame, row, column])
    h, w = clip.codes.shape[1:]
    alone = loaded.processor.decode(video_rows(np.full((1, 1, h, w), code), end=False))[0, 0]
    side = clip.frames.shape[1] // h
    cut = (slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side))
    middle = (slice(h // 2 * side, (h // 2 + 1) * side), slice(w // 2 * side, (w // 2 + 1) * side))
    found = [clip.frames[frame][cut], clip.reconstructed[frame][cut], alone[middle]]
    gap = np.full((128, 12, 3), 255, np.uint8)
    large = [drawing.enlarged(np.ascontiguousarray(patch), 128) for patch in found]
    return np.concatenate([large[0], gap, large[1], gap, large[2]], 1)


@torch.no_grad()
def guesses(loaded: Loaded, clip: Opened, frame: int, row: int, column: int) -> list[tuple[int, float]]:
    """The LIKELIEST codes for a token given all before it, with their probabilities among all codes."""
    h, w = clip.codes.shape[1:]
    before = clip.ids[:, : 1 + (frame * h + row) * w + column].to(loaded.model.device)
    logits = loaded.model(input_ids=before, logits_to_keep=1, use_cache=False).logits[0, -1, CODE_OFFSET:]
    best = logits.float().softmax(-1).topk(LIKELIEST)
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def sentence(loaded: Loaded, clip: Opened, nats: np.ndarray | None, frame: int, row: int, column: int) -> str:
    """What there is to say of a token, as Markdown."""
    code = int(clip.codes[frame, row, column])
    here, total = int((clip.codes[frame] == code).sum()), int((clip.codes == code).sum())
    true, copy = (torch.from_numpy(x[frame : frame + 1]).permute(0, 3, 1, 2) for x in (clip.frames, clip.reconstructed))
    lines = [
        f"**Code {code}** of {loaded.processor.num_codes}, at frame {frame + 1}, row {row + 1}, column {column + 1}: "
        f"{here} times in this frame, {total} times in the clip.",
    ]
    if nats is not None:
        chance = np.exp(-nats[frame, row, column])
        listed = ", ".join(f"{each} ({share:.1%})" for each, share in guesses(loaded, clip, frame, row, column))
        blind = surprise_top(loaded.processor.num_codes)
        lines.append(
            f"**Surprise {nats[frame, row, column]:.2f} nats**: the model gave it a probability of {chance:.1%} "
            f"(a guess among all codes: {blind:.2f} nats). Likeliest codes: {listed}."
        )
        lines.append(f"Mean surprise of this frame: {nats[frame].mean():.2f} nats; of the clip: {nats.mean():.2f}.")
    else:
        lines.append("This model predicts no next token, so there is no surprise.")
    lines.append(f"Reconstruction of this frame: PSNR {psnr(true, copy)[0]:.1f} dB, SSIM {ssim(true, copy)[0]:.3f}.")
    return "\n\n".join(lines)


def build(page: Page) -> None:
    """Lay out the tab and say what happens when a clip is opened or a token chosen."""
    gr.Markdown(ABOUT)
    with gr.Row():
        place = sliders_of_place()
    with gr.Row():
        shown = [
            gr.Image(
                label=title,
                alt_text=f"{title}; click to choose a token",
                min_width=140,
                **PICTURE,
            )
            for title in TITLES
        ]
    with gr.Row():
        with gr.Column(min_width=280):
            about = gr.Markdown("Open a clip first.", elem_id="about_token")
        with gr.Column(min_width=280):
            cut = gr.Image(
                label="Its pixels: true, reconstructed, its code alone",
                alt_text="The pixels of the token: true, reconstructed, and its code alone",
                **PICTURE,
            )
    nats = gr.State(None)

    def show(clip: Opened | None, nats, frame, row, column):
        loaded, spot = page.spot(clip, frame, row, column)
        made = pictures(loaded, clip, nats, *spot)
        return [*made, sentence(loaded, clip, nats, *spot), patches(loaded, clip, *spot)]

    def opened(clip: Opened | None):
        nats = surprises(page.model_of(clip), clip)
        place = most_surprising(clip, nats)
        return [nats, *page.reset_place(clip, place), *show(clip, nats, *place)]

    def clicked(clip: Opened | None, nats, frame, event: gr.SelectData):
        row, column = place_of_click(event, clip)
        return [row, column, *show(clip, nats, frame, row, column)]

    outputs = [*shown, about, cut]
    page.when_opened(opened, [page.clip], [nats, *place, *outputs])
    for slider in place:
        page.on(slider.input, show, [page.clip, nats, *place], outputs, trigger_mode="always_last")
    for picture in shown:
        page.on(picture.select, clicked, [page.clip, nats, place[0]], [*place[1:], *outputs])
