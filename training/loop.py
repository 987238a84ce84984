"""The one training loop: accumulate, clip, step, log, validate, checkpoint; resumes bit for bit."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from . import checkpoints
from .args import DataArgs, OptimArgs, RunArgs, require
from .device import matmul_peak, surroundings
from .health import STARVED, peak_memory, update_ratios
from .mixture import RowStream
from .optim import learning_rate, set_learning_rate
from .progress import Clock, MetricsFile, finite, flat, log_line, validation_line
from .resume import shared_out_anew


def accumulation_steps(args: DataArgs, tokens_per_row: int, world: int) -> tuple[int, int]:
    """(rows at a time on a device, micro-batches a step) that make `tokens_per_step` code tokens.

    Raises:
        ValueError: no whole number of rows, or of micro-batches.
    """
    rows = args.tokens_per_step // tokens_per_row
    require(
        rows > 0 and rows * tokens_per_row == args.tokens_per_step,
        f"--tokens_per_step {args.tokens_per_step} is no multiple of the {tokens_per_row} code tokens of a row.",
    )
    return micro_batches(rows, args.per_device_batch_size, world, "--tokens_per_step")


def micro_batches(rows: int, per_device: int, world: int, flag: str) -> tuple[int, int]:
    """(rows at a time on a device, micro-batches a step) that make `rows` a step, which `flag` asked for.

    Raises:
        ValueError: no whole number of rows a process, or of micro-batches.
    """
    require(rows % world == 0, f"{flag} makes {rows} rows, which {world} processes cannot share equally.")
    micro = min(per_device, rows // world)
    require(
        rows // world % micro == 0,
        f"{rows // world} rows a step and process are no multiple of --per_device_batch_size {micro}.",
    )
    return micro, rows // world // micro


class Preemption:
    """Notes SIGTERM, which a scheduler sends before it takes the machine away; `asked` from then on."""

    def __init__(self):
        self.asked = False
        self._before = None

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_) -> None:
        self.asked = True


class Objective:
    """What a training is for: the losses of its rows, and what its validation finds. The loop does the rest.

    verb: of the command, for the log. micro, accumulation: rows of a micro-batch on a device, micro-batches a step.
    tokens_per_step: code tokens of a step on all devices. flops_per_token: training FLOPs of one of them.
    validates: whether there is anything to validate on.
    """

    verb: str
    micro: int
    accumulation: int
    tokens_per_step: int
    flops_per_token: float
    validates: bool

    def losses(self, model, rows: list, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """(a micro-batch's loss to go back through, its share of the mean of the step; 4 sums of every row, (rows, 4)
        float64 on the CPU, the first two of them the loss that the log tells by source and its count)."""
        raise NotImplementedError

    def figures(self, sums: list[float]) -> dict[str, float | None]:
        """What the log tells of a step by the 4 sums of all its rows: "loss", then what else there is."""
        raise NotImplementedError

    def validate(self, accelerator, model, run: Path, step: int) -> dict:
        """A row for the metrics, with "val_loss"; every rank calls it. What else it has to tell goes into `run`."""
        raise NotImplementedError

    def starved(self, waited: float) -> str:
        """The sentence for a run that waits for its data; waited: share of the time."""
        raise NotImplementedError

    def stepped(self, step: int) -> None:
        """After optimiser step `step` (from 1) has changed the weights."""

    def saved_weights(self) -> contextlib.AbstractContextManager:
        """Inside it the model has the weights that a checkpoint's model files hold."""
        return contextlib.nullcontext()

    def save(self, folder: Path, distributed: bool) -> None:
        """What resuming needs besides the model files and the moments, into a checkpoint's training state;
        called inside `saved_weights()`."""

    def load(self, folder: Path, loop_state: dict, distributed: bool) -> None:
        """What `save` and `state_dict` kept."""

    def state_dict(self, step: int) -> dict:
        """What of it is JSON; a checkpoint of this step is about to be written."""
        return {}

    def spared(self) -> set[int]:
        """Steps whose checkpoints no rotation may drop."""
        return set()


