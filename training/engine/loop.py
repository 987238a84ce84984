"""The training loop: accumulate, clip, step, log, validate, checkpoint; it resumes bit for bit."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate.utils import DistributedType, broadcast_object_list, gather_object

from tokenization.terminal.progress import tqdm
from training import find_model
from training.args import OptimArgs, RunArgs
from training.engine import checkpoints
from training.engine.changes import redistributed
from training.engine.device import (
    CHECKPOINT_LIMIT,
    EVALUATION_LIMIT,
    STEP_LIMIT,
    data_sheet_peak,
    limit_collectives,
    matmul_peak,
    surroundings,
)
from training.engine.hangs import Stacks, stacks
from training.engine.moments import load_moments, moments, own_part
from training.engine.objective import Objective
from training.engine.optim import learning_rate, set_learning_rate
from training.engine.progress import (
    STARVED,
    Clock,
    MetricsFile,
    finite,
    flat,
    log_line,
    peak_memory,
    slowest_rank,
    update_ratios,
    validation_line,
)
from training.engine.run import Preemption, Run
from training.engine.snapshot import Snapshot, Writer
from training.engine.trackers import log_pictures
from training.flags import require
from training.rows.mixture import RowStream


@dataclass(frozen=True)
class Learner:
    """The model to train, with its optimiser, rows and objective.

    Fields:
        model, optimizer: already prepared by the accelerator.
        processor: saved with the model; None if there is none.
        stream: the rows of this rank.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    processor: object
    stream: RowStream
    objective: Objective


def train(run: Run, learner: Learner, args: RunArgs, optim: OptimArgs) -> tuple[Path, bool]:
    """Train to `run.max_steps`; returns the last checkpoint, and whether SIGTERM ended the training early.

    Raises:
        ValueError: too many successive steps are not finite, or the data ends before the first step, or there are too
            few steps to profile.
        OSError: there was no space for a checkpoint; one that a thread writes is reported at the next step.
    """
    loop = _Loop(run, learner, args, optim)
    ahead = learner.stream.reading_ahead(pin=run.accelerator.device.type == "cuda")
    profiling = _profiler(run, loop, args.profile)
    watching = stacks(run.folder, run.accelerator.process_index, run.accelerator.num_processes)
    with (
        ahead,
        Preemption() as preemption,
        _settled(),
        profiling as profiler,
        watching as loop.stacks,
        loop.writer as writer,
    ):
        while loop.step < loop.max_steps and not loop.preempted:
            writer.check()
            has_rows = loop.take_step(preemption)
            if loop.clock.taken == 1:
                loop.settle()
            elif loop.stacks:
                loop.stacks.expect(STEP_LIMIT)
            if profiler is not None:
                profiler.step()
            if loop.clock.steps and loop.is_due(args.logging_steps):
                loop.log()
            if not has_rows and loop.saved == loop.step:
                break
            if learner.objective.validates and loop.is_due(args.eval_steps or args.save_steps):
                loop.validate()
            if loop.is_due(args.save_steps) or loop.preempted:
                loop.save()
    loop.bar.close()
    return loop.checkpoint, loop.preempted and loop.step < loop.max_steps


@contextlib.contextmanager
def _settled() -> Iterator[None]:
    """The garbage collector as it was, after a training that has frozen it (`_Loop.settle`)."""
    try:
        yield
    finally:
        gc.unfreeze()


def _profiler(run: Run, loop: _Loop, steps: int | None) -> contextlib.AbstractContextManager:
    """A profiler of `steps` steps of the first process, from its third on; it writes RUN/trace_step_XXXXXX.json.gz.

    The first steps compile and allocate. The trace opens in Perfetto and in chrome://tracing.
    """
    if steps is None:
        return contextlib.nullcontext()
    left = loop.max_steps - loop.step
    require(left >= steps + 2, f"--profile {steps} needs {steps + 2} steps, but {left} are left; lower it.")
    if not run.is_main:
        return contextlib.nullcontext()
    from torch.profiler import profile, schedule

    def write(found: profile) -> None:
        path = run.folder / f"trace_step_{loop.step:06d}.json.gz"
        found.export_chrome_trace(str(path))
        loop.bar.write(f"wrote {path}")

    return profile(schedule=schedule(wait=1, warmup=1, active=steps, repeat=1), on_trace_ready=write)


