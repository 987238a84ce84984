"""The tab of what is inside: features of a layer as colours, attention of a token, and surprise, over the frames."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr
import numpy as np

from evaluation.app import drawing
from evaluation.app.clips import Opened
from evaluation.app.models import Loaded
from evaluation.app.tokens import surprise_top, surprises
from evaluation.app.wiring import PICTURE, Page, place_of_click, sliders_of_place
from evaluation.backbones.attention_maps import attention_of
from evaluation.backbones.toto import TotoBackbone
from evaluation.visualize.components import aligned, colours, fit_components
from evaluation.visualize.drawing import heat, overlay

ABOUT = (
    "**Features**: the first three principal components of a layer's tokens as red, green and blue, fitted to this "
    "clip; layer 0 holds the embeddings, and colours are matched from layer to layer. **Attention**: where the chosen "
    "token looks; every frame has the same scale. **Surprise**: nats of every token, light where the model was wrong. "
    "**Click the frame** or use the sliders to choose the token and the layer."
)
ALL_HEADS = "mean of all heads"


@dataclass(frozen=True, eq=False)
class Insides:
    """What does not depend on the chosen token.

    Fields:
        layers: uint8 (L + 1, T, h, w, 3), features as colours. explained: of each layer, the share of the variance
            that its three components have together. nats: float32 (T, h, w), or None.
    """

    layers: np.ndarray
    explained: list[float]
    nats: np.ndarray | None


def insides(loaded: Loaded, clip: Opened) -> Insides:
    """Features of all layers as colours, with order and signs matched from each layer to the next, and surprise."""
    backbone = TotoBackbone(loaded.model, loaded.processor, loaded.name, loaded.model.device)
    grids = backbone.grids(clip.ids, list(range(backbone.depth + 1)))
    pictures, explained, before = [], [], None
    for grid in grids.values():  # (1, T, h, w, D)
        features = grid[0].float().cpu().numpy()
        components = fit_components(features)
        if before is not None:
            components = aligned(components, components.scores(features), before)
        before = components.scores(features)
        pictures.append(colours(before))
        explained.append(float(sum(components.explained)))
    return Insides(np.stack(pictures), explained, surprises(loaded, clip))


def attended(loaded: Loaded, clip: Opened, layer: int, head: int | None, spot: tuple[int, int, int]) -> np.ndarray:
    """Attention of a token in the block before a layer (from 1), float32 (T, h, w). head: from 0; None: their mean."""
    maps = attention_of(loaded.model, clip.ids, spot)[max(1, layer) - 1]  # (heads, T, h, w)
    return (maps.mean(0) if head is None else maps[head]).numpy()


def head_of(choice: str | None) -> int | None:
    """The head of a choice in the page: "head 3" gives 2, the mean of all gives None."""
    return None if not choice or choice == ALL_HEADS else int(choice.split()[-1]) - 1


def films(
    loaded: Loaded, clip: Opened, inner: Insides, layer: int, head: int | None, spot: tuple[int, int, int]
) -> list[np.ndarray]:
    """The chosen frame with its token marked, then films of features, attention and surprise: uint8 (H, W, 3) each."""
    frame, row, column = spot
    grid = clip.codes.shape[1:]
    attention = attended(loaded, clip, layer, head, spot)
    most = max(float(attention.max()), 1e-9)
    over = [drawing.enlarged(overlay(each, values, most)) for each, values in zip(clip.frames, attention, strict=True)]
    over[frame] = drawing.marked(over[frame], row, column, grid)
    top = surprise_top(loaded.processor.num_codes)
    nats = np.zeros(clip.codes.shape) if inner.nats is None else inner.nats
    return [
        drawing.marked(drawing.enlarged(clip.frames[frame]), row, column, grid),
        drawing.film(inner.layers[layer]),
        drawing.film(np.stack(over)),
        drawing.film(heat(nats, top)),
    ]


def build(page: Page) -> None:
    """Lay out the tab and say what happens when a clip is opened, or a layer, head or token chosen."""
    gr.Markdown(ABOUT)
    with gr.Row():
        layer = gr.Slider(0, 1, value=1, step=1, label="Layer", info="attention is that of the block below it")
        head = gr.Dropdown([ALL_HEADS], value=ALL_HEADS, label="Attention head", filterable=False)
    with gr.Row():
        place = sliders_of_place()
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            chosen = gr.Image(label="Chosen frame", alt_text="The chosen frame; click to choose a token", **PICTURE)
        with gr.Column(scale=3, min_width=300):
            attention = gr.Image(label="Attention", alt_text="Attention of the chosen token over the frames", **PICTURE)
            features = gr.Image(label="Features", alt_text="Features of the layer as colours", **PICTURE)
            surprise = gr.Image(label="Surprise", alt_text="Surprise of every token over the frames", **PICTURE)
    about = gr.Markdown("Open a clip first.", elem_id="about_layer")
    inner = gr.State(None)
    outputs = [chosen, features, attention, surprise, about]

    def show(clip: Opened | None, inner: Insides | None, layer, head, frame, row, column):
        loaded, spot = page.spot(clip, frame, row, column)
        layer = int(layer)
        if inner is None or not 0 <= layer < len(inner.layers):
            raise ValueError("The model has no such layer; choose another one.")
        pictures = films(loaded, clip, inner, layer, head_of(head), spot)
        text = (
            f"Layer {layer} of {len(inner.layers) - 1}: three components hold {inner.explained[layer]:.0%} of the "
            f"variance of its tokens. Attention: block {max(1, layer)}, {head or ALL_HEADS}, of frame {spot[0] + 1}, "
            f"row {spot[1] + 1}, column {spot[2] + 1}."
        )
        return [*pictures, text]

    def opened(clip: Opened | None):
        loaded = page.model_of(clip)
        made, config = insides(loaded, clip), loaded.model.config
        deepest = len(made.layers) - 1
        heads = [ALL_HEADS, *(f"head {k + 1}" for k in range(config.num_attention_heads))]
        place = [len(clip.frames), *(count // 2 + 1 for count in clip.codes.shape[1:])]
        half = max(1, deepest // 2)
        shown = show(clip, made, half, ALL_HEADS, *place)
        choices = [gr.Slider(maximum=deepest, value=half), gr.Dropdown(heads, value=ALL_HEADS)]
        return [made, *choices, *page.reset_place(clip, place), *shown]

    def clicked(clip: Opened | None, inner, layer, head, frame, event: gr.SelectData):
        row, column = place_of_click(event, clip)
        return [row, column, *show(clip, inner, layer, head, frame, row, column)]

    page.when_opened(opened, [page.clip], [inner, layer, head, *place, *outputs])
    for control in (layer, head, *place):
        page.on(control.input, show, [page.clip, inner, layer, head, *place], outputs, trigger_mode="always_last")
    page.on(chosen.select, clicked, [page.clip, inner, layer, head, place[0]], [*place[1:], *outputs])
