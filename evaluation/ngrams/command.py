"""`toto ngrams`: reads the codes, counts, and writes the result, a table and a figure."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.ngrams.args import DESCRIPTION, NgramsArgs, check_flags
from tokenization.terminal.next_command import after_tokenize, beside, say_next
from training.flags import parse, refuse_idle

if TYPE_CHECKING:
    import numpy as np

    from evaluation.ngrams.reading import Tokens
    from evaluation.ngrams.results import NgramScores, TokenNgrams

STEPS = (1, 2, 5)  # of every power of ten: numbers of frames at which distinct n-grams are reported

HOPELESS = 0.9  # unseen mass above which no entropy is given: independent codes are then bits off


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((NgramsArgs,), argv, "toto ngrams", DESCRIPTION)
    check_flags(args, argv)

    from evaluation.ngrams.figures import draw
    from evaluation.ngrams.reading import check_sizes, dataset_tokens, open_frames, shard_tokens
    from evaluation.ngrams.results import NgramsResult
    from evaluation.ngrams.tables import table
    from evaluation.results import command_line
    from tokenization.files import write_json, write_whole
    from training.engine.device import versions

    if args.shards:
        tokens = [shard_tokens(folder, args.max_frames) for folder in args.shards]
    else:
        tokens = [dataset_tokens(args, tokenizer) for tokenizer in args.tokenizer or [None]]
    check_sizes(tokens, args.n)
    if args.dataset and open_frames(args, tokens[0].resolution).kind == "image":
        refuse_idle(argv, ("num_frames", "stride", "fps", "resize"), "on images, each of which is one frame")
    result = NgramsResult(
        command=command_line("ngrams", argv),
        n=args.n,
        tokens=[scores_of(each, args.n) for each in tokens],
        versions=versions(),
    )
    if args.output is None:
        print(table(result))
        go_on(args)
        return
    output = Path(args.output)
    write_json(output, result.to_json())
    print(f"{table(result)}\nwrote {output}")
    try:
        write_whole(place := output.with_suffix(".png"), lambda file: draw(result, file))
    except ImportError:
        print("no figure: it needs matplotlib (pip install 'modeling-toto[demo]')")
    else:
        print(f"wrote {place}")
    go_on(args)


def go_on(args: NgramsArgs) -> None:
    """The command after this one: train on the shards, or make them."""
    if args.shards:
        from tokenization.shards.format import read_manifest

        manifest = read_manifest(args.shards[0])
        after_tokenize(args.shards[0], manifest, manifest["split"])
    else:
        tokenizer = ["--tokenizer", args.tokenizer[0]] if args.tokenizer else []
        shards = beside(args.output or "out/ngrams.json", "shards")
        say_next("tokenize", "--dataset", args.dataset, *tokenizer, "--output", shards)


def scores_of(tokens: Tokens, n: int) -> TokenNgrams:
    """Read the codes of one tokenizer, count their n-grams in every order and measure them."""
    from evaluation.ngrams.counting import ORDERS, code_counts, longest
    from evaluation.ngrams.measures import compression
    from evaluation.ngrams.results import TokenNgrams
    from tokenization.terminal.progress import tqdm

    codes = tokens.read()
    frames = codes.shape[0] * codes.shape[1]
    points = spaced(frames)
    singles = code_counts(codes, tokens.num_codes)
    lengths = {
        order: range(1 if order == "raster" else 2, min(n, longest(order, codes.shape[1:])) + 1) for order in ORDERS
    }
    with tqdm(total=sum(map(len, lengths.values())), desc="count", unit=" lengths") as bar:

        def measured(order: str, length: int) -> NgramScores:
            found = measure(codes, singles, order, length, points)
            bar.update()
            return found

        orders = {order: [measured(order, length) for length in lengths[order]] for order in ORDERS}
    compressed, shares = compression(codes, tokens.num_codes)
    return TokenNgrams(
        name=tokens.name,
        dataset=tokens.dataset,
        split=tokens.split,
        fingerprint=tokens.fingerprint,
        resolution=tokens.resolution,
        num_codes=tokens.num_codes,
        grid=list(tokens.grid),
        frames=frames,
        frames_per_clip=codes.shape[1],
        codes_used=int((singles > 0).sum()),
        growth_frames=points,
        orders={order: found for order, found in orders.items() if found},
        compressed_codes=compressed,
        compression=shares,
    )


def measure(codes: np.ndarray, singles: np.ndarray, order: str, n: int, points: list[int]) -> NgramScores:
    """The measures of one order and length. singles: how often each code occurs. points: numbers of frames."""
    from evaluation.ngrams import measures
    from evaluation.ngrams.counting import count
    from evaluation.ngrams.results import NgramScores

    found = count(codes, len(singles), order, n)
    spectrum = found.spectrum
    distinct, totals = found.growth(points)
    independent = measures.expected_distinct(singles, n, totals)
    unseen = measures.unseen_mass(spectrum)
    ranks = measures.spaced_ranks(spectrum.distinct)
    slope, last = measures.zipf_slope(spectrum) or (None, None)
    return NgramScores(
        n=n,
        total=spectrum.total,
        distinct=spectrum.distinct,
        independent=float(independent[-1]),
        seen_once=spectrum.kinds_seen(1),
        unseen=unseen,
        entropy=None if unseen > HOPELESS else measures.entropy(spectrum) - measures.entropy(found.prefixes),
        plain_entropy=measures.plain_entropy(spectrum) - measures.plain_entropy(found.prefixes),
        zipf=slope,
        zipf_ranks=last,
        ranks=ranks.tolist(),
        counts=measures.rank_frequency(spectrum, ranks).tolist(),
        growth=distinct.tolist(),
        growth_independent=independent.tolist(),
    )


def spaced(frames: int) -> list[int]:
    """1, 2, 5, 10, 20, ... below the number of frames, and that number."""
    found, power = [], 1
    while power < frames:
        found += [step * power for step in STEPS if step * power < frames]
        power *= 10
    return [*found, frames]
