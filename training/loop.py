"""The one training loop: accumulate, clip, step, log, validate, checkpoint; resumes bit for bit."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import time
from datetime import timedelta
from pathlib import Path

import torch
from tqdm.auto import tqdm

from tokenization.sequences import code_positions

from . import checkpoints
from .args import DataArgs, OptimArgs, RunArgs, require
from .device import matmul_peak
from .optim import learning_rate, set_learning_rate


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
    require(rows % world == 0, f"--tokens_per_step makes {rows} rows, which {world} processes cannot share equally.")
    micro = min(args.per_device_batch_size, rows // world)
    require(
        rows // world % micro == 0,
        f"{rows // world} rows a step and process are no multiple of --per_device_batch_size {micro}.",
    )
    return micro, rows // world // micro


def flops_per_token(config) -> float:
    """Training FLOPs of one token at full rows: 6 a weight (the head included), 6 a causal attention pair."""
    d, layers = config.hidden_size, config.num_hidden_layers
    weights = layers * (4 * d * d + 3 * d * config.intermediate_size) + config.vocab_size * d
    return 6 * weights + 6 * layers * d * config.max_position_embeddings


class MetricsFile:
    """metrics.jsonl of a run: a row at a time, flushed at once; cut back to a checkpoint's step on resume."""

    def __init__(self, path: Path, keep_up_to: int | None):
        rows = []
        if keep_up_to is not None and path.is_file():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:  # the torn last line of a killed run
                    continue
                if row["step"] <= keep_up_to:
                    rows.append(line)
            temporary = path.with_suffix(".partial")
            temporary.write_text("".join(f"{row}\n" for row in rows))
            temporary.replace(path)
        self._file = path.open("a")

    def write(self, row: dict) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


@torch.no_grad()
def validate(accelerator, model, rows: torch.Tensor, batch_size: int) -> dict:
    """Mean nats of code tokens and of end tokens over `rows` (N, L), the ranks sharing the work."""
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device="cpu")
    for batch in rows[accelerator.process_index :: accelerator.num_processes].split(batch_size):
        sums += _loss_sums(
            model(
                input_ids=batch.to(accelerator.device), labels=batch.to(accelerator.device), skip_logits=True
            ).token_losses,
            batch,
        )
    model.train()
    sums = accelerator.reduce(sums.to(accelerator.device, torch.float32), "sum").tolist()
    return {"val_loss": sums[0] / sums[1], "val_end_loss": sums[2] / sums[3], "val_rows": len(rows)}


