"""The figure of `toto ngrams`: how often n-grams occur, by rank, and how their number grows with the images."""

from __future__ import annotations

from pathlib import Path

from evaluation.ngrams.counting import ORDERS
from evaluation.ngrams.results import NgramsResult, TokenNgrams
from evaluation.report.figures import SERIES, new_figure, short_ticks


def draw(result: NgramsResult, file: Path) -> None:
    """A column per n, in raster order: counts by rank (as the paper's Figures 3, 10 and 11) above the growth.

    Both axes are logarithmic (how the paper's are is not known to us). Dashed: n-grams of independent codes.
    """
    images = all(tokens.frames_per_clip == 1 for tokens in result.tokens)
    figure, axes = new_figure(3.1 * result.n, 6.0, (2, result.n))
    for column in range(result.n):
        ranks, growth = axes[0, column], axes[1, column]
        for tokens, (colour, marker) in zip(result.tokens, _styles(len(result.tokens)), strict=True):
            each = tokens.orders[ORDERS[0]][column]
            ranks.plot(each.ranks, each.counts, color=colour, marker=marker, markevery=8, markersize=4, linewidth=1.8)
            growth.plot(tokens.growth_frames, each.growth, color=colour, marker=marker, markersize=4, linewidth=1.8)
            growth.plot(tokens.growth_frames, each.growth_independent, color=colour, linewidth=1.2, dashes=(4, 2))
        ranks.set_title(f"{column + 1}-grams", fontsize=11)
        ranks.set_xlabel("rank")
        growth.set_xlabel("images" if images else "frames")
        for panel in (ranks, growth):
            panel.set_xscale("log")
            panel.set_yscale("log")
            short_ticks(panel.xaxis)
            short_ticks(panel.yaxis)
    axes[0, 0].set_ylabel("times seen")
    axes[1, 0].set_ylabel("distinct")
    lines = axes[1, 0].get_lines()
    handles = [*lines[::2], lines[1]]
    labels = [label(tokens) for tokens in result.tokens] + ["dashed: if codes were independent"]
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    figure.savefig(file, format="png", dpi=80)


def label(tokens: TokenNgrams) -> str:
    """The last two parts of the name of a tokenizer or of a folder of shards, and the size of its codebook."""
    return f"{'/'.join(Path(tokens.name).parts[-2:])} ({tokens.num_codes:,} codes)"


def _styles(count: int) -> list[tuple[str, str]]:
    return [SERIES[k % len(SERIES)] for k in range(count)]
