"""Runs killed at random places and resumed, against the same runs left alone: every loss, bit for bit.

  python tests/training/kill_resume.py --kills 200 --seed 0

A trial draws what is trained on, the number of ranks, accumulation and one kill or two in a row. A kill comes after a
drawn number of rows of metrics, and then some time within a step, so that a busy machine does not move it. The process
that forks the runs has imported everything and computed nothing, so that a run costs a second or two instead of ten.
Prints a JSON object; exits with 1 where a run differs or was lost.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

STEPS, SAVE_STEPS = 12, 2
# Two epochs and more in twelve steps of four rows, and a source that leaves midway.
DATA = ("shards", "mixture", "pixels")


def flags_of(data: str, accumulation: int, folder: Path) -> list[str]:
    from tiny_run import FLAGS

    flags = [*FLAGS, "--max_steps", str(STEPS), "--save_steps", str(SAVE_STEPS), "--logging_steps", "1"]
    flags += ["--keep_checkpoints", "2", "--val_rows", "2", "--learning_rate", "1e-2"]
    flags += ["--per_device_batch_size", "1" if accumulation == 2 else "8"]
    small, large = str(folder / "small"), str(folder / "large")
    if data == "shards":
        return [*flags, "--shards", small, "--val_shards", large]
    sources = [{"data": small, "weight": 0.6, "at_end": "leave", "val_data": large}]
    sources += [{"data": large, "weight": 0.4, "val_data": large}]
    if data == "pixels":
        sources[1] = {"data": "toyworld", "weight": 0.4, "kind": "image"}
    return [*flags, "--tokenizer", str(folder / "tokenizer"), "--sources", *map(json.dumps, sources)]


def prepare(folder: Path) -> None:
    from tiny_run import save_tokenizer, tokenize

    save_tokenizer(folder / "tokenizer")
    tokenize(folder / "small", folder / "tokenizer", clips=20)
    tokenize(folder / "large", folder / "tokenizer", clips=40)


def in_a_fork(action, log: Path) -> int:
    """Pid of a child that runs `action`, its output in `log`; it ends with 0, or 1 after an error."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with log.open("a") as told, contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            try:
                action()
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
    finally:
        os._exit(code)


def start(argv: list[str], ranks: int, log: Path) -> list[int]:
    """The pids of the ranks of a `toto pretrain`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]

    def run(rank: int) -> None:
        from training.pretrain import main

        if ranks > 1:
            here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
            os.environ |= here | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            os.environ["LOCAL_WORLD_SIZE"] = str(ranks)
        main(argv)

    return [in_a_fork(lambda rank=rank: run(rank), log) for rank in range(ranks)]


def wait(pids: list[int]) -> bool:
    """Whether all of them ended well."""
    codes = [os.waitpid(pid, 0)[1] for pid in pids]
    return not any(codes)


def written(run: Path) -> tuple:
    """Every loss that a run has logged, and the bytes of its last weights."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [(row["step"], row.get("loss"), row.get("val_loss"), row.get("grad_norm")) for row in rows]
    return losses, (run / "checkpoints" / f"step_{STEPS:06d}" / "model.safetensors").read_bytes()


def wait_for_rows(run: Path, rows: int, pids: list[int]) -> None:
    """Wait until a run has logged so many rows, or all its processes have ended."""
    file, ended = run / "metrics.jsonl", os.WEXITED | os.WNOHANG | os.WNOWAIT
    while not (file.is_file() and file.read_text().count("\n") >= rows):
        if all(os.waitid(os.P_PID, pid, ended) for pid in pids):
            return
        time.sleep(0.002)


def trial(draw: random.Random, folder: Path, whole: dict) -> dict:
    """One run, killed once or twice and resumed; what came of it."""
    from training import find_model

    choice = data, ranks, accumulation = draw.choice(DATA), draw.choice((1, 2)), draw.choice((1, 2))
    flags, log = flags_of(data, accumulation, folder), folder / "log.txt"
    if choice not in whole:
        run = folder / f"whole-{data}-{ranks}-{accumulation}"
        began = time.perf_counter()
        if not wait(start([*flags, "--output_dir", str(run)], ranks, log)):
            raise RuntimeError(log.read_text()[-3000:])
        whole[choice] = written(run), time.perf_counter() - began
    expected, seconds = whole[choice]
    run, kills, argv = folder / "run", [], [*flags, "--output_dir", str(folder / "run")]
    for _ in range(draw.choice((1, 2))):
        pids, rows = start(argv, ranks, log), draw.randrange(len(expected[0]))
        wait_for_rows(run, rows, pids)
        time.sleep(draw.random() * seconds / len(expected[0]))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        wait(pids)
        kills.append(rows)
        if not find_model.steps(run):  # nothing was written yet, so nothing is lost: the run starts again
            shutil.rmtree(run, ignore_errors=True)
        else:
            argv = ["--resume", str(run)]
    fine = wait(start(argv, ranks, log))
    same = fine and written(run) == expected
    shutil.rmtree(run, ignore_errors=True)
    outcome = {"data": data, "ranks": ranks, "accumulation": accumulation, "kills": kills}
    return outcome | {"resumed": argv[0] == "--resume", "lost": not fine, "exact": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="kill until so many were made")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}

    import pandas  # noqa: F401
    import pyarrow.dataset
    import pyarrow.parquet  # noqa: F401
    import torch
    import torch.distributed.checkpoint
    from accelerate import Accelerator  # noqa: F401
    from safetensors import safe_open  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    import modeling_toto
    import tokenization
    import training.engine.loop  # noqa: F401
    from tokenization import TotoProcessor, ToyWorld  # noqa: F401

    _ = modeling_toto.TotoForCausalLM, tokenization.TotoVQGANModel
    get_checkpoint_conversion_mapping("toto")  # a table that transformers takes seconds to build, once
    torch.set_num_threads(1)
    draw, outcomes, whole = random.Random(args.seed), [], {}
    with tempfile.TemporaryDirectory(prefix="toto-kills-") as folder:
        folder = Path(folder)
        if not wait([in_a_fork(lambda: prepare(folder), folder / "log.txt")]):
            raise RuntimeError((folder / "log.txt").read_text()[-3000:])
        while (made := sum(len(outcome["kills"]) for outcome in outcomes)) < args.kills:
            outcomes.append(trial(draw, folder, whole))
            print(f"{made}/{args.kills} {outcomes[-1]}", file=sys.stderr, flush=True)
        bad = [outcome for outcome in outcomes if not outcome["exact"]]
        if bad:
            print((folder / "log.txt").read_text()[-5000:], file=sys.stderr)
    by_choice = {
        f"{data}, {ranks} ranks, accumulation {accumulation}": sum(
            len(o["kills"]) for o in outcomes if (o["data"], o["ranks"], o["accumulation"]) == key
        )
        for key in itertools.product(DATA, (1, 2), (1, 2))
        for data, ranks, accumulation in [key]
    }
    result = {"kills": sum(by_choice.values()), "runs": len(outcomes)}
    result |= {"resumed": sum(o["resumed"] for o in outcomes), "lost": sum(o["lost"] for o in outcomes)}
    result |= {"not_exact": len(bad), "kills_by_choice": by_choice, "bad": bad}
    print(json.dumps(result, indent=1))
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
