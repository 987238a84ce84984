"""The probing study from raw data to docs/studies/probing/*.json; each command is printed before it runs.

    python -m studies.probing.run --data DATA --work WORK --list

DATA contains cifar10/, pretrain_clips/ and room_actions/; shards, runs and raw results are written to WORK. A step is
done once the file or folder that it makes exists, so a study that was stopped resumes with the next step. A step that
fails does not stop the steps that do not need it. Two studies with different --only may share WORK, one per core.

Every model has 3.7 M parameters. A Toto of all media is trained for `--minutes` of CPU time per seed, at 15 steps per
minute, its speed in float32 on one core of 64 GFLOP/s. Models whose training is compared get `--comparison_minutes`:
Totos of images alone and of videos alone, a ViT-MAE and an ImageGPT of the same images. All searches are the same: the
same learning rates, the same share of the time for each, and the lowest validation loss wins. A search that is in the
output's costs.json is not run again, and entries of models that are not in WORK are kept there, so a study can be
continued on another machine.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from studies.probing.collect import collect, read_costs
from studies.probing.steps import PEER, ROOT, Step, carry_out, flags
from tokenization.terminal.command_line import parse_flags
from training.flags import require_positive

# Of the comparisons; of the Toto of all media, whose search takes three times as long, the middle three.
RATES = ("0.0005", "0.001", "0.002", "0.004", "0.008")
STEPS_PER_MINUTE = 15
CONFIG = {"hidden_size": 192, "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 6}
CONFIG |= {"head_dim": 32, "intermediate_size": 512}
# Of eight frames each, so that the fine grid fits a row.
GRID_8 = {"num_frames": 8, "max_position_embeddings": 514}
GRID_16 = {"num_frames": 8, "tokens_per_frame": 256, "max_position_embeddings": 2050}
HEAD_LAYERS = (0, 4, 8)
# The Toto that ships, and its layers of which heads are compared: first, middle, deepest.
NANO, NANO_LAYERS = ROOT / "checkpoints" / "toto-nano", (0, 3, 6)
# {model: {shards: weight}}; the names of the sources are those of the datasets.
MIXTURES = {
    "mixed": {"cifar10": 0.6, "clips": 0.15, "room": 0.1, "toy": 0.15},
    "images": {"cifar10": 1.0},
    "videos": {"clips": 0.375, "room": 0.25, "toy": 0.375},
    "grid_8": {"clips_8": 0.6, "room_8": 0.4},
    "grid_16": {"clips_16": 0.6, "room_16": 0.4},
    "grid_16_upsampled": {"clips_16_upsampled": 0.6, "room_16_upsampled": 0.4},
}
DATASETS = {"cifar10": "cifar10", "clips": "pretrain_clips", "room": "room_actions", "toy": "toyworld"}
PEERS = ("mae", "igpt")
OUTPUT = "docs/studies/probing"
FLOORS = ("pixels", "histogram", "random_filters", "hog")
ORDERS = ("ordered", "middle", "shuffled", "reversed")
RECORDING = r"\d{8}_\d{6}"


@dataclass(frozen=True)
class StudyArgs:
    """Flags."""

    data: str = field(metadata={"help": "folder with cifar10/, pretrain_clips/ and room_actions/"})
    work: str = field(metadata={"help": "folder for shards, runs and raw results"})
    output: str = field(default=OUTPUT, metadata={"help": "folder of the committed results"})
    only: list[str] = field(default_factory=list, metadata={"help": "run steps whose names begin with one of these"})
    show: bool = field(
        default=False,
        metadata={"aliases": ["--list"], "help": "list the steps and whether they are done; run nothing"},
    )
    minutes: float = field(default=60, metadata={"help": "CPU minutes of a Toto of all media"})
    seeds: int = field(default=3, metadata={"help": "pre-training seeds of the Toto of all media"})
    comparison_minutes: float = field(
        default=20, metadata={"help": "CPU minutes of every model whose training is compared"}
    )
    comparison_seeds: int = field(default=1, metadata={"help": "pre-training seeds of each of these"})
    search_share: float = field(default=1 / 9, metadata={"help": "share of the minutes for each learning rate"})
    max_train: int = field(default=5000, metadata={"help": "CIFAR-10 images that the probes are trained on"})
    max_tokens: int = field(default=16, metadata={"help": "tokens of a clip that attention heads read"})
    threads: int = field(default=1, metadata={"help": "threads of a step"})
    toy: bool = field(default=False, metadata={"help": "use little data everywhere, to try the steps"})

    def __post_init__(self):
        for name in ("cifar10", "pretrain_clips", "room_actions"):
            if not (Path(self.data) / name).is_dir():
                raise ValueError(f"--data {self.data} has no folder {name}/; name the folder that contains it.")
        if self.toy and Path(self.output).resolve() == (ROOT / OUTPUT).resolve():
            raise ValueError(f"--toy would overwrite the study's numbers in {OUTPUT}; give another --output.")
        positive = ("minutes", "seeds", "comparison_minutes", "comparison_seeds", "search_share")
        require_positive(self, *positive, "max_train", "max_tokens", "threads")


class Study:
    """The steps in order."""

    def __init__(self, args: StudyArgs):
        self.args, self.data = args, Path(args.data).resolve()
        # The results of --toy do not count as finished steps of the whole study.
        self.work = Path(args.work).resolve() / ("toy" if args.toy else "")
        self.steps: list[Step] = []
        self.searched = read_costs(Path(args.output)).get("search", {})
        self.tokenize()
        self.search_and_pretrain()
        self.peers()
        self.probe_images()
        self.probe_room()
        self.finetune()
        self.grids()

    def collect(self) -> None:
        """Write what is finished into the output folder."""
        collect(self.steps, self.data, self.work, Path(self.args.output))

    def run(self, name: str) -> Path:
        return self.work / "runs" / name

    def few(self, number: int | None, toy: int) -> int | None:
        return toy if self.args.toy else number

    def train_steps(self, minutes: float) -> int:
        """Number of steps of a Toto in this time."""
        return max(3, round(STEPS_PER_MINUTE * minutes))

    def add(self, name: str, made: Path, command: list[str], rates: dict[str, Path | float] | None = None) -> None:
        kind, _, rest = name.partition("/")
        model, _, rate = rest.rpartition("_")
        if kind == "search" and rate in self.searched.get(model, {}):
            return
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
        args = self.args
        self.rates = self.search("mixed", "lr", args.minutes, RATES[1:4])
        # Images alone have a search like the peers'; videos alone and grids take the rate of all media.
        images = self.search("images", "images_lr", args.comparison_minutes, RATES)
        runs = [("mixed", args.minutes, args.seeds, self.rates)]
        runs += [("images", args.comparison_minutes, args.comparison_seeds, images)]
        runs += [("videos", args.comparison_minutes, args.comparison_seeds, self.rates)]
        for mixture, minutes, seeds, rates in runs:
            for seed in range(seeds):
                name = self.toto(mixture, seed).name
                self.pretrain(name, mixture, self.train_steps(minutes), seed, f"pretrain/{mixture}_{seed}", rates=rates)

    def search(self, mixture: str, prefix: str, minutes: float, rates: tuple[str, ...]) -> dict[str, Path | float]:
        """A share of the minutes for each rate of a Toto; {rate: run, or its validation loss}."""
        steps = self.train_steps(minutes * self.args.search_share)
        more = {"warmup_steps": max(1, steps // 5), "save_steps": steps, "eval_steps": steps}
        names = {rate: f"{prefix}_{rate}" for rate in rates}
        for rate, name in names.items():
            self.pretrain(name, mixture, steps, 0, f"search/{mixture}_{rate}", learning_rate=rate, **more)
        return {rate: self.run(name) for rate, name in names.items()} | self.searched.get(mixture, {})

    def toto(self, mixture: str, seed: int) -> Path:
        return self.run(f"{'nano' if mixture == 'mixed' else mixture}_{seed}")

    def peers(self) -> None:
        minutes = self.args.comparison_minutes
        for kind in PEERS:
            common = {"kind": kind, "dataset": self.data / "cifar10", "max_images": self.few(None, 800), "resume": True}
            rates = {rate: self.run(f"{kind}_lr_{rate}") for rate in RATES}
            for rate, folder in rates.items():
                given = common | {"minutes": minutes * self.args.search_share, "learning_rate": rate}
                given |= {"output_dir": folder}
                self.add(f"search/{kind}_{rate}", folder / "study.json", [PEER, *flags(**given)])
            rates |= self.searched.get(kind, {})
            for seed in range(self.args.comparison_seeds):
                folder = self.run(f"{kind}_{seed}")
                given = common | {"minutes": minutes, "seed": seed, "output_dir": folder}
                self.add(f"pretrain/{kind}_{seed}", folder / "study.json", [PEER, *flags(**given)], rates)

    # numbers

    def probe(self, name: str, model: Path, step_name: str, seed: int, **more) -> None:
        result = self.work / "results" / f"{name}.json"
        common = {"model": model, "layers": "all", "predictions": True, "max_tokens": self.args.max_tokens}
        common |= {"seed": seed, "epochs": self.few(None, 2), "feature_cache": self.work / "features" / name}
        self.add(step_name, result, ["probe", *flags(**common | more | {"output": result})])

    def probe_images(self) -> None:
        more = {"task": "cifar10", "dataset": self.data / "cifar10", "batch_size": 32}
        more |= {"max_train": self.few(self.args.max_train, 200), "max_eval": self.few(5000, 100)}
        linear = {"heads": "linear", "baselines": "untrained"}
        floors = {"heads": "linear", "layers": 0, "baselines": FLOORS}
        heads = {"heads": ("linear", "attention", "cross_attention_mlp"), "layers": HEAD_LAYERS, "baselines": "none"}
        seeds = {"mixed": self.args.seeds} | dict.fromkeys(("images", "videos", *PEERS), self.args.comparison_seeds)
        for kind, count in seeds.items():
            for seed in range(count):
                model = self.run(f"{kind}_{seed}") if kind in PEERS else self.toto(kind, seed)
                # An untrained twin of images and of videos is that of all media.
                twin = {} if kind in ("mixed", *PEERS) else {"baselines": "none"}
                self.probe(f"cifar10_{kind}_{seed}", model, f"probe/{kind}_{seed}", seed, **more | linear | twin)
                if kind == "mixed":
                    self.probe(f"cifar10_floors_{seed}", model, f"probe/floors_{seed}", seed, **more | floors)
        # Heads on tokens cost far more than linear ones: three layers, one seed, of the Toto that ships and of peers.
        self.probe("heads_nano_0", NANO, "heads/nano_0", 0, **more | heads | {"layers": NANO_LAYERS})
        for kind in PEERS:
            self.probe(f"heads_{kind}_0", self.run(f"{kind}_0"), f"heads/{kind}_0", 0, **more | heads)

    def room_flags(self) -> dict:
        more = {"dataset": self.data / "room_actions", "stride": 3, "group_by": RECORDING, "leave_one_group_out": True}
        more |= {"average_clips": True, "test_split": "test", "heads": ("linear", "attention"), "baselines": "none"}
        return more | {"max_train": self.few(5000, 60), "max_eval": self.few(2000, 60)}

    def probe_room(self) -> None:
        more, floors = self.room_flags(), {"baselines": ("pixels", "untrained")}
        for order in ORDERS:
            for seed in range(self.args.seeds):
                name, model = f"room_{order}_{seed}", self.toto("mixed", seed)
                given = more | {"frame_order": order} | (floors if order == "ordered" else {})
                self.probe(name, model, f"room/{order}_{seed}", seed, **given)
        others = {mixture: self.toto(mixture, 0) for mixture in ("images", "videos")} | {"mae": self.run("mae_0")}
        for other, model in others.items():
            clip = {"num_frames": 16} if other == "mae" else {}
            self.probe(f"room_{other}_0", model, f"room/{other}_0", 0, **more | clip)

    def finetune(self) -> None:
        """Causal against full attention, from images and from videos, with the same few labels and steps."""
        # 36 for each minute of the comparison: at 12 minutes 432, seven epochs of 4,000 images.
        steps = self.train_steps(self.args.comparison_minutes * 2.4)
        more = {"dataset": self.data / "cifar10", "label_column": "label", "augment": "none"}
        more |= {"max_train": self.few(5000, 300), "max_validation": self.few(1000, 60), "seed": 0}
        more |= {"max_test": self.few(5000, 100), "batch_size": 64, "per_device_batch_size": 32, "max_steps": steps}
        more |= {"save_steps": max(1, steps // 4), "keep_checkpoints": 2, "warmup_steps": max(1, steps // 9)}
        more |= {"logging_steps": max(1, min(20, steps // 4)), "learning_rate": 1e-3, "layer_decay": 0.75}
        for mixture, seed in {"images": 0, "videos": 0, "mixed": self.args.seeds - 1}.items():
            for mode in ("causal", "full"):
                folder = self.run(f"finetune_{mixture}_{mode}")
                given = {"model": self.toto(mixture, seed), "attention_mode": mode} | more | {"output_dir": folder}
                command = ["finetune", *flags(**given)]
                self.add(f"finetune/{mixture}_{mode}", folder / "results.json", command)

    def grids(self) -> None:
        """8 x 8 against 16 x 16 tokens of a frame, the second also of 64 pixels enlarged to 128."""
        for grid, config in {"grid_8": GRID_8, "grid_16": GRID_16, "grid_16_upsampled": GRID_16}.items():
            name = grid[5:]
            detail = 64 if name.endswith("upsampled") else None
            more = {"stage": "grid/tokenize_", "resolution": 64 if grid == "grid_8" else 128, "detail": detail}
            more |= {"num_frames": 8}
            # One crop: so short a training sees few of the clips more than once.
            self.shards(f"clips_{name}", self.data / "pretrain_clips", **more)
            self.shards(f"room_{name}", self.data / "room_actions", stride=3, **more)
            steps, batch = self.train_steps(self.args.comparison_minutes / 3), 8 if grid == "grid_8" else 2
            more = {"config": config, "per_device_batch_size": batch, "rates": self.rates}
            self.pretrain(f"{grid}_0", grid, steps, 0, f"grid/pretrain_{name}", **more)
            more = self.room_flags() | {"batch_size": 4, "detail": detail}
            self.probe(grid, self.run(f"{grid}_0"), f"grid/probe_{name}", 0, **more)


def main(argv: list[str] | None = None) -> None:
    args = parse_flags(StudyArgs, argv, "python -m studies.probing.run", __doc__.splitlines()[0])
    study = Study(args)
    steps = [step for step in study.steps if not args.only or step.name.startswith(tuple(args.only))]
    if args.show:
        print("\n".join(step.listed() for step in steps))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # ends the step too, and its time is kept
    failed = []
    for number, step in enumerate(steps, start=1):
        print(f"\n[{number}/{len(steps)}] {step.name}{': done before' if step.made.exists() else ''}", flush=True)
        if step.made.exists():
            continue
        try:
            carry_out(step, study.work, args.threads)
            study.collect()
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            print(f"{step.name} failed: {error}", file=sys.stderr, flush=True)
            failed.append(step.name)
    study.collect()
    if failed:
        raise SystemExit(f"these steps failed: {', '.join(failed)}")


if __name__ == "__main__":
    from toto_cli import run

    run(main)
