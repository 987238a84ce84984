"""Heads on features that are computed again in every epoch, so that they are never kept.

All kinds of heads, layers and settings learn from the same batches, in the order that `HeadBank` gives them. They are
shared out over processes: each trains its own on whole batches, with no gradients to exchange (`FeatureStream` says
what is exchanged). Statistics, batches, updates and the choice on validation are the functions of `HeadBank`, so the
results are those on kept features up to the rounding of the backbone, whose forward passes hold other clips.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from evaluation.backbones.extraction import Job
from evaluation.backbones.feature_stream import FeatureStream, Wanted
from evaluation.backbones.inputs import Inputs
from evaluation.heads.bank import TOKEN_HEADS, HeadBank
from evaluation.heads.checkpoint import require_same_run
from evaluation.heads.selection import MOMENTS_CHUNK, Chosen, Moments, add_by_item, check_labels, choose
from evaluation.heads.shares import COPIES, MEMORY_SHARE, PassState, Share, free_memory, passes_over, shares
from tokenization.files import write_json, write_whole
from tokenization.shards.parts import on_main

CHECK_STEPS = 20  # updates after which processes ask the first one whether to save


@dataclass(frozen=True)
class StreamedData:
    """The data of heads that are trained on one backbone.

    job: the backbone, its layers and tokens. inputs: of train, validation and test. labels: class numbers (N, tasks) of
    train and validation. classes: number of classes of each task. items, probabilities: as in `HeadBank.run`.
    batch_size: clips in one forward pass of the backbone.
    """

    job: Job
    inputs: list[Inputs]
    labels: list[torch.Tensor]
    classes: list[int]
    items: torch.Tensor | None = None
    batch_size: int = 8
    probabilities: bool = False

    def facts(self) -> dict:
        digest = hashlib.sha256()
        for values in (*self.labels, self.items):
            digest.update(b"" if values is None else values.contiguous().numpy().tobytes())
        inputs = [(len(each), each.facts()) for each in self.inputs]
        kept = {"probabilities": True} if self.probabilities else {}
        return {"features": self.job.key(), "inputs": inputs, "labels": digest.hexdigest()} | kept


class _Unit:
    """The heads of one `Share`, with their optimiser."""

    def __init__(self, bank: HeadBank, share: Share, moments: tuple[torch.Tensor, torch.Tensor], count: int):
        self.bank, self.share, self.count = bank, share, count
        self.settings = slice(share.start, share.stop)
        self.heads = bank.build(*moments, self.settings)
        self.heads.whole_batches = True
        self.optimiser = bank.optimiser(self.heads, self.settings)
        self.total = bank.epochs * bank.steps_per_epoch(count)
        self.right = self.loss = 0

    @property
    def wanted(self) -> Wanted:
        return wanted_by(self.share)

    def learn(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        """One update on a batch. x: (1, B, ...); labels: (B, T)."""
        self.bank.backward(self.heads, x, labels, len(labels))
        self.optimiser.step(self.bank.schedule(self.optimiser.steps, self.count))

    def judge(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        right, loss = self.bank.judge(self.heads, x, labels)
        self.right, self.loss = self.right + right, self.loss + loss

    def names(self, state: dict[str, torch.Tensor]) -> list[tuple[str, list[str]]]:
        """[(name of a stacked tensor, names of its slices for each setting)]."""
        kind, layer, start, stop = self.share
        return [(name, [f"{kind}.{layer}.{setting}.{name}" for setting in range(start, stop)]) for name in state]

    def state(self) -> dict[str, torch.Tensor]:
        """Weights and moments, a tensor for each setting."""
        state, axis = self.optimiser.state(), self.heads.settings_axis
        return {
            one: part
            for name, each in self.names(state)
            for one, part in zip(each, state[name].unbind(axis), strict=True)
        }

    def load(self, found: dict[str, torch.Tensor], step: int) -> None:
        axis, names = self.heads.settings_axis, self.names(self.optimiser.state())
        state = {name: torch.stack([found[one] for one in each], axis) for name, each in names}
        self.optimiser.load(state, min(step, self.total))


def wanted_by(share: Share) -> Wanted:
    return Wanted(share.layer, share.kind in TOKEN_HEADS)


def train_streamed(
    data: StreamedData, banks: dict[str, HeadBank], folder: Path, progress: bool = False
) -> dict[str, Chosen]:
    """Train every head on the features of one backbone: {head: `Chosen`}, its layers in ascending order.

    Args:
        banks: trained heads by kind, with the same seed and batch size. folder: of what a stopped run goes on from:
            finished groups of layers, and the state of the heads in training (see `PassState.due`).
    Raises:
        ValueError: labels out of range, heads that diverged, or a folder of another run.
    """
    return _Streamed(data, banks, folder, progress).run()


class _Streamed:
    def __init__(self, data: StreamedData, banks: dict[str, HeadBank], folder: Path, progress: bool):
        self.data, self.banks, self.folder = data, banks, folder
        self.processes = PartialState()
        self.bank = next(iter(banks.values()))
        self.device, self.count = self.bank.device, len(data.inputs[0])
        self.stream = FeatureStream(data.job, data.batch_size, self.device)
        self.progress = progress and self.processes.is_main_process
        for part, inputs, values in zip(("train", "validation"), data.inputs, data.labels, strict=False):
            check_labels(values, data.classes, len(inputs), part)

    def run(self) -> dict[str, Chosen]:
        facts = self.data.facts() | {kind: bank.facts() for kind, bank in self.banks.items()}
        plan = on_main(self.processes, lambda: self._plan(facts))
        require_same_run(self.folder / "plan.json", plan["run"], facts)
        for number, layers in enumerate(plan["passes"]):
            result = self.folder / f"pass-{number}.safetensors"
            if not on_main(self.processes, result.is_file):
                self._pass(number, layers, result)
        found: dict[str, torch.Tensor] = {}
        for number in range(len(plan["passes"])):
            found |= load_file(self.folder / f"pass-{number}.safetensors")
        names = ("choice", "val_accuracy", "val_loss", *self._tested())
        layers = self.data.job.layers
        return {
            kind: Chosen(bank.settings, **{n: torch.stack([found[f"{kind}.{k}.{n}"] for k in layers]) for n in names})
            for kind, bank in self.banks.items()
        }

    def _tested(self) -> list[str]:
        """The names of the results on test items."""
        return ["test_predictions"] + ["test_probabilities"] * self.data.probabilities

    def _plan(self, facts: dict) -> dict:
        """The plan of an earlier start, or a new one, which is printed and written."""
        file = self.folder / "plan.json"
        if file.is_file():
            return json.loads(file.read_text())
        layers, world = self.data.job.layers, self.processes.num_processes
        sizes = {layer: size // world for layer, size in self._sizes().items()}
        passes = passes_over(layers, sizes, int(MEMORY_SHARE * free_memory(self.device)))
        epochs = max(bank.epochs for bank in self.banks.values())
        train, validation, test = (len(each) for each in self.data.inputs)
        clips = len(passes) * ((epochs + 1) * train + validation + test)
        most = max(sum(sizes[layer] for layer in group) for group in passes)
        print(
            f"streamed: {' and '.join(self.banks)} heads of {len(layers)} layers of {self.data.job.backbone.name} in "
            f"{len(passes)} pass{'es' * (len(passes) > 1)} of {epochs} epochs, {clips:,} clips through the backbone"
            f"{f', a share of 1 / {world} in each process' * (world > 1)}; heads in training take "
            f"{most / 1e6:,.0f} MB of memory{' in each' * (world > 1)}",
            flush=True,
        )
        plan = {"run": facts, "passes": passes}
        write_json(file, plan)
        return json.loads(json.dumps(plan))

    def _sizes(self) -> dict[int, int]:
        """Layer -> bytes of its heads of all kinds and settings while they are trained."""
        sizes, known = {}, {}
        made = self.data.job.run(self.data.inputs[0].read(torch.zeros(1, dtype=torch.long)))
        for layer, of_layer in made.items():
            sizes[layer] = 0
            for kind, bank in self.banks.items():
                width = of_layer[kind in TOKEN_HEADS].shape[-1]
                if (kind, width) not in known:
                    heads = bank.build(torch.zeros(1, 1, width), torch.ones(1, 1, width), slice(1))
                    known[kind, width] = sum(p.numel() for p in heads.parameters()) * len(bank.settings)
                sizes[layer] += 4 * COPIES * known[kind, width]
        return sizes

    def _pass(self, number: int, layers: list[int], result: Path) -> None:
        """Train and score the heads of some layers, and write what was chosen."""
        given = shares(self.banks, layers, self.processes.num_processes)
        own = given[self.processes.process_index]
        state = PassState(self.folder / f"pass-{number}")
        units, step = self._start(given, own, state)
        self._fit(units, given, state, step, f"streamed heads, layers {layers[0]} to {layers[-1]}")
        chosen, tensors = self._choose(units, given)
        for (kind, layer), best in chosen.items():
            tensors |= {f"{kind}.{layer}.{name}": each for name, each in best.items()}
        part = self.folder / f"pass-{number}-{self.processes.process_index}.safetensors"
        write_whole(part, lambda path: save_file(tensors, path))
        self.processes.wait_for_everyone()
        if self.processes.is_main_process:
            self._merge(number, list(chosen), result)
        self.processes.wait_for_everyone()

    def _start(self, given: list[list[Share]], own: list[Share], state: PassState) -> tuple[list[_Unit], int]:
        """(the heads of this process, number of updates that were made), from an earlier start or new."""
        moments = {f"{share.kind}.{share.layer}.{what}": share for share in own for what in ("mean", "std")}
        found, step = state.load(set(moments))
        if not found:
            found = self._moments(given, own)
        units = []
        for share in own:
            mean, std = (found[f"{share.kind}.{share.layer}.{what}"] for what in ("mean", "std"))
            units.append(_Unit(self.banks[share.kind], share, (mean, std), self.count))
        if step:
            wanted = {name for unit in units for _, each in unit.names(unit.optimiser.state()) for name in each}
            kept, _ = state.load(wanted)
            for unit in units:
                unit.load(kept, step)
        return units, step

    def _moments(self, given: list[list[Share]], own: list[Share]) -> dict[str, torch.Tensor]:
        found = {(share.kind, share.layer): Moments(self.banks[share.kind].moment_axes) for share in own}
        rows = torch.arange(self.count).split(MOMENTS_CHUNK)
        wanted = [sorted({wanted_by(share) for share in each}) for each in given]
        bar = tqdm(desc="statistics of features", total=len(rows), unit="batch", disable=not self.progress)
        with bar:
            for features in self.stream.batches(self.data.inputs[0], rows, wanted):
                for (kind, layer), each in found.items():
                    each.add(features[Wanted(layer, kind in TOKEN_HEADS)][None].float())
                bar.update()
        made = {f"{kind}.{layer}": each.result() for (kind, layer), each in found.items()}
        return {
            f"{name}.{what}": value
            for name, pair in made.items()
            for what, value in zip(("mean", "std"), pair, strict=True)
        }

    def _fit(self, units: list[_Unit], given: list[list[Share]], state: PassState, step: int, title: str) -> None:
        per_epoch = self.bank.steps_per_epoch(self.count)
        last = max(bank.epochs for bank in self.banks.values())
        for unit in units:
            unit.heads.train()
        bar = tqdm(total=last * per_epoch, initial=step, desc=title, unit="step", disable=not self.progress)
        with bar:
            for epoch in range(step // per_epoch, last):
                live = [[share for share in each if self.banks[share.kind].epochs > epoch] for each in given]
                rows = [b.sort().values for b in self.bank.batches(self.count, epoch)[step - epoch * per_epoch :]]
                for batch, of_units in self._each(units, live, self.data.inputs[0], rows):
                    for unit, x in of_units:
                        unit.learn(x, self.data.labels[0][batch])
                    step += 1
                    bar.update()
                    if step % CHECK_STEPS == 0 and state.due():
                        self._save(units, state, step)

    def _save(self, units: list[_Unit], state: PassState, step: int) -> None:
        tensors = {}
        for unit in units:
            tensors |= unit.state()
            for what in ("mean", "std"):
                tensors[f"{unit.share.kind}.{unit.share.layer}.{what}"] = getattr(unit.heads, what)
        state.save(tensors, step)

    def _each(
        self, units: list[_Unit], live: list[list[Share]], inputs: Inputs, rows: list[torch.Tensor]
    ) -> Iterator[tuple[torch.Tensor, Iterator[tuple[_Unit, torch.Tensor]]]]:
        """(clips of a batch, [(heads that are live, their features (1, B, ...) float32)]) for every batch."""
        wanted = [sorted({wanted_by(share) for share in each}) for each in live]
        own = set(live[self.processes.process_index])

        def of_units(features: dict[Wanted, torch.Tensor]) -> Iterator[tuple[_Unit, torch.Tensor]]:
            for each, made in features.items():
                x = made[None].float()  # one layer at a time
                yield from ((unit, x) for unit in units if unit.wanted == each and unit.share in own)

        for batch, features in zip(rows, self.stream.batches(inputs, rows, wanted), strict=True):
            yield batch, of_units(features)

    def _choose(self, units: list[_Unit], given: list[list[Share]]) -> tuple[dict, dict[str, torch.Tensor]]:
        """({(kind, layer): its choice on validation}, test predictions of the chosen heads that this process has)."""
        _, validation, test = self.data.inputs
        size = self.bank.batch_size
        for unit in units:
            unit.heads.eval()
        for batch, of_units in self._each(units, given, validation, list(torch.arange(len(validation)).split(size))):
            for unit, x in of_units:
                unit.judge(x, self.data.labels[1][batch])
        scores = gather_object([(unit.share, unit.right[0].cpu(), unit.loss[0].cpu()) for unit in units])
        chosen = {}
        for key in sorted({(share.kind, share.layer) for share, _, _ in scores}):
            parts = sorted((each for each in scores if each[0][:2] == key), key=lambda each: each[0].start)
            accuracy, loss = (torch.cat([each[k] for each in parts], -1) / len(validation) for k in (1, 2))  # (T, S)
            best = choose(accuracy, loss, len(validation))
            chosen[key] = {
                "choice": best,
                "val_accuracy": accuracy.gather(-1, best[:, None])[:, 0].float(),
                "val_loss": loss.gather(-1, best[:, None])[:, 0].float(),
            }
        return chosen, self._predict(units, given, chosen, test)

    @torch.no_grad()
    def _predict(self, units, given, chosen: dict, test: Inputs) -> dict[str, torch.Tensor]:
        def tasks(share: Share) -> list[int]:
            """Those whose chosen setting is in this share."""
            best = chosen[share.kind, share.layer]["choice"].tolist()
            return [task for task, number in enumerate(best) if share.start <= number < share.stop]

        items = self.data.items
        counts = None if items is None else items.bincount()
        live = [[share for share in each if tasks(share)] for each in given]
        for unit in units:
            best = chosen[unit.share.kind, unit.share.layer]["choice"] - unit.share.start
            unit.heads.keep(best.clamp(0, unit.share.stop - unit.share.start - 1)[None].to(self.device))
        found: dict[Share, list | torch.Tensor] = {}
        rows = list(torch.arange(len(test)).split(self.bank.batch_size))
        for batch, of_units in self._each(units, live, test, rows):
            for unit, x in of_units:
                scores = unit.bank.log_probabilities(unit.heads, x)[0, ..., 0, :].transpose(0, 1).cpu()  # (T, B, C)
                if items is None:
                    found.setdefault(unit.share, []).append(scores.argmax(-1))
                else:
                    sums = found.get(unit.share)
                    found[unit.share] = add_by_item(sums, scores.exp(), items[batch], len(counts))
        tensors = {}
        for share, made in found.items():
            made = torch.cat(made, 1) if items is None else made
            for task in tasks(share):
                name = f"{share.kind}.{share.layer}.{task}"
                tensors[f"{name}.test_predictions"] = (made if items is None else made.argmax(-1))[task].clone()
                if self.data.probabilities:
                    tensors[f"{name}.test_probabilities"] = made[task] / counts[:, None]
        return tensors

    def _merge(self, number: int, keys: list[tuple[str, int]], result: Path) -> None:
        """Join the results of all processes, and delete what they were made from."""
        parts = [self.folder / f"pass-{number}-{rank}.safetensors" for rank in range(self.processes.num_processes)]
        found: dict[str, torch.Tensor] = {}
        for part in parts:
            found |= load_file(part)
        for kind, layer in keys:
            for name in self._tested():
                of_tasks = [found.pop(f"{kind}.{layer}.{task}.{name}") for task in range(len(self.data.classes))]
                found[f"{kind}.{layer}.{name}"] = torch.stack(of_tasks)
        write_whole(result, lambda path: save_file(found, path))
        for part in parts:
            part.unlink()
        shutil.rmtree(self.folder / f"pass-{number}", ignore_errors=True)