def _step(accelerator, model, rows: list, objective: Objective, count: int, asked: bool) -> tuple[torch.Tensor, bool]:
    """Gradients of a step, the mean over the rows of all ranks.

    rows: [(source, row)] of this rank. count: number of sources. asked: whether this rank was told to stop.
    Returns:
        (count, 4) float64 on the CPU: of every source the objective's sums, over all ranks;
        whether any rank was told to stop.
    """
    device, micro, accumulation = accelerator.device, objective.micro, objective.accumulation
    sums = torch.zeros(count, 4, dtype=torch.float64)
    for k in range(accumulation):
        batch = rows[k * micro : (k + 1) * micro]
        # Gradients meet once a step, in the last micro-batch.
        with accelerator.no_sync(model) if k < accumulation - 1 else contextlib.nullcontext():
            loss, of_rows = objective.losses(model, [row for _, row in batch], device)
            accelerator.backward(loss)
        sums.index_add_(0, torch.tensor([source for source, _ in batch]), of_rows)
    if accelerator.num_processes == 1:
        return sums, asked
    told = torch.cat([sums.flatten(), torch.tensor([asked], dtype=torch.float64)])
    told = accelerator.reduce(told.to(device, torch.float32), "sum").double().cpu()
    return told[:-1].view_as(sums), bool(told[-1])


def _take(accelerator, stream: RowStream, count: int) -> list | None:
    """The rows of a step; None for all ranks where the data have ended for one."""
    rows = stream.take(count)
    if not stream.is_indexed and accelerator.num_processes > 1:  # pixels may end on one rank first
        ended = torch.tensor(float(rows is None), device=accelerator.device)
        rows = None if accelerator.reduce(ended, "sum").item() else rows
    return rows


def train(
    accelerator,
    model,
    optimizer,
    processor,
    stream: RowStream,
    objective: Objective,
    run: Path,
    args: RunArgs,
    optim: OptimArgs,
    resume_from: Path | None = None,
    max_steps: int | None = None,
) -> tuple[Path, bool]:
    """Train to `args.max_steps`; returns the last checkpoint, and whether SIGTERM ended the training before.

    Args:
        model, optimizer: already prepared by the accelerator.
        stream: of this rank.
        resume_from: a checkpoint of this run; everything after it is as if the run had never stopped.
        max_steps: of the schedule, where it is not that of `args`.
    Raises:
        ValueError: too many steps in a row are not finite, or the data end before the first. OSError: no space for a
            checkpoint.
    """
    world, device = accelerator.num_processes, accelerator.device
    plain = accelerator.unwrap_model(model)
    clock = Clock(matmul_peak(device) * world, objective.flops_per_token, objective.tokens_per_step)
    max_steps, step, tokens, saved, skipped, in_a_row = max_steps or args.max_steps, 0, 0, None, 0, 0
    since_log, is_budgeted = torch.zeros(len(stream.names), 4, dtype=torch.float64), args.max_minutes is None
    if resume_from is not None:
        loop_state = checkpoints.load_loop(resume_from)
        checkpoints.load_optimizer(resume_from / checkpoints.STATE / "optimizer", plain, optimizer, world > 1)
        step, tokens, clock.seconds = (loop_state[key] for key in ("step", "tokens", "seconds"))
        is_budgeted = loop_state["is_budgeted"]
        skipped, in_a_row = loop_state["skipped_steps"], loop_state["skipped_in_a_row"]
        nothing = [0.0] * 4  # of a source that the recipe did not have then
        known = [loop_state["since_log"].get(name, nothing) for name in stream.names]
        since_log = torch.tensor(known, dtype=torch.float64)
        objective.load(resume_from / checkpoints.STATE, loop_state, world > 1)
        stream.load_state_dict(shared_out_anew(loop_state, world)[accelerator.process_index])
        saved = step
    metrics = MetricsFile(run / "metrics.jsonl", step) if accelerator.is_main_process else None
    model.train()
    bar = tqdm(total=max_steps, initial=step, desc=objective.verb, unit="step", disable=not accelerator.is_main_process)
    checkpoint, preempted, has_starved = resume_from, False, False

    with Preemption() as preemption:
        while step < max_steps and not preempted:
            clock.start()
            rate = learning_rate(step, max_steps, optim)
            set_learning_rate(optimizer, rate)
            rows = _take(accelerator, stream, objective.micro * objective.accumulation)
            clock.waited += clock.running
            if rows is None:
                require(step > 0, "The sources end before they fill one step; lower --tokens_per_step.")
                bar.write(f"The data end after step {step}, as the recipe says.")
                max_steps = step
            else:
                sums, preempted = _step(accelerator, model, rows, objective, len(stream.names), preemption.asked)
                figures = objective.figures(sums.sum(0).tolist())
                loss = figures["loss"]
                norm = float(accelerator.clip_grad_norm_(model.parameters(), optim.max_grad_norm or math.inf))
                is_finite = math.isfinite(loss) and math.isfinite(norm)
                if is_finite:
                    optimizer.step()
                    objective.stepped(step + 1)
                    since_log += sums
                    in_a_row = 0
                else:
                    skipped, in_a_row = skipped + 1, in_a_row + 1
                    _refuse_many(in_a_row, args.max_skipped_steps, step + 1, loss, norm, checkpoint)
                optimizer.zero_grad(set_to_none=True)
                step, tokens = step + 1, tokens + objective.tokens_per_step
                clock.stop()
                if not is_budgeted and step >= 5 and clock.taken >= 2:
                    is_budgeted = True
                    fitting = step + clock.steps_in(args.max_minutes * 60)
                    bar.total = max_steps = min(max_steps, broadcast_object_list([fitting])[0])
                bar.update()

            last = step == max_steps
            if clock.steps and (step % args.logging_steps == 0 or last):
                ratios = update_ratios(plain, optimizer)  # a matter of all ranks, where weights are sharded
                if metrics:
                    row = {"step": step, "tokens": tokens, "flops": tokens * clock.flops_per_token}
                    told = figures if is_finite else {key: figures[key] for key in figures if key != "loss"}
                    row |= {key: value and finite(value) for key, value in told.items()}
                    row |= {"learning_rate": rate, "grad_norm": finite(norm)}
                    row |= {"update_ratio": ratios, **clock.figures(), "peak_memory_mb": peak_memory(device)}
                    row |= {"skipped_steps": skipped, "sources": _by_source(stream, since_log)}
                    metrics.write(row)
                    accelerator.log(flat(row), step=step)
                    bar.write(f"step {step}/{max_steps} | {log_line(row)} | ETA {clock.left(max_steps - step)}")
                    if row["data_wait"] > STARVED and not has_starved:
                        has_starved = True  # said once: every row of the metrics has the share
                        bar.write(objective.starved(row["data_wait"]))
                clock.reset()
                since_log.zero_()
            if rows is None and saved == step:
                break
            if objective.validates and (step % (args.eval_steps or args.save_steps) == 0 or last):
                row = objective.validate(accelerator, model, run, step)
                if metrics:
                    metrics.write({"step": step, "tokens": tokens} | row)
                    accelerator.log(flat(row), step=step)
                    bar.write(f"step {step}/{max_steps} | validation {validation_line(row)}")
            if step % args.save_steps == 0 or last or preempted:
                state = {"step": step, "max_steps": max_steps, "seconds": clock.seconds, "skipped_steps": skipped}
                state |= {"skipped_in_a_row": in_a_row, "tokens": tokens, "is_budgeted": is_budgeted}
                state |= {"since_log": dict(zip(stream.names, since_log.tolist(), strict=True))}
                state |= {"asked_steps": args.max_steps}
                state |= objective.state_dict(step)
                parts = (accelerator, model, optimizer, processor, stream, objective)
                checkpoint, saved = _save(*parts, run, state, args.keep_checkpoints), step
    bar.close()
    return checkpoint, preempted and step < max_steps


