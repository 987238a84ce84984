"""The training loop of visual tokenizers: step, log, measure, checkpoint; it resumes bit for bit."""

from __future__ import annotations

import math
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from PIL import Image

from tokenization.evaluate_tokenizer.scores import measure, reconstruction_sheet
from tokenization.terminal.progress import tqdm
from training.engine import checkpoints
from training.engine.device import surroundings
from training.engine.progress import MetricsFile, flat
from training.engine.run import Preemption, Run
from training.engine.trackers import log_pictures
from training.rows.frames import FrameStream
from training.tokenizers.args import TokenizerArgs
from training.tokenizers.losses import retire
from training.tokenizers.steps import DVAESteps, StepResult, VQGANSteps


class TokenizerLoop:
    """The state of a training, and the actions at its steps.

    Args:
        held_out: dataset -> frames to measure on, uint8 (N, R, R, 3); empty except in the first process.
    """

    def __init__(
        self,
        run: Run,
        steps: DVAESteps | VQGANSteps,
        stream: FrameStream,
        held_out: dict[str, np.ndarray],
        args: TokenizerArgs,
    ):
        self.run, self.steps, self.stream, self.held_out, self.args = run, steps, stream, held_out, args
        self.step, self.before, self.began, self.checkpoint = 0, 0.0, time.time(), run.checkpoint
        # Number of uses of each code since the last log line.
        self.usage = torch.zeros(steps.model.config.num_codes, dtype=torch.int64, device=run.accelerator.device)

    @property
    def seconds(self) -> float:
        """Seconds of training, including those before a resume."""
        return self.before + time.time() - self.began

    def load(self, state: dict) -> None:
        self.step, self.before = state["step"], state["seconds"]
        self.stream.load_state_dict(state["streams"][self.run.accelerator.process_index])
        if "usage" in state and self.run.is_main:  # the sum over all processes; older checkpoints do not have it
            self.usage += self.usage.new_tensor(state["usage"])

    def train(self) -> bool:
        """Train to `args.max_steps`; returns whether SIGTERM ended the training early."""
        run, args = self.run, self.args
        self.metrics = MetricsFile(run.folder / "metrics.jsonl", self.step) if run.is_main else None
        self.bar = tqdm(
            total=args.max_steps,
            initial=self.step,
            desc="train-tokenizer",
            unit="step",
            disable=not run.is_main,
            logs=True,
        )
        self.began, frames, preempted = time.time(), iter(self.stream), False
        self.counted, self.counted_since = 0, time.time()
        with Preemption() as preemption:
            while self.step < args.max_steps and not preempted:
                pixels, result = self.take_step(next(frames))
                preempted = self._any(preemption)
                if self.is_due(args.logging_steps):
                    self.log(pixels, result)
                if self.metrics and self.is_due(args.eval_steps):
                    self.measure()
                if self.is_due(args.save_steps) or preempted:
                    self.save()
                if self.step % args.logging_steps == 0:
                    self.counted, self.counted_since = 0, time.time()
        self.bar.close()
        return preempted and self.step < args.max_steps

    def is_due(self, every: int) -> bool:
        """Whether this step is a multiple of `every`, or the last."""
        return self.step % every == 0 or self.step == self.args.max_steps

    def _any(self, preemption: Preemption) -> bool:
        """Whether SIGTERM has reached any process."""
        accelerator, asked = self.run.accelerator, preemption.asked
        if accelerator.num_processes == 1:
            return asked
        return bool(accelerator.reduce(torch.tensor(float(asked), device=accelerator.device), "sum"))

    def take_step(self, frames: np.ndarray) -> tuple[torch.Tensor, StepResult]:
        """Take an optimiser step on uint8 frames (B, R, R, 3).

        Returns:
            (pixels (B, 3, R, R) in [0, 1], the `StepResult`)
        """
        accelerator = self.run.accelerator
        # The noise is a function of the step, so that no generator's state is needed to resume.
        entropy = [self.args.seed, self.step, accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
        pixels = self._pixels(frames)
        result = self.steps.step(self.step, pixels)
        self.step, self.counted = self.step + 1, self.counted + 1
        self.bar.update()
        self.usage += torch.bincount(result.codes.flatten(), minlength=len(self.usage))
        return pixels, result

    def _pixels(self, frames: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(frames).to(self.run.accelerator.device).permute(0, 3, 1, 2).float() / 255

    def log(self, pixels: torch.Tensor, result: StepResult) -> None:
        accelerator, args = self.run.accelerator, self.args
        usage = accelerator.reduce(self.usage)
        share = usage[usage > 0].double() / usage.sum()
        psnr = -10 * torch.log10((result.reconstruction - pixels).square().mean((1, 2, 3)) + 1e-10).mean()
        row = {"step": self.step}
        row |= {name: float(torch.as_tensor(value).detach()) for name, value in result.terms.items()}
        row |= {"psnr": float(psnr), "codes_used": len(share)}
        row |= {"perplexity": float(torch.exp(-(share * share.log()).sum()))}
        rate = self.counted / (time.time() - self.counted_since)
        row["frames_per_second"] = rate * args.batch_size * accelerator.num_processes
        if self.metrics:
            left = timedelta(seconds=round((args.max_steps - self.step) / rate))
            self._write(
                row,
                f"loss {row['loss']:.4f} | PSNR {row['psnr']:.2f} dB | codes {row['codes_used']} (perplexity "
                f"{row['perplexity']:.0f}) | {row['frames_per_second']:.0f} frames/s | ETA {left}",
            )
        self.usage = torch.zeros_like(self.usage)

    def measure(self) -> None:
        """Write the figures of held-out frames to the metrics; only the first process calls it."""
        for row in evaluate(self.run.folder, self.step, self.steps.final_model(), self.held_out):
            self._write(
                row,
                f"held-out {row['dataset']} | PSNR {row['val_psnr']:.2f} dB | SSIM {row['val_ssim']:.4f} | perplexity "
                f"{row['val_perplexity']:.0f}",
                f"{row['dataset']}/",
            )
            if self.run.accelerator.trackers:
                sheet = Image.open(sheet_path(self.run.folder, self.step, row["dataset"]))
                log_pictures(self.run.accelerator, {f"reconstructions/{row['dataset']}": sheet}, self.step)

    def _write(self, row: dict, line: str, prefix: str = "") -> None:
        self.metrics.write(row)
        self.run.accelerator.log(flat(row, prefix), step=self.step)
        self.bar.write(f"step {self.step}/{self.args.max_steps} | {line}")

    def save(self) -> None:
        """Write a checkpoint; every process calls it."""
        run, accelerator = self.run, self.run.accelerator
        streams, state = gather_object([self.stream.state_dict()]), self.steps.state_dict()
        usage = accelerator.reduce(self.usage.clone())
        self.checkpoint = run.folder / "checkpoints" / f"step_{self.step:06d}"
        if run.is_main:
            loop_state = {"step": self.step, "seconds": self.seconds, "streams": streams, "usage": usage.tolist()}
            loop_state |= {"world": accelerator.num_processes, "versions": surroundings(accelerator)}
            saved = (self.steps.model, None, state, loop_state)
            run.before_checkpoint()
            checkpoints.save(run.folder, self.step, *saved, self.args.keep_checkpoints)
            run.after_checkpoint(self.args.keep_checkpoints)
        accelerator.wait_for_everyone()

    @torch.inference_mode()
    def retire_unused(self) -> None:
        """Retire the codes that none of the next training frames has, a tenth of the steps; every process calls it."""
        model, usage = self.steps.model.eval(), torch.zeros_like(self.usage)
        for _, frames in zip(range(math.ceil(self.args.max_steps / 10)), self.stream, strict=False):
            usage += torch.bincount(model.encode(self._pixels(frames)).flatten(), minlength=len(usage))
        retire(model, self.run.accelerator.reduce(usage))


def sheet_path(run: Path, step: int, dataset: str) -> Path:
    """Where the reconstructions of a dataset are."""
    return run / "samples" / f"{dataset.replace(':', '-').replace('/', '-')}-step_{step:06d}.png"


def evaluate(run: Path, step: int, model, held_out: dict) -> list[dict]:
    """A row of figures per dataset, for metrics.jsonl. Writes sheets of reconstructions to RUN/samples."""
    training = model.training
    model.eval()
    rows = []
    for name, frames in held_out.items():
        figures = measure(model, frames)
        rows.append({"step": step, "dataset": name} | {f"val_{key}": value for key, value in figures.items()})
        shown = torch.from_numpy(frames[:16]).permute(0, 3, 1, 2)
        with torch.inference_mode():
            copies = model.decode(model.encode(shown.to(model.device).float() / 255))
        path = sheet_path(run, step, name)
        path.parent.mkdir(exist_ok=True)
        sheet = reconstruction_sheet(shown, (copies.cpu() * 255).round().to(torch.uint8))
        sheet.save(path)
    model.train(training)
    return rows
