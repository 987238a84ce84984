"""The numbers of n-grams as plain text."""

from __future__ import annotations

import math

from evaluation.ngrams.results import NgramScores, NgramsResult, TokenNgrams

HEADS = ("n", "places", "distinct", "independent", "seen once", "unseen", "bits", "plain bits", "Zipf")
MOST_UNSEEN = 0.5  # above it, an entropy rests on few repetitions and is marked


def table(result: NgramsResult) -> str:
    """A block of lines per tokenizer: a row per order and length."""
    return "\n".join(_block(tokens) for tokens in result.tokens)


def _block(tokens: TokenNgrams) -> str:
    h, w = tokens.grid
    bits = math.log2(tokens.num_codes)
    clips = "" if tokens.frames_per_clip == 1 else f" (clips of {tokens.frames_per_clip})"
    lines = [
        f"\n{tokens.name}: {tokens.frames:,} frames{clips} of {tokens.dataset}, {tokens.split}, {h} x {w} codes each",
        f"{tokens.codes_used:,} of {tokens.num_codes:,} codes in use; a code has {bits:.2f} bits",
        "",
        f"{'order':<11}" + _cells(HEADS),
    ]
    for order, found in tokens.orders.items():
        lines += [f"{order:<11}" + _cells(_row(each)) for each in found]
    shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in tokens.compression.items())
    lines += [
        "",
        f"{tokens.compressed_codes:,} codes compressed, as a share of {bits:.2f} bits each: {shares}",
    ]
    rows = [each for found in tokens.orders.values() for each in found]
    if any(each.unseen > MOST_UNSEEN for each in rows):
        lines.append(f"~ more than {100 * MOST_UNSEEN:.0f} % unseen, too few repetitions: likely too low")
    return "\n".join(lines)


def _row(each: NgramScores) -> tuple[str, ...]:
    return (
        str(each.n),
        f"{each.total:,}",
        f"{each.distinct:,}",
        f"{each.independent:,.0f}",
        f"{each.seen_once:,}",
        f"{100 * each.unseen:.1f} %",
        "-" if each.entropy is None else f"{'~' if each.unseen > MOST_UNSEEN else ''}{each.entropy:.2f}",
        f"{each.plain_entropy:.2f}",
        "-" if each.zipf is None else f"{each.zipf:.2f}",
    )


def _cells(values: tuple[str, ...]) -> str:
    widths = (2, 12, 12, 13, 12, 9, 8, 12, 7)
    return "".join(f"{value:>{width}}" for value, width in zip(values, widths, strict=True))