class _Loop:
    """The state of a training, and the actions at its steps."""

    def __init__(self, run: Run, learner: Learner, args: RunArgs, optim: OptimArgs):
        self.run, self.learner, self.args, self.optim = run, learner, args, optim
        self.accelerator = accelerator = run.accelerator
        self.device, self.is_distributed = accelerator.device, accelerator.num_processes > 1
        self.is_sharded = accelerator.distributed_type == DistributedType.FSDP
        self.plain = accelerator.unwrap_model(learner.model)  # its weights have the same names, sharded or not
        objective = learner.objective
        world, peak = accelerator.num_processes, data_sheet_peak(accelerator)
        measured = world * matmul_peak(self.device)
        self.clock = Clock(peak and world * peak, measured, objective.flops_per_token, objective.tokens_per_step)
        self.max_steps, self.step, self.tokens, self.skipped, self.in_a_row = run.max_steps, 0, 0, 0, 0
        self.since_log = torch.zeros(len(learner.stream.names), 4, dtype=torch.float64)
        self.is_budgeted = args.max_minutes is None
        self.saved, self.preempted, self.has_starved = None, False, False
        if run.checkpoint is not None:
            self._load(run.checkpoint)
        self.metrics = MetricsFile(run.folder / "metrics.jsonl", self.step) if run.is_main else None
        learner.model.train()
        self.bar = tqdm(
            total=self.max_steps,
            initial=self.step,
            desc=objective.verb,
            unit="step",
            disable=not run.is_main,
            logs=True,
        )
        say = self.bar.write if run.is_main else lambda line: None
        self.stacks: Stacks | None = None
        self.writer = Writer(accelerator, args.async_checkpoints, say)

    @property
    def checkpoint(self) -> Path | None:
        """The last checkpoint that is complete."""
        return self.writer.written or self.run.checkpoint

    def _load(self, checkpoint: Path) -> None:
        learner, state = self.learner, checkpoints.load_loop(checkpoint)
        folder = checkpoint / find_model.STATE
        load_moments(folder / "optimizer", self.plain, learner.optimizer, self.is_distributed)
        self.step, self.tokens, self.clock.seconds = (state[key] for key in ("step", "tokens", "seconds"))
        self.saved, minutes = state["step"], self.args.max_minutes
        if minutes is not None:  # another budget than before counts the steps anew
            self.is_budgeted = state["is_budgeted"] and state.get("max_minutes", minutes) == minutes
            self.max_steps = self.max_steps if self.is_budgeted else self.args.max_steps
        self.skipped, self.in_a_row = state["skipped_steps"], state["skipped_in_a_row"]
        nothing = [0.0] * 4  # for a source that is new in the recipe
        known = [state["since_log"].get(name, nothing) for name in learner.stream.names]
        self.since_log = torch.tensor(known, dtype=torch.float64)
        learner.objective.load(folder, state, self.is_distributed)
        streams = redistributed(state, self.accelerator.num_processes)
        learner.stream.load_state_dict(streams[self.accelerator.process_index])

    def is_due(self, every: int) -> bool:
        """Whether this step is a multiple of `every`, or the last."""
        return self.step % every == 0 or self.step == self.max_steps

    def take_step(self, preemption: Preemption) -> bool:
        """Take an optimiser step on the next rows; False if the data has ended, which makes this step the last."""
        learner, clock, objective = self.learner, self.clock, self.learner.objective
        clock.start()
        self.rate = learning_rate(self.step, self.max_steps, self.optim)
        set_learning_rate(learner.optimizer, self.rate)
        rows = _take(self.accelerator, learner.stream, objective.micro * objective.accumulation)
        clock.waited += clock.running
        if self.is_sharded:
            clock.alone += clock.running
        if rows is None:
            require(self.step > 0, "The sources end before they fill one step; lower --tokens_per_step.")
            self.bar.write(f"The data end after step {self.step}, as set in the recipe.")
            self.max_steps = self.step
            return False
        own_time = None if self.is_sharded else clock  # a sharded model waits for the others in its forward pass
        sums, self.preempted = _gradients(self.accelerator, learner, rows, preemption.asked, own_time)
        self.figures = objective.figures(sums.sum(0).tolist())
        limit = self.optim.max_grad_norm or math.inf
        self.norm = float(self.accelerator.clip_grad_norm_(learner.model.parameters(), limit))
        self.is_finite = math.isfinite(self.figures["loss"]) and math.isfinite(self.norm)
        if self.is_finite:
            learner.optimizer.step()
            objective.stepped(self.step + 1)
            self.since_log += sums
            self.in_a_row = 0
        else:
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            self._refuse_many()
        learner.optimizer.zero_grad(set_to_none=True)
        self.step, self.tokens = self.step + 1, self.tokens + objective.tokens_per_step
        clock.stop()
        self._budget()
        self.bar.update()
        return True

    def _refuse_many(self) -> None:
        if self.in_a_row > self.args.max_skipped_steps:
            self.writer.finish()
            good = f"the last checkpoint is {self.checkpoint}" if self.checkpoint else "there is no checkpoint yet"
            raise ValueError(
                f"The loss or its gradient is not finite at step {self.step + 1} (loss {self.figures['loss']}, norm "
                f"{self.norm}), as in the {self.args.max_skipped_steps} steps before; lower --learning_rate, or raise "
                f"--warmup_steps ({good})."
            )

    def _budget(self) -> None:
        """Lower `max_steps` once to fit --max_minutes, as soon as the first steps have been timed."""
        if not self.is_budgeted and self.step >= 5 and self.clock.taken >= 2:
            self.is_budgeted = True
            fitting = self.step + self.clock.steps_in(self.args.max_minutes * 60)
            self.bar.total = self.max_steps = min(self.max_steps, broadcast_object_list([fitting])[0])

    def settle(self) -> None:
        """After the first step: everything is loaded and compiled, and what is alive now lives to the end.

        The garbage collector need not look at it again, and a process that does not come hangs.
        """
        gc.collect()
        gc.freeze()
        self.accelerator.wait_for_everyone()
        self._limit(STEP_LIMIT)

    def _limit(self, limit: timedelta) -> None:
        limit_collectives(limit)
        if self.stacks:
            self.stacks.expect(limit)

    @contextlib.contextmanager
    def _waiting(self, limit: timedelta) -> Iterator[None]:
        """A block in which processes may wait this long for one of them; they leave it together."""
        self._limit(limit)
        yield
        self.accelerator.wait_for_everyone()
        self._limit(STEP_LIMIT)

    def log(self) -> None:
        clock, stream = self.clock, self.learner.stream
        ratios = update_ratios(self.plain, self.learner.optimizer)  # all ranks call it: weights may be sharded
        times = [[seconds / clock.steps for seconds in (clock.alone, clock.waited)]]
        times = gather_object(times) if self.is_distributed else times
        if self.metrics:
            row = {"step": self.step, "tokens": self.tokens, "flops": self.tokens * clock.flops_per_token}
            figures = {key: value for key, value in self.figures.items() if self.is_finite or key != "loss"}
            row |= {key: value and finite(value) for key, value in figures.items()}
            row |= {"learning_rate": self.rate, "grad_norm": finite(self.norm)}
            row |= {"update_ratio": ratios, **clock.figures(), "peak_memory_mb": peak_memory(self.device)}
            row |= {"skipped_steps": self.skipped, "sources": _by_source(stream, self.since_log)}
            slowest, slow = slowest_rank(times, clock.busy / clock.steps)
            row |= {"slowest_rank": slowest} if self.is_distributed else {}
            self._write(row, f"{log_line(row)} | ETA {clock.left(self.max_steps - self.step)}")
            if slow and self.is_distributed:
                self.bar.write(f"step {self.step}/{self.max_steps} | {slow}")
            if row["data_wait"] > STARVED and not self.has_starved:
                self.has_starved = True  # printed once; every row of the metrics has the share
                self.bar.write(self.learner.objective.starved(row["data_wait"]))
        clock.reset()
        self.since_log.zero_()

    def validate(self) -> None:
        learner = self.learner
        with self._waiting(EVALUATION_LIMIT):
            row = learner.objective.validate(self.accelerator, learner.model, self.run.folder, self.step)
            if self.metrics:
                self._write({"step": self.step, "tokens": self.tokens} | row, f"validation {validation_line(row)}")
            # a sharded model cannot be called by one process alone
            if self.metrics and self.accelerator.trackers and not self.is_sharded:
                with torch.compiler.set_stance("force_eager"):  # a roll-out has other shapes, compiled one by one
                    pictures = learner.objective.pictures(self.plain, learner.processor)
                log_pictures(self.accelerator, pictures, self.step)

    def _write(self, row: dict, line: str) -> None:
        self.metrics.write(row)
        self.accelerator.log(flat(row), step=self.step)
        self.bar.write(f"step {self.step}/{self.max_steps} | {line}")

    def save(self) -> None:
        """Write a checkpoint, or let a thread write it while the training goes on; every rank calls it."""
        self.writer.finish(f"; --save_steps {self.args.save_steps} is less than it takes")
        accelerator, learner, run = self.accelerator, self.learner, self.run
        state = {"step": self.step, "max_steps": self.max_steps, "seconds": self.clock.seconds}
        state |= {"skipped_steps": self.skipped, "skipped_in_a_row": self.in_a_row}
        state |= {"tokens": self.tokens, "is_budgeted": self.is_budgeted, "asked_steps": self.args.max_steps}
        state |= {"max_minutes": self.args.max_minutes}
        state |= {"since_log": dict(zip(learner.stream.names, self.since_log.tolist(), strict=True))}
        state |= learner.objective.state_dict(self.step)
        streams = gather_object([learner.stream.state_dict()])
        if run.is_main:
            state |= {"world": accelerator.num_processes, "fingerprints": learner.stream.fingerprints}
            state |= {"versions": surroundings(accelerator), "streams": streams}
        rank, world, spared = accelerator.process_index, accelerator.num_processes, learner.objective.spared()
        with self._waiting(CHECKPOINT_LIMIT), learner.objective.saved_weights():
            weights = accelerator.get_state_dict(learner.model)  # unsharded, on the first process
            tensors = {"optimizer": moments(self.plain, learner.optimizer)} | learner.objective.saved_tensors()
            parts = {name: own_part(named, rank, world) for name, named in tensors.items()}
            snapshot = Snapshot(self.step, weights if run.is_main else {}, parts, state, spared)
            if self.writer.in_background:
                snapshot = snapshot.copied(self.device)
            target = run.folder / "checkpoints" / f"step_{self.step:06d}"
            self.writer.start(self.step, target, functools.partial(self._write_checkpoint, snapshot))
        self.saved = self.step

    def _write_checkpoint(self, snapshot: Snapshot) -> None:
        """Write a checkpoint from its snapshot; a thread may call it."""
        run, learner = self.run, self.learner
        what = (self.plain, learner.processor, learner.objective.write_beside)
        run.before_checkpoint()
        snapshot.write(run.folder, self.args.keep_checkpoints, *what, run.is_main, self.writer.wait)
        run.after_checkpoint(self.args.keep_checkpoints, snapshot.spared)