def _loss_sums(token_losses: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(sum of code losses, codes, sum of end losses, ends), float64 on the CPU."""
    losses = token_losses.detach().to("cpu", torch.float64)
    codes = code_positions(ids)
    codes[:, 0] = False
    ends = ~codes
    ends[:, 0] = False
    return torch.stack([losses[codes].sum(), codes.sum(), losses[ends].sum(), ends.sum()])


def train(
    accelerator,
    model,
    optimizer,
    processor,
    stream,
    validation: torch.Tensor,
    run: Path,
    args: RunArgs,
    data: DataArgs,
    optim: OptimArgs,
    resume_from: Path | None = None,
) -> Path:
    """Train to `args.max_steps`; returns the last checkpoint.

    Args:
        model, optimizer: already prepared by the accelerator.
        stream: a `RowStream` of this rank. validation: ids (N, L), possibly none.
        resume_from: a checkpoint of this run; everything after it is as if the run had never stopped.
    Raises:
        ValueError: the loss is not finite. OSError: no space for a checkpoint.
    """
    config = accelerator.unwrap_model(model).config
    world, device = accelerator.num_processes, accelerator.device
    tokens_per_row = config.num_frames * config.tokens_per_frame
    micro, accumulation = accumulation_steps(data, tokens_per_row, world)
    peak = matmul_peak(device) * world
    max_steps, step, trained_seconds = args.max_steps, 0, 0.0
    if resume_from is not None:
        state, loop_state = checkpoints.load_state(resume_from)
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        step, max_steps, trained_seconds = loop_state["step"], loop_state["max_steps"], loop_state["seconds"]
        require(
            len(loop_state["streams"]) == world,
            f"The run had {len(loop_state['streams'])} processes and now has {world}; resume with the same number.",
        )
        stream.load_state_dict(loop_state["streams"][accelerator.process_index])
    metrics = MetricsFile(run / "metrics.jsonl", step) if accelerator.is_main_process else None
    rows = iter(stream)
    model.train()
    bar = tqdm(total=max_steps, initial=step, desc="pretrain", unit="step", disable=not accelerator.is_main_process)
    waited = busy = 0.0
    counted, checkpoint = 0, resume_from

    while step < max_steps:
        began = time.perf_counter()
        rate = learning_rate(step, max_steps, optim)
        set_learning_rate(optimizer, rate)
        sums = torch.zeros(4, dtype=torch.float64)
        for k in range(accumulation):
            asked = time.perf_counter()
            ids = torch.stack(list(itertools.islice(rows, micro)))
            waited += time.perf_counter() - asked
            on_device = ids.to(device, non_blocking=True)
            # Gradients meet once a step, in the last micro-batch.
            with accelerator.no_sync(model) if k < accumulation - 1 else contextlib.nullcontext():
                predictions = accumulation * micro * (ids.shape[1] - 1)  # of the whole step on this rank
                outputs = model(input_ids=on_device, labels=on_device, skip_logits=True, num_items_in_batch=predictions)
                accelerator.backward(outputs.loss)
            sums += _loss_sums(outputs.token_losses, ids)
        totals = accelerator.reduce(sums.to(device, torch.float32), "sum").tolist() if world > 1 else sums.tolist()
        loss, end_loss = totals[0] / totals[1], totals[2] / totals[3]
        if not (math.isfinite(loss) and math.isfinite(end_loss)):
            good = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
            raise ValueError(
                f"The loss is not finite at step {step + 1} (codes {loss}, end {end_loss}); {good}. "
                "Lower --learning_rate or lengthen --warmup_steps."
            )
        norm = accelerator.clip_grad_norm_(model.parameters(), optim.max_grad_norm or math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        seconds = time.perf_counter() - began
        trained_seconds, busy, counted = trained_seconds + seconds, busy + seconds, counted + 1
        if args.max_minutes is not None and resume_from is None and step == 5:
            # The first step warms caches up; the latest is what the others will cost.
            max_steps = min(max_steps, step + max(1, int((args.max_minutes * 60 - trained_seconds) / seconds)))
            bar.total = max_steps
        bar.update()

        last = step == max_steps
        if metrics and (step % args.logging_steps == 0 or last):
            speed = counted * data.tokens_per_step / busy
            row = {
                "step": step,
                "tokens": step * data.tokens_per_step,
                "loss": loss,
                "end_loss": end_loss,
                "learning_rate": rate,
                "grad_norm": float(norm),
                "tokens_per_second": speed,
                "mfu": speed * flops_per_token(config) / peak,
                "data_wait": waited / busy,
                "seconds": trained_seconds,
            }
            metrics.write(row)
            accelerator.log({k: v for k, v in row.items() if k != "step"}, step=step)
            left = timedelta(seconds=round((max_steps - step) * busy / counted))
            tqdm.write(
                f"step {step}/{max_steps} | loss {loss:.4f} | end {end_loss:.4f} | lr {rate:.2e} | norm {norm:.2f} | "
                f"{speed:,.0f} tok/s | MFU {row['mfu']:.0%} | data wait {row['data_wait']:.1%} | ETA {left}"
            )
            waited = busy = 0.0
            counted = 0
        if len(validation) and (step % (args.eval_steps or args.save_steps) == 0 or last):
            row = {"step": step, "tokens": step * data.tokens_per_step} | validate(
                accelerator, model, validation, micro
            )
            if metrics:
                metrics.write(row)
                accelerator.log({"val_loss": row["val_loss"]}, step=step)
                tqdm.write(f"step {step}/{max_steps} | validation loss {row['val_loss']:.4f} ({row['val_rows']} rows)")
        if step % args.save_steps == 0 or last:
            checkpoint = _save(
                accelerator, model, optimizer, processor, stream, run, step, max_steps, trained_seconds, args
            )
    bar.close()
    return checkpoint


def _save(accelerator, model, optimizer, processor, stream, run, step, max_steps, seconds, args) -> Path:
    from accelerate.utils import gather_object

    streams = gather_object([stream.state_dict()])
    folder = run / "checkpoints" / f"step_{step:06d}"
    if accelerator.is_main_process:
        loop_state = {"step": step, "max_steps": max_steps, "seconds": seconds, "streams": streams}
        plain = accelerator.unwrap_model(model)
        state = {"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
        checkpoints.save(run, step, plain, processor, state, loop_state, args.keep_checkpoints)
    accelerator.wait_for_everyone()
    return folder
