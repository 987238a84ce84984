"""From finished parts to a folder of shards: rows in random order, the processor, the card, and last the manifest."""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path

from tokenization.files import write_whole
from tokenization.sampling import Sampling
from tokenization.shards.code_parts import plan, sources_of
from tokenization.shards.files import FEW, held_out_of_few
from tokenization.shards.format import FORMAT
from tokenization.shards.parts import FinishedParts, on_main, part_name
from tokenization.shards.shuffle import write_shards
from tokenization.shards.working_folder import PARTS, PLAN


def planned(args, source, partial: Path) -> tuple[list[tuple[str, int]], dict, str | None]:
    """The parts that the shards are made of, and counts for the manifest, see `code_parts.plan`; kept in a file.

    The third is the item that is held out of few, see `held_out_of_few`.

    The file says that all parts are finished. From then on the parts themselves are not looked at.

    Raises:
        code_parts.Unfinished: a part is missing. ValueError: no clip of the dataset could be used.
    """
    file, folder = partial / PLAN, partial / PARTS
    if not file.is_file():
        parts, counts = plan(folder, source.num_shards, source.limit)
        if not counts["rows"]:
            shutil.rmtree(partial)
            raise ValueError(f"No clip of {args.dataset} could be used: {reasons(counts['skipped'], '; ')}")
        counts["bf16_agreement"] = FinishedParts(folder)[part_name(0, 0)].get("bf16_agreement")
        also = held_out_of_few(sources_of(folder, parts)) if counts["kept"] <= FEW else None
        write_whole(file, lambda path: path.write_text(json.dumps({"parts": parts, "counts": counts, "also": also})))
    found = json.loads(file.read_text())
    return [tuple(part) for part in found["parts"]], found["counts"], found["also"]


def assemble(args, source, processor, partial: Path, precision: str, state, rank: int, world: int) -> None:
    """Write the shards, the processor, the card and last the manifest; ranks share the work, at the same time or not.

    Args:
        args: `TokenizeArgs`. source: the `ClipSource` whose parts are finished. partial: the working folder.
        precision: "bf16" or "fp32", of the encoder. state: Accelerate's PartialState. rank, world: this task's number
            among all.
    Raises:
        as `planned`.
    """
    from tokenization.processing_toto import SHIPPED
    from tokenization.shards.card import shard_card

    parts, counts, also = on_main(state, lambda: planned(args, source, partial))
    is_video, (h, w) = source.kind == "video", processor.grid
    num_frames = args.num_frames if is_video else 1
    order = (args.split, args.rows_per_shard, args.seed, num_frames * h * w)
    shards = write_shards(partial / PARTS, partial, parts, *order, rank, world, also=also)
    state.wait_for_everyone()  # one that made what another was making, too
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
        **({"decoder": args.decoder} if is_video and args.decoder != "pyav" else {}),
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
        **({"bf16_agreement": counts["bf16_agreement"]} if precision == "bf16" else {}),
    }

    def write() -> None:
        card = shard_card(manifest, partial.name.removesuffix(".partial"))
        write_whole(partial / "README.md", lambda path: path.write_text(card))
        _save_processor(processor, partial / "processor")
        text = json.dumps(manifest, indent=2) + "\n"
        write_whole(partial / "manifest.json", lambda path: path.write_text(text))

    on_main(state, write)


def _save_processor(processor, folder: Path) -> None:
    """Save it under another name and rename it, unless it is there: another task may be doing the same."""
    hidden = folder.with_name(f"{folder.name}.{secrets.token_hex(6)}.partial")
    processor.save_pretrained(hidden)
    try:
        hidden.rename(folder)
    except OSError:
        shutil.rmtree(hidden)
        if not folder.is_dir():
            raise


def reasons(skipped: list[dict], separator: str, most: int = 3) -> str:
    """The reasons why items were skipped: the first few, and the number of the others."""
    if not skipped:
        return "the split holds no rows."
    lines = [f"{item['source']}: {item['why']}" for item in skipped[:most]]
    if len(skipped) > most:
        lines.append(f"and {len(skipped) - most} more.")
    return separator.join(lines)
