"""The probing study from raw data to docs/studies/probing/*.json: every command printed before it runs.

    python benchmarks/probing_study.py --data DATA --work WORK --list

DATA holds cifar10/, pretrain_clips/ and room_actions/; WORK gets shards, runs and raw results. A step is done once the
file or folder that it makes is there, so a study that was stopped goes on where it stood; a step that fails does not
keep those from running that do not need it. Two studies of unlike --only may share WORK, one a core.

Toto, ViT-MAE and ImageGPT of 3.7 M parameters get the same CPU time (`--minutes`, of which a Toto takes 15 steps a
minute, its speed on one core of 64 GFLOP/s) and the same search: three learning rates, a ninth of the time each, the
lowest validation loss wins.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.study_steps import Step, carry_out, flags

RATES = ("0.001", "0.002", "0.004")
STEPS_PER_MINUTE = 15
CONFIG = {"hidden_size": 192, "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 6}
CONFIG |= {"head_dim": 32, "intermediate_size": 512}
GRID_16 = {"tokens_per_frame": 256, "max_position_embeddings": 2 + 16 * 256}
# {model: {shards: weight}}; the names of the sources are those of the data sets.
MIXTURES = {
    "mixed": {"cifar10": 0.6, "clips": 0.15, "room": 0.1, "toy": 0.15},
    "images": {"cifar10": 1.0},
    "videos": {"clips": 0.375, "room": 0.25, "toy": 0.375},
    "grid_8": {"clips": 0.6, "room": 0.4},
    "grid_16": {"clips_128": 0.6, "room_128": 0.4},
    "grid_16_upsampled": {"clips_128_upsampled": 0.6, "room_128_upsampled": 0.4},
}
DATASETS = {"cifar10": "cifar10", "clips": "pretrain_clips", "room": "room_actions", "toy": "toyworld"}
FLOORS = ("pixels", "histogram", "random_filters", "hog")
ORDERS = ("ordered", "middle", "shuffled", "reversed")
RECORDING = r"\d{8}_\d{6}"


@dataclass(frozen=True)
class StudyArgs:
    """Flags."""

    data: str = field(metadata={"help": "folder with cifar10/, pretrain_clips/ and room_actions/"})
    work: str = field(metadata={"help": "folder for shards, runs and raw results"})
    output: str = field(default="docs/studies/probing", metadata={"help": "folder of the committed results"})
    only: list[str] = field(default_factory=list, metadata={"help": "steps whose names begin like one of these"})
    show: bool = field(
        default=False,
        metadata={"aliases": ["--list"], "help": "list the steps, whether they are done, and run nothing"},
    )
    minutes: float = field(default=60, metadata={"help": "CPU minutes of a pre-training; the other budgets follow"})
    seeds: int = field(default=3, metadata={"help": "pre-training seeds of the mixed Toto and of the peers"})
    ablation_seeds: int = field(default=1, metadata={"help": "pre-training seeds of images alone and of videos alone"})
    max_train: int = field(default=20000, metadata={"help": "CIFAR-10 images that the probes are trained on"})
    max_tokens: int = field(default=16, metadata={"help": "tokens of a clip that attention heads read"})
    threads: int = field(default=1, metadata={"help": "threads of a step"})
    toy: bool = field(default=False, metadata={"help": "little data everywhere, to try the path"})

    def __post_init__(self):
        for name in ("cifar10", "pretrain_clips", "room_actions"):
            if not (Path(self.data) / name).is_dir():
                raise ValueError(f"--data {self.data} has no folder {name}/.")
        for name in ("minutes", "seeds", "ablation_seeds", "max_train", "max_tokens", "threads"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name} must be above 0, not {getattr(self, name)}.")


class Study:
    """The steps in order."""

    def __init__(self, args: StudyArgs):
        self.args, self.data, self.work = args, Path(args.data).resolve(), Path(args.work).resolve()
        self.steps: list[Step] = []
        self.tokenize()
        self.search_and_pretrain()
        self.peers()
        self.probe_images()
        self.probe_room()
        self.finetune()
        self.grids()

    def run(self, name: str) -> Path:
        return self.work / "runs" / name

    def few(self, number: int | None, toy: int) -> int | None:
        return toy if self.args.toy else number

    def train_steps(self, share: float = 1.0) -> int:
        """Steps of a Toto in this share of the minutes."""
        return max(3, round(STEPS_PER_MINUTE * self.args.minutes * share))

    def add(self, name: str, made: Path, command: list[str], rates: dict[str, Path] | None = None) -> None:
        self.steps.append(Step(name, made, command, rates))

    # tokens

    def shards(self, name: str, dataset: str | Path, split="train", toy=40, stage="tokenize/", **more) -> None:
        folder = self.work / "shards" / name
        more = {"max_clips": self.few(None, toy)} | more
        command = ["tokenize", *flags(dataset=dataset, split=split, output=folder, **more)]
        self.add(f"{stage}{name}", folder / "manifest.json", command)

    def tokenize(self) -> None:
        data = self.data
        self.shards("cifar10", data / "cifar10", toy=800)
        self.shards("clips", data / "pretrain_clips", crops=4)
        self.shards("clips_val", data / "pretrain_clips", "validation")
        self.shards("room", data / "room_actions", crops=6, stride=3)
        self.shards("toy", "toyworld", max_clips=self.few(4000, 40))

    # pre-training

    def pretrain(self, name: str, mixture: str, steps: int, seed: int, step_name: str, **more) -> None:
        """A Toto; `more` are flags, `rates` and `config`."""
        sources = []
        for shards, weight in MIXTURES[mixture].items():
            source = {"data": str(self.work / "shards" / shards), "weight": weight}
            source |= {"name": DATASETS[shards.split("_")[0]]}
            if shards == "clips":
                source["val_data"] = str(self.work / "shards" / "clips_val")
            sources.append(json.dumps(source))
        rates, config = more.pop("rates", None), CONFIG | more.pop("config", {})
        schedule = {"max_steps": steps, "warmup_steps": max(1, round(steps / 15)), "min_lr_ratio": 0.05}
        schedule |= {"weight_decay": 0.1, "tokens_per_step": 8192, "per_device_batch_size": 4}
        schedule |= {"val_rows": self.few(64, 4)}
        third = max(1, steps // 3)
        schedule |= {"save_steps": third, "eval_steps": third, "keep_checkpoints": 1, "seed": seed} | more
        schedule |= {"logging_steps": max(1, min(20, steps // 3)), "output_dir": self.run(name)}
        command = ["pretrain", *flags(preset="tiny", config=json.dumps(config), sources=sources, **schedule)]
        self.add(step_name, self.run(name) / "checkpoints" / f"step_{steps:06d}", command, rates)

    def search_and_pretrain(self) -> None:
        steps = self.train_steps(1 / 9)
        more = {"warmup_steps": max(1, steps // 5), "save_steps": steps, "eval_steps": steps}
        for rate in RATES:
            self.pretrain(f"lr_{rate}", "mixed", steps, 0, f"search/toto_{rate}", learning_rate=rate, **more)
        self.rates = {rate: self.run(f"lr_{rate}") for rate in RATES}
        for mixture, seeds in (("mixed", self.args.seeds), ("images", self.args.ablation_seeds)):
            self.of_seeds(mixture, seeds)
        self.of_seeds("videos", self.args.ablation_seeds)

    def of_seeds(self, mixture: str, seeds: int) -> None:
        for seed in range(seeds):
            name = self.toto(mixture, seed).name
            self.pretrain(name, mixture, self.train_steps(), seed, f"pretrain/{mixture}_{seed}", rates=self.rates)

    def toto(self, mixture: str, seed: int) -> Path:
        return self.run(f"{'nano' if mixture == 'mixed' else mixture}_{seed}")

    def peers(self) -> None:
        for kind in ("mae", "igpt"):
            common = {"kind": kind, "dataset": self.data / "cifar10", "max_images": self.few(None, 800), "resume": True}
            rates = {rate: self.run(f"{kind}_lr_{rate}") for rate in RATES}
            for rate, folder in rates.items():
                given = common | {"minutes": self.args.minutes / 9, "learning_rate": rate, "output_dir": folder}
                self.add(f"search/{kind}_{rate}", folder / "study.json", ["pretrain_peer.py", *flags(**given)])
            for seed in range(self.args.seeds):
                folder = self.run(f"{kind}_{seed}")
                given = common | {"minutes": self.args.minutes, "seed": seed, "output_dir": folder}
                self.add(f"pretrain/{kind}_{seed}", folder / "study.json", ["pretrain_peer.py", *flags(**given)], rates)

    # numbers

    def probe(self, name: str, model: Path, step_name: str, seed: int, **more) -> None:
        result = self.work / "results" / f"{name}.json"
        common = {"model": model, "layers": "all", "predictions": True, "max_tokens": self.args.max_tokens}
        common |= {"seed": seed, "epochs": self.few(None, 2), "feature_cache": self.work / "features" / name}
        self.add(step_name, result, ["probe", *flags(**common | more | {"output": result})])

    def probe_images(self) -> None:
        more = {"task": "cifar10", "dataset": self.data / "cifar10", "batch_size": 32}
        more |= {"max_train": self.few(self.args.max_train, 200), "max_eval": self.few(10000, 100)}
        heads = {"heads": ("linear", "attention", "cross_attention_mlp"), "baselines": "untrained"}
        seeds, ablation = self.args.seeds, self.args.ablation_seeds
        for mixture, count in (("mixed", seeds), ("images", ablation), ("videos", ablation)):
            for seed in range(count):
                name, model = f"{mixture}_{seed}", self.toto(mixture, seed)
                self.probe(f"cifar10_{name}", model, f"probe/{name}", seed, **more | heads)
        # Floors have up to 2,048 channels, for which heads on tokens would cost hours; a linear one reads them all.
        floors = {"heads": "linear", "layers": 0, "baselines": FLOORS}
        for seed in range(seeds):
            model = self.toto("mixed", seed)
            self.probe(f"cifar10_floors_{seed}", model, f"probe/floors_{seed}", seed, **more | floors)
        for kind in ("mae", "igpt"):
            for seed in range(seeds):
                name = f"{kind}_{seed}"
                self.probe(f"cifar10_{name}", self.run(name), f"probe/{name}", seed, **more | heads)

    def room_flags(self) -> dict:
        more = {"stride": 3, "group_by": RECORDING, "leave_one_group_out": True, "test_split": "test"}
        more |= {"baselines": ("pixels", "untrained"), "heads": ("linear", "attention")}
        return more | {"max_train": self.few(5000, 60), "max_eval": self.few(2000, 60)}

    def probe_room(self) -> None:
        more = self.room_flags() | {"dataset": self.data / "room_actions"}
        for order in ORDERS:
            for seed in range(self.args.seeds):
                name, model = f"room_{order}_{seed}", self.toto("mixed", seed)
                self.probe(name, model, f"room/{order}_{seed}", seed, frame_order=order, **more)
        others = {mixture: self.toto(mixture, 0) for mixture in ("images", "videos")} | {"mae": self.run("mae_0")}
        for other, model in others.items():
            clip = {"num_frames": 16} if other == "mae" else {}
            self.probe(f"room_{other}_0", model, f"room/{other}_0", 0, **more | clip)

    def finetune(self) -> None:
        """Causal against full attention, from images and from videos, with the same few labels and steps."""
        steps = self.train_steps(0.4)
        more = {"dataset": self.data / "cifar10", "label_column": "label", "augment": "none"}
        more |= {"max_train": self.few(10000, 300), "max_validation": self.few(1000, 60), "seed": 0}
        more |= {"max_test": self.few(10000, 100), "batch_size": 64, "per_device_batch_size": 32, "max_steps": steps}
        more |= {"save_steps": max(1, steps // 4), "keep_checkpoints": 2, "warmup_steps": max(1, steps // 9)}
        more |= {"logging_steps": max(1, min(20, steps // 4)), "learning_rate": 1e-3, "layer_decay": 0.75}
        for mixture in ("images", "videos", "mixed"):
            for mode in ("causal", "full"):
                folder = self.run(f"finetune_{mixture}_{mode}")
                given = {"model": self.toto(mixture, 0), "attention_mode": mode} | more | {"output_dir": folder}
                command = ["finetune", *flags(**given)]
                self.add(f"finetune/{mixture}_{mode}", folder / "results.json", command)

    def grids(self) -> None:
        """8 x 8 against 16 x 16 tokens of a frame, the second also of 64 pixels enlarged to 128."""
        for suffix, detail in (("_128", None), ("_128_upsampled", 64)):
            more = {"stage": "grid/tokenize_", "resolution": 128, "detail": detail}
            self.shards(f"clips{suffix}", self.data / "pretrain_clips", crops=4, **more)
            self.shards(f"room{suffix}", self.data / "room_actions", crops=6, stride=3, **more)
        for grid in ("grid_8", "grid_16", "grid_16_upsampled"):
            fine = (
                {} if grid == "grid_8" else {"config": GRID_16, "per_device_batch_size": 1, "val_rows": self.few(16, 4)}
            )
            steps = self.train_steps(1 / 3)
            self.pretrain(f"{grid}_0", grid, steps, 0, f"grid/pretrain_{grid[5:]}", rates=self.rates, **fine)
            more = self.room_flags() | {"dataset": self.data / "room_actions", "batch_size": 4}
            more |= {"detail": 64 if grid.endswith("upsampled") else None}
            self.probe(grid, self.run(f"{grid}_0"), f"grid/probe_{grid[5:]}", 0, **more)


def main(argv: list[str] | None = None) -> None:
    from transformers.hf_argparser import HfArgumentParser

    from benchmarks.probing_results import collect

    description = __doc__.splitlines()[0]
    (args,) = HfArgumentParser(StudyArgs, description=description).parse_args_into_dataclasses(argv)
    study = Study(args)
    steps = [step for step in study.steps if not args.only or step.name.startswith(tuple(args.only))]
    if args.show:
        print("\n".join(step.told() for step in steps))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # ends the step too, and its time is kept
    failed = []
    for number, step in enumerate(steps, start=1):
        print(f"\n[{number}/{len(steps)}] {step.name}{': done before' if step.made.exists() else ''}", flush=True)
        if step.made.exists():
            continue
        try:
            carry_out(step, study.work, args.threads)
            collect(study)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            print(f"{step.name} failed: {error}", file=sys.stderr, flush=True)
            failed.append(step.name)
    collect(study)
    if failed:
        raise SystemExit(f"these steps failed: {', '.join(failed)}")


if __name__ == "__main__":
    from toto_cli import run

    run(main)
