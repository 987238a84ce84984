"""The cost of a probe of every layer against one of the last layer only, both from pixels with an empty cache."""

import sys
import tempfile
import time
from pathlib import Path

from timing import spread


def add_flags(parser) -> None:
    parser.add_argument("--preset", default="base", help="size of the model, with random weights")
    parser.add_argument("--images", type=int, default=2000, help="images, of which 3/5 train the heads")
    parser.add_argument("--rates", type=int, default=4, help="learning rates per linear head")
    parser.add_argument("--epochs", type=int, default=60, help="epochs of the heads")
    parser.add_argument("--batch_size", type=int, default=16, help="images in a forward pass")
    parser.add_argument("--rounds", type=int, default=1, help="measured rounds, after a short unmeasured one")


def measure(args) -> dict:
    """Both sides decode, tokenise, run the backbone, keep features and train linear heads.

    The images are random pictures in ten classes, with 8 x 8 tokens per frame of the shipped tokenizer.
    """
    import numpy as np
    import torch
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature
    from PIL import Image

    from evaluation.backbones.extraction import Job, extract
    from evaluation.backbones.toto import TotoBackbone
    from evaluation.heads.bank import HeadBank
    from modeling_toto import TotoConfig, TotoModel
    from tokenization import TotoProcessor
    from tokenization.sampling import Sampling
    from tokenization.sources.open import open_source
    from training.engine.device import flush_denormals

    flush_denormals()
    torch.manual_seed(0)
    processor = TotoProcessor.default()
    size = {"vocab_size": 64 + processor.num_codes, "tokens_per_frame": processor.grid[0] * processor.grid[1]}
    model = TotoModel(TotoConfig.from_preset(args.preset, **size, max_position_embeddings=1026))
    backbone = TotoBackbone(model, processor, device=torch.device("cpu"))
    rng = np.random.default_rng(0)
    folder = tempfile.TemporaryDirectory(prefix="toto-bench-")
    rates = [10.0 ** (-k) for k in range(1, args.rates + 1)]
    small = rng.integers(0, 256, (args.images, 8, 8, 3), dtype=np.uint8)
    pictures = [Image.fromarray(picture).resize((64, 64), Image.Resampling.BICUBIC) for picture in small]
    schema = Features({"image": ImageFeature(), "label": ClassLabel(num_classes=10)})

    def write(count: int) -> Path:
        file = Path(folder.name) / f"{count}.parquet"
        rows = {"image": pictures[:count], "label": rng.integers(0, 10, count).tolist()}
        Dataset.from_dict(rows, features=schema).to_parquet(file)
        return file

    def probe(layers: list[int], file: Path, count: int) -> tuple[float, float]:
        """Seconds for the features, and for the heads."""
        part = count // 5
        rows = {"train": torch.arange(3 * part), "validation": torch.arange(3 * part, 4 * part)}
        rows["test"] = torch.arange(4 * part, count)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="toto-bench-") as cache:
            source = open_source(str(file), None, Sampling(resolution=64))
            job = Job(backbone, layers, None)
            clips = extract(source, "train", [job], Path(cache), batch_size=args.batch_size)
            middle = time.perf_counter()
            (features,) = clips.features[0]
            train, validation, test = (features.take(rows[name]) for name in rows)
            labels = torch.from_numpy(clips.labels["label"])[:, None]
            wanted = {name: labels[chosen] for name, chosen in rows.items()}
            bank = HeadBank("linear", [10], learning_rates=rates, weight_decays=(0.0,), epochs=args.epochs)
            bank.run(train, wanted["train"], validation, wanted["validation"], test)
        return middle - start, time.perf_counter() - middle

    sides = {"last": [backbone.depth], "all": list(range(backbone.depth + 1))}
    short, whole = write(min(args.images, 100)), write(args.images)
    measured = {name: [] for name in sides}
    for turn in range(args.rounds + 1):
        for name, layers in sides.items():
            seconds = probe(layers, whole, args.images) if turn else probe(layers, short, min(args.images, 100))
            measured[name] += [seconds] if turn else []
            print(f"round {turn}/{args.rounds}, {name}: {sum(seconds):.1f} s", file=sys.stderr)
    values = {}
    for name, rounds in measured.items():
        backbones, heads = zip(*rounds, strict=True)
        values[f"{name}_seconds"] = spread([sum(seconds) for seconds in rounds])
        values |= {f"{name}_features_seconds": spread(backbones), f"{name}_heads_seconds": spread(heads)}
    return {
        "ratios": {"all_layers_vs_one": values["last_seconds"]["median"] / values["all_seconds"]["median"]},
        "values": values,
        "preset": args.preset,
        "layers": backbone.depth + 1,
        "images": args.images,
        "tokens": size["tokens_per_frame"],
        "learning_rates": rates,
        "rounds": args.rounds,
    }
