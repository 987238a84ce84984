"""Pre-train a peer of the probing study, a ViT-MAE or an ImageGPT of transformers, on images: its budget is CPU time.

    python -m studies.probing.pretrain_peer --kind mae --dataset DATA/cifar10 --output_dir runs/mae_0 --minutes 60

Writes a folder that `toto probe --model` reads, with study.json: the images seen and the cost. Images that `toto
pretrain` holds out of its shards are held out here too. With --minutes the schedule follows the CPU time of the steps,
so that another job on the machine does not shorten the training; a run is exactly repeatable only with --max_steps.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tokenization.terminal.command_line import parse_flags
from training.flags import require_positive

WARMUP = 1 / 15  # share of the budget; the study's Toto: 60 of 900 steps
LOW = 0.05  # end of the cosine, as of the study's Toto
STATE = "state.pt"
# Settings that may change when a stopped run is resumed.
FREE = ("output_dir", "resume", "save_minutes")


@dataclass(frozen=True)
class PeerArgs:
    """Flags."""

    kind: str = field(metadata={"help": "mae or igpt"})
    dataset: str = field(metadata={"help": "images: Hub id, folder, parquet or webdataset"})
    output_dir: str = field(metadata={"help": "folder to write; until the end the work is in OUTPUT_DIR.partial"})
    split: str = field(default="train", metadata={"help": "split of the dataset"})
    minutes: float | None = field(default=None, metadata={"help": "budget: CPU minutes of the steps, all threads"})
    max_steps: int | None = field(default=None, metadata={"help": "budget: steps"})
    learning_rate: float = field(default=2e-3, metadata={"help": "peak; warm-up and cosine follow"})
    batch_size: int | None = field(default=None, metadata={"help": "pictures per step (mae: 128, igpt: 32)"})
    augment: bool = field(
        default=False, metadata={"help": "mirror and shift pictures; the Toto's shards are of one crop"}
    )
    config: str = field(default="{}", metadata={"help": "JSON mapping of fields of the peer's config"})
    max_images: int | None = field(default=None, metadata={"help": "maximum number of pictures to read"})
    val_images: int = field(default=512, metadata={"help": "held-out pictures for the validation loss, at most"})
    save_minutes: float = field(default=5.0, metadata={"help": "minutes between checkpoints"})
    resume: bool = field(default=False, metadata={"help": "resume from OUTPUT_DIR.partial, if it exists"})
    seed: int = field(default=0, metadata={"help": "seed of weights, order, masks and colours"})

    def __post_init__(self):
        if self.kind not in ("mae", "igpt"):
            raise ValueError(f"--kind must be mae or igpt, not {self.kind!r}.")
        if (self.minutes is None) == (self.max_steps is None):
            raise ValueError("The budget is not clear; give either --minutes or --max_steps.")
        require_positive(self, "minutes", "max_steps", "learning_rate", "batch_size", "max_images", "val_images")
        require_positive(self, "save_minutes")
        if Path(self.output_dir).exists():
            raise ValueError(f"{self.output_dir} exists already; name another --output_dir.")


def read_pictures(args: PeerArgs, resolution: int):
    """(training, validation) pictures, uint8 (N, R, R, 3), resized and cropped as by `toto probe`.

    The pictures held out of training are those that `toto pretrain` holds out of shards.

    Raises:
        ValueError: videos, or too few pictures to hold any out.
    """
    import numpy as np
    import torch
    from tqdm.auto import tqdm

    from tokenization.sampling import Sampling
    from tokenization.sources.open import open_source
    from training.rows.shard_rows import is_held_out

    source = open_source(args.dataset, args.split, Sampling(resolution=resolution), limit=args.max_images)
    if source.kind != "image":
        raise ValueError(f"{args.dataset} contains videos; name a dataset of images.")
    parts: tuple[list, list] = ([], [])
    for clip in tqdm(source, desc="reading pictures", unit="picture"):
        parts[is_held_out(clip.source)].append(clip.frames[0])
    if not all(parts):
        count = len(parts[0]) + len(parts[1])
        raise ValueError(f"{args.dataset} has {count} pictures, of which about one in 20 is held out; take more.")
    return [torch.from_numpy(np.stack(part)) for part in (parts[0], parts[1][: args.val_images])]


def load_state(folder: Path, settings: dict) -> dict | None:
    """The checkpoint of a stopped run; None if it has none yet.

    Raises:
        ValueError: it was started with other settings.
    """
    import torch

    if not (folder / STATE).is_file():
        return None
    state = torch.load(folder / STATE, weights_only=True)
    for name, before in json.loads(state["settings"]).items():
        if before != settings[name]:
            raise ValueError(f"--{name} was {before} in {folder} and is now {settings[name]}; delete it to restart.")
    return state


def train(args: PeerArgs) -> dict:
    """Pre-train and write the folder; returns the contents of its study.json.

    Raises:
        ValueError: a stopped run without --resume or with other settings; no images; a loss that is not finite.
    """
    import torch
    from torch.nn.utils import clip_grad_norm_
    from tqdm.auto import tqdm

    from studies.probing.peer_models import PEERS, augmented, order, validation_loss
    from tokenization.files import write_json, write_whole
    from training.args import OptimArgs
    from training.engine.device import flush_denormals, versions
    from training.engine.optim import learning_rate, make_optimizer, set_learning_rate

    folder = Path(f"{args.output_dir}.partial")
    if folder.exists() and not args.resume:
        raise ValueError(f"{folder} is a run that was stopped; continue it with --resume, or delete it.")
    settings = {name: value for name, value in asdict(args).items() if name not in FREE}
    state = load_state(folder, settings)
    folder.mkdir(parents=True, exist_ok=True)

    flush_denormals()  # as the Toto's training, which is several times slower without
    torch.manual_seed(args.seed)
    peer = PEERS[args.kind](**json.loads(args.config))
    peer.batch_size = args.batch_size or peer.batch_size
    optim = OptimArgs(args.learning_rate, 1000 * WARMUP, LOW, weight_decay=peer.weight_decay)  # steps: thousandths
    optimizer = make_optimizer(peer.model, optim)
    step, cpu, before = 0, 0.0, 0.0
    if state is not None:
        peer.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        peer.load_state(state["peer"])
        step, cpu, before = state["step"], state["cpu"], state["preparation"]
    pictures, held_out = (peer.encode(part, args.seed) for part in read_pictures(args, peer.resolution))
    preparation = before or time.process_time()
    print(
        f"{args.output_dir}: {args.kind}, {peer.model.num_parameters() / 1e6:.2f} M parameters "
        f"({peer.base.num_parameters() / 1e6:.2f} M probed), {len(pictures):,} pictures, {peer.batch_size} a step",
        flush=True,
    )

    def progress() -> float:
        """Share of the budget that is spent."""
        return step / args.max_steps if args.max_steps else cpu / (60 * args.minutes)

    def save() -> None:
        content = {"model": peer.model.state_dict(), "optimizer": optimizer.state_dict(), "peer": peer.state()}
        content |= {"step": step, "cpu": cpu, "preparation": preparation, "settings": json.dumps(settings)}
        write_whole(folder / STATE, lambda path: torch.save(content, path))

    peer.model.train()
    recent: deque[float] = deque(maxlen=50)
    bar = tqdm(total=100, initial=100 * progress(), unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}")
    saved = time.monotonic()
    while progress() < 1:
        began = time.process_time()
        generator = torch.Generator().manual_seed(1_000_003 * args.seed + step)
        rows = pictures[order(step, peer.batch_size, len(pictures), args.seed)]
        set_learning_rate(optimizer, learning_rate(1000 * progress(), 1000, optim))
        loss = peer.loss(augmented(rows, generator) if args.augment else rows, generator)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(peer.model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        step, cpu = step + 1, cpu + time.process_time() - began
        if not math.isfinite(recent[-1]):
            raise ValueError(f"The loss of step {step} is not finite; use a lower --learning_rate.")
        bar.set_postfix_str(f"step {step}, loss {recent[-1]:.3f}, {step * peer.batch_size / cpu:,.0f} pictures/CPU s")
        bar.update(min(100.0, 100 * progress()) - bar.n)
        if time.monotonic() - saved > 60 * args.save_minutes:
            save()
            saved = time.monotonic()
    bar.close()

    seen = step * peer.batch_size
    result = {
        "kind": args.kind,
        "note": peer.note,
        "dataset": args.dataset,
        "parameters": peer.model.num_parameters(),
        "probed_parameters": peer.base.num_parameters(),
        "resolution": peer.resolution,
        "steps": step,
        "batch_size": peer.batch_size,
        "images_seen": seen,
        "unique_images": min(seen, len(pictures)),
        "epochs": seen / len(pictures),
        "tokens_seen": seen * peer.tokens(),
        "unique_tokens": min(seen, len(pictures)) * peer.tokens(),
        "flops": seen * peer.flops(),
        "cpu_seconds": cpu,
        "preparation_cpu_seconds": preparation,
        "learning_rate": args.learning_rate,
        "loss": sum(recent) / len(recent),
        "val_loss": validation_loss(peer, held_out),
        "val_images": len(held_out),
        "augment": args.augment,
        "seed": args.seed,
        "versions": versions("cpu"),
    }
    peer.base.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", peer.preprocessor())
    write_seen(folder, args, result)
    write_json(folder / "study.json", result)
    (folder / STATE).unlink(missing_ok=True)
    folder.rename(args.output_dir)
    print(f"wrote {args.output_dir}: loss {result['loss']:.4f}, on held-out pictures {result['val_loss']:.4f}")
    return result


def write_seen(folder: Path, args: PeerArgs, result: dict) -> None:
    """media.json, which records for the ledger what the model saw: the whole split, held-out pictures included."""
    from tokenization.files import write_json
    from training.publish.media_seen import FORMAT, MEDIA_FILE, Media, identify, to_json

    numbers = {"tokens": result["tokens_seen"], "epochs": result["epochs"]}
    media = [Media(*identify(args.dataset, args.split), kind="image", **numbers)]
    write_json(folder / MEDIA_FILE, {"format": FORMAT, "media": to_json(media)})


def main(argv: list[str] | None = None) -> None:
    train(parse_flags(PeerArgs, argv, "python -m studies.probing.pretrain_peer", __doc__.splitlines()[0]))


if __name__ == "__main__":
    from toto_cli import run

    run(main)