def _gradients(
    accelerator, learner: Learner, rows: list, asked: bool, clock: Clock | None
) -> tuple[torch.Tensor, bool]:
    """Compute the gradients of a step, which are means over the rows of all ranks.

    Args:
        rows: [(source, row)] of this rank.
        asked: whether SIGTERM has reached this rank.
        clock: notes when the backward pass begins that exchanges gradients, for which the host waits for the device.
    Returns:
        (sums, preempted). sums: (sources, 4) float64 on the CPU, the objective's sums per source over all ranks.
        preempted: whether SIGTERM has reached any rank.
    """
    device, objective, model = accelerator.device, learner.objective, learner.model
    micro, accumulation = objective.micro, objective.accumulation
    sums, found = torch.zeros(len(learner.stream.names), 4, dtype=torch.float64), []
    for k in range(accumulation):
        batch = rows[k * micro : (k + 1) * micro]
        # Gradients are exchanged once per step, in the last micro-batch.
        with accelerator.no_sync(model) if k < accumulation - 1 else contextlib.nullcontext():
            loss, of_rows = objective.losses(model, [row for _, row in batch], device)
            if clock is not None and k == accumulation - 1:
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                clock.alone += clock.running
            accelerator.backward(loss)
        found.append(of_rows)
    sums.index_add_(0, torch.tensor([source for source, _ in rows]), torch.cat(found).to("cpu", torch.float64))
    if accelerator.num_processes == 1:
        return sums, asked
    shared = torch.cat([sums.flatten(), torch.tensor([asked], dtype=torch.float64)])
    shared = accelerator.reduce(shared.to(device, torch.float32), "sum").double().cpu()
    return shared[:-1].view_as(sums), bool(shared[-1])


def _take(accelerator, stream: RowStream, count: int) -> list | None:
    """The rows of a step; None on all ranks once the data has ended on one."""
    rows = stream.take(count)
    if not stream.is_indexed and accelerator.num_processes > 1:  # pixels may end on one rank first
        ended = torch.tensor(float(rows is None), device=accelerator.device)
        rows = None if accelerator.reduce(ended, "sum").item() else rows
    return rows


def _by_source(stream: RowStream, sums: torch.Tensor) -> dict:
    """Source -> its share and epochs so far, and its mean loss since the last log line (None if it had no row)."""
    means = [total / codes if codes else None for total, codes, *_ in sums.tolist()]
    return {name: facts | {"loss": mean} for (name, facts), mean in zip(stream.shares().items(), means, strict=True)}
