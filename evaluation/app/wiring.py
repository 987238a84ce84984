"""What the tabs share: the models, the open clip, one queue for all that computes, and errors as sentences."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr

from evaluation.app.args import AppArgs
from evaluation.app.clips import Opened
from evaluation.app.drawing import SIDE
from evaluation.app.models import Loaded

# Options of every picture that is only looked at.
PICTURE = {"format": "png", "interactive": False, "buttons": ["fullscreen"], "elem_classes": "picture"}


@dataclass
class Page:
    """What a tab is given.

    Fields:
        models: {name: Loaded}. args: the command's. folder: of uploads and movies, the only one that is served.
        clip: the state that holds a visitor's `Opened`.
        refreshed: (function, inputs, outputs) of every tab, called in turn when a clip was opened.
    """

    models: dict[str, Loaded]
    args: AppArgs
    folder: Path
    clip: gr.State
    refreshed: list[tuple[Callable, list, list]] = field(default_factory=list)

    def model_of(self, clip: Opened | None) -> Loaded:
        """The model through whose tokenizer a clip was read. Raises ValueError if none is open."""
        if clip is None:
            raise ValueError("No clip is open; choose one at the top and press Open.")
        return self.models[clip.model]

    def spot(self, clip: Opened | None, frame, row, column) -> tuple[Loaded, tuple[int, int, int]]:
        """(model, (frame, row, column) from 0) of sliders that count from 1. Raises ValueError outside of the clip."""
        loaded, spot = self.model_of(clip), (int(frame) - 1, int(row) - 1, int(column) - 1)
        if not all(0 <= number < count for number, count in zip(spot, clip.codes.shape, strict=True)):
            raise ValueError("The clip has no such token; choose another frame, row or column.")
        return loaded, spot

    def reset_place(self, clip: Opened, place: list[int]) -> list[gr.Slider]:
        """The sliders of `sliders_of_place` for another clip, at the frame, row and column `place`, from 1."""
        return [
            gr.Slider(maximum=max(2, count), value=value, interactive=count > 1)
            for count, value in zip(clip.codes.shape, place, strict=True)
        ]

    def when_opened(self, function: Callable, inputs: list, outputs: list) -> None:
        """Call `function` whenever a clip was opened."""
        self.refreshed.append((function, inputs, outputs))

    def on(self, listener: Callable, function: Callable, inputs: list, outputs: list, **options):
        """Call `function` at an event; one call at a time runs for all visitors, and its errors become sentences."""
        return listener(
            told(function),
            inputs,
            outputs,
            api_visibility="private",
            concurrency_limit=1,
            concurrency_id="model",
            **options,
        )


def sliders_of_place() -> list[gr.Slider]:
    """Sliders for the frame, row and column of a token, from 1; for those who do not click pictures."""
    names = ("Frame", "Row of the token", "Column of the token")
    return [gr.Slider(1, 2, value=1, step=1, label=name, min_width=140) for name in names]


def place_of_click(event: gr.SelectData, clip: Opened | None) -> tuple[int, int]:
    """(row, column), from 1, of a click into a picture of SIDE pixels a side."""
    if clip is None:
        raise ValueError("No clip is open; choose one at the top and press Open.")
    x, y = event.index
    h, w = clip.codes.shape[1:]
    return min(h, int(y) * h // SIDE + 1), min(w, int(x) * w // SIDE + 1)


def told(function: Callable) -> Callable:
    """The function, whose ValueError becomes a sentence in the page, without a traceback there or in the terminal."""

    def sentence(error: Exception) -> gr.Error:
        return gr.Error(str(error), duration=None, title="That did not work", print_exception=False)

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def streamed(*given):
            try:
                yield from function(*given)
            except ValueError as error:
                raise sentence(error) from None

        return streamed

    @functools.wraps(function)
    def called(*given):
        try:
            return function(*given)
        except ValueError as error:
            raise sentence(error) from None

    return called
