"""The tab of prompting: depth, flow and masks by a model that `toto prompt train` made promptable."""

from __future__ import annotations

import gradio as gr

from evaluation.app.wiring import Page

HOW = (
    "None of the models of this page is promptable. `toto prompt train --help` says how to make one: a tune of about "
    "1,000 steps in which rows of frames show a task (depth, flow or masks). Then start the page with "
    "`toto app --model RUN`."
)


def build(page: Page) -> None:
    """Lay out the tab."""
    gr.Markdown(HOW)