def _refuse_many(in_a_row: int, limit: int, step: int, loss: float, norm: float, checkpoint: Path | None) -> None:
    if in_a_row > limit:
        good = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
        raise ValueError(
            f"The loss or its gradient is not finite at step {step} (loss {loss}, norm {norm}), as in the {limit} "
            f"steps before; {good}. Lower --learning_rate or lengthen --warmup_steps."
        )


def _by_source(stream: RowStream, sums: torch.Tensor) -> dict:
    """Name -> realised share and epochs so far, and the mean loss since the last log line (None: no row of it)."""
    means = [total / codes if codes else None for total, codes, *_ in sums.tolist()]
    return {name: facts | {"loss": mean} for (name, facts), mean in zip(stream.shares().items(), means, strict=True)}


def _save(accelerator, model, optimizer, processor, stream, objective, run: Path, loop_state: dict, keep) -> Path:
    from accelerate.utils import gather_object

    step, is_main, world = loop_state["step"], accelerator.is_main_process, accelerator.num_processes
    streams = gather_object([stream.state_dict()])
    plain = accelerator.unwrap_model(model)  # whose weights are called the same, however they are spread
    written = checkpoints.writing(run, step, keep, is_main, accelerator.wait_for_everyone, objective.spared())
    with objective.saved_weights():
        weights = accelerator.get_state_dict(model)  # whole, on the first process
        with written as folder:
            checkpoints.save_optimizer(folder / checkpoints.STATE / "optimizer", plain, optimizer, world > 1)
            objective.save(folder / checkpoints.STATE, world > 1)
            if is_main:
                plain.save_pretrained(folder, state_dict=weights)
                if processor is not None:
                    processor.save_pretrained(folder)
                loop_state |= {"world": world, "fingerprints": stream.fingerprints}
                loop_state |= {"versions": surroundings(accelerator)}
                checkpoints.save_loop(folder, loop_state | {"streams": streams})
    return run / "checkpoints" / f"step_{step:06d}"
