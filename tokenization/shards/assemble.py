"""From finished parts to a folder of shards: rows in random order, the processor, the card, and last the manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenization.files import write_whole
from tokenization.sampling import Sampling
from tokenization.shards.code_parts import gather, plan
from tokenization.shards.files import SUFFIX, describe, held_out_of_few, write_shard
from tokenization.shards.format import FORMAT
from tokenization.shards.parts import finished_parts, on_main, part_name

# Items of which chance may hold out none: one in 20 of 200 leaves all in with a probability of 0.00004.
FEW = 200


def assemble(args, source, processor, partial: Path, precision: str, state) -> None:
    """Write the shards, the processor, the card and last the manifest; the processes share the work.

    Args:
        args: `TokenizeArgs`. source: the `ClipSource` whose parts are finished. partial: the working folder.
        precision: "bf16" or "fp32", of the encoder. state: Accelerate's PartialState.
    Raises:
        ValueError: no clip of the dataset could be used.
    """
    import numpy as np
    from accelerate.utils import gather_object

    from tokenization.processing_toto import SHIPPED
    from tokenization.shards.card import shard_card

    def planned() -> tuple[list, dict]:
        parts, counts = plan(partial / "parts", source.num_shards, source.limit)
        if not counts["rows"]:
            shutil.rmtree(partial)
            raise ValueError(f"No clip of {args.dataset} could be used: {reasons(counts['skipped'], '; ')}")
        return parts, counts

    parts, counts = on_main(state, planned)
    share = (state.process_index, state.num_processes)
    also = None
    if counts["kept"] <= FEW:
        also = held_out_of_few(gather(partial / "parts", parts, np.arange(counts["rows"]))["source"].to_pylist())
    shards = write_shards(partial / "parts", partial, parts, args.split, args.rows_per_shard, args.seed, *share, also)
    shards = sorted(gather_object(shards), key=lambda shard: (len(shard["file"]), shard["file"]))
    is_video, (h, w) = source.kind == "video", processor.grid
    num_frames = args.num_frames if is_video else 1
    manifest = {
        "format": FORMAT,
        "kind": source.kind,
        "split": args.split,
        "dataset": args.dataset,
        **({} if args.config_name is None else {"config_name": args.config_name}),
        "tokenizer": {
            "name": args.tokenizer or SHIPPED.name,
            "class": type(processor.visual_tokenizer).__name__,
            "fingerprint": processor.fingerprint,
        },
        "num_codes": processor.num_codes,
        "grid": [h, w],
        "num_frames": num_frames,
        "stride": args.stride if is_video and args.fps is None else None,
        "fps": args.fps if is_video else None,
        "resolution": processor.resolution,
        "crops": args.crops,
        **({} if args.detail is None else {"detail": args.detail}),
        **({"resize": args.resize} if is_video and args.resize != Sampling.resize else {}),
        "seed": args.seed,
        "precision": precision,
        "num_sequences": counts["rows"],
        "num_tokens": counts["rows"] * num_frames * h * w,
        "sources": counts["items"],
        "kept": counts["kept"],
        "skipped_count": len(counts["skipped"]),
        "skipped": counts["skipped"],
        **({"left": source.left} if source.left else {}),
        "shards": shards,
        "label_names": source.label_names,
        "processor": "processor",
    }

    def write() -> None:
        if precision == "bf16":
            manifest["bf16_agreement"] = finished_parts(partial / "parts")[part_name(0, 0)].get("bf16_agreement")
        processor.save_pretrained(partial / "processor")
        (partial / "README.md").write_text(shard_card(manifest, partial.name.removesuffix(".partial")))
        text = json.dumps(manifest, indent=2) + "\n"
        write_whole(partial / "manifest.json", lambda path: path.write_text(text))

    on_main(state, write)


def write_shards(
    parts_folder: Path,
    folder: Path,
    parts: list[tuple[str, int]],
    split: str,
    rows_per_shard: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    also: str | None = None,
) -> list[dict]:
    """Write this rank's share of the shards: all rows of the parts in one seeded random order.

    One shard is in memory at a time.

    Args:
        parts: [(name, rows)] in the order of the source, as `code_parts.plan` returns them; the same on every rank.
        also: see `files.write_shard`.
    Returns:
        `files.describe` of the shards whose number is rank (mod world). Shards that exist are not written
        again.
    """
    import numpy as np

    order = np.random.default_rng(seed).permutation(sum(rows for _, rows in parts))
    shards = []
    for number in range(rank, -(-len(order) // rows_per_shard), world):
        rows = order[number * rows_per_shard : (number + 1) * rows_per_shard]
        file = folder / f"{split}-{number:05d}{SUFFIX}"
        if not file.is_file():
            write_shard(file, gather(parts_folder, parts, rows), also)
        shards.append(describe(file))
    return shards


def reasons(skipped: list[dict], separator: str, most: int = 3) -> str:
    """The reasons why items were skipped: the first few, and the number of the others."""
    if not skipped:
        return "the split holds no rows."
    lines = [f"{item['source']}: {item['why']}" for item in skipped[:most]]
    if len(skipped) > most:
        lines.append(f"and {len(skipped) - most} more.")
    return separator.join(lines)
