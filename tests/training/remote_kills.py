"""Tokenizing to, training from and checkpointing to an S3 server, killed by SIGKILL at exact writes and resumed.

  python tests/training/remote_kills.py --kills 6 --seed 0

The server is moto's, in a process of its own. Shards are killed while they are encoded and uploaded, a run at random
writes to the server; each resume is on the same machine or on another one, which has an empty cache. Everything is
compared with work that nobody killed. Prints a JSON object; exits with 1 where something differs or was lost.
"""

import argparse
import itertools
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

STEPS, SAVE_STEPS, KEEP, CLIPS = 12, 2, 2, 24


def serve(port: int) -> None:
    from moto.server import ThreadedMotoServer

    ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False).start()
    while True:
        time.sleep(1)


def wait_for(address: str) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT")).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the server does not answer")


def killed_at(write: int, action):
    """`action`, whose process is killed when it is about to write to the server for this time; 0 lets it end."""

    def run() -> None:
        from tokenization.storage.remote import Remote

        count, done = itertools.count(1), Remote.write

        def counted(self, name, content):
            if next(count) == write:
                os.kill(os.getpid(), signal.SIGKILL)
            done(self, name, content)

        Remote.write = counted
        action()

    return run


def killed_in_encoding(action):
    """`action`, whose process is killed when it starts its second part."""

    def run() -> None:
        from tokenization.shards import encode

        count, begin = itertools.count(1), encode.PartWriter

        def counted(*args):
            if next(count) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return begin(*args)

        encode.PartWriter = counted
        action()

    return run


def tokenizing(url: str, tokenizer: Path):
    from tokenization.tokenize_dataset import main

    flags = ["--dataset", "toyworld", "--max_clips", str(CLIPS), "--num_frames", "4", "--rows_per_shard", "8"]
    flags += ["--items_per_part", "6", "--precision", "fp32", "--tokenizer", str(tokenizer), "--output", url]
    return lambda: main(flags)


def training(*flags: str):
    from training.pretrain import main

    return lambda: main(list(flags))


def contents(url: str, folder: Path, run) -> dict[str, bytes]:
    """Name -> bytes of what is under a URL; read in a fork, since others would miss the thread that fsspec starts."""
    from tokenization.storage.remote import Remote

    copy = Path(tempfile.mkdtemp(dir=folder))

    def read() -> None:
        remote = Remote(url)
        for name in remote.files():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            remote.fetch(name, copy / name)

    if run(read, "reader"):
        raise RuntimeError(f"{url} cannot be read")
    return {path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*") if path.is_file()}


def report(files: dict[str, bytes]) -> dict:
    """What is compared of a run: losses, last weights and moments, which checkpoints there are, names of its files."""
    import safetensors.numpy

    rows = [json.loads(line) for line in files["metrics.jsonl"].decode().splitlines()]
    tensors = {}  # not the files: after a resume, moments are in another order, and with two processes in another file
    for name, content in files.items():
        if name.startswith(f"checkpoints/step_{STEPS:06d}/") and name.endswith(".safetensors"):
            folder = name.rpartition("/")[0]
            tensors |= {f"{folder}:{key}": value.tobytes() for key, value in safetensors.numpy.load(content).items()}
    return {
        "losses": [(row["step"], row.get("loss"), row.get("val_loss"), row.get("grad_norm")) for row in rows],
        "tensors": tensors,
        "checkpoints": sorted({name.split("/")[1] for name in files if name.startswith("checkpoints/")}),
        "names": sorted(name for name in files if not name.startswith("checkpoints/") and name != "changes.txt"),
    }


def compare(folder: Path, kills: int, ranks: int, draw: random.Random, run) -> dict:
    """What came of it all. run: calls an action in forks with this cache; returns the exit status of the first."""
    from tiny_run import FLAGS, save_tokenizer

    from training.find_model import whole_steps

    def there(url: str) -> dict[str, bytes]:
        return contents(url, folder, run)

    tokenizer = folder / "tokenizer"
    fine = [run(lambda: save_tokenizer(tokenizer), "a") == 0]
    fine.append(run(tokenizing("s3://bucket/whole", tokenizer), "a", ranks) == 0)
    action, seen = tokenizing("s3://bucket/killed", tokenizer), {}
    fine.append(run(killed_in_encoding(action), "a") == signal.SIGKILL)
    seen["after the kill in encoding"] = sorted(there("s3://bucket/killed"))
    fine.append(run(killed_at(draw.randint(2, 15), action), "a") == signal.SIGKILL)  # 1 sees whether it can be written
    seen["after the kill in uploading"] = "manifest.json" in there("s3://bucket/killed")
    fine.append(run(action, "a") == 0)
    shards = there("s3://bucket/whole"), there("s3://bucket/killed")

    flags = [*FLAGS, "--max_steps", str(STEPS), "--save_steps", str(SAVE_STEPS), "--logging_steps", "1"]
    flags += ["--keep_checkpoints", str(KEEP), "--val_rows", "2", "--learning_rate", "1e-2"]
    whole, url = "s3://bucket/runs/whole", "s3://bucket/runs/killed"
    fine.append(run(training(*flags, "--shards", "s3://bucket/whole", "--output_dir", whole), "b", ranks) == 0)
    flags += ["--shards", "s3://bucket/killed", "--output_dir", url]
    argv, machine, done, resumed_from = flags, "c", [], []
    while True:
        write = draw.randint(2, 100) if len(done) < kills else 0
        status = run(killed_at(write, training(*argv)), machine, ranks)
        if status != signal.SIGKILL:
            fine.append(status == 0)
            break
        done.append(write)
        files = there(url)
        argv = ["--resume", url] if "recipe.yaml" in files else flags
        resumed_from.append(max(whole_steps(files), default=0))
        machine = draw.choice((machine, f"other-{len(done)}"))
    reports = report(there(whole)), report(there(url))
    same = {key: reports[0][key] == reports[1][key] for key in reports[0]}
    return {
        "kills": done,
        "resumed_from": resumed_from,
        "ended_as_expected": fine,
        "seen": seen,
        "same_shards": shards[0].keys() == shards[1].keys()
        and all(shards[1][name] == content for name, content in shards[0].items() if name != "README.md"),
        "same": same,
        "checkpoints": reports[1]["checkpoints"],
        "tensors": len(reports[1]["tensors"]),
        "unlike": [key for key, value in reports[0]["tensors"].items() if reports[1]["tensors"].get(key) != value][:8],
        "steps_logged": len([loss for _, loss, *_ in reports[1]["losses"] if loss is not None]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=6, help="of the run")
    parser.add_argument("--ranks", type=int, default=1, help="of the run, and of the tokenizing that ends")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "AWS_ENDPOINT_URL": address}
    os.environ |= {"AWS_ACCESS_KEY_ID": "toto", "AWS_SECRET_ACCESS_KEY": "toto", "AWS_DEFAULT_REGION": "us-east-1"}

    import pandas  # noqa: F401
    import pyarrow.dataset  # noqa: F401
    import s3fs  # noqa: F401
    import torch
    import torch.distributed.checkpoint
    from accelerate import Accelerator  # noqa: F401
    from kill_resume import in_a_fork
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    import modeling_toto
    import training.engine.loop  # noqa: F401
    from tokenization import TotoProcessor, ToyWorld  # noqa: F401

    _ = modeling_toto.TotoForCausalLM
    get_checkpoint_conversion_mapping("toto")  # a table that transformers takes seconds to build, once
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="toto-remote-") as folder:
        folder = Path(folder)
        log = folder / "log.txt"
        server = in_a_fork(lambda: serve(port), folder / "server.txt")

        def run(action, machine: str, ranks: int = 1) -> int:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                port = listener.getsockname()[1]

            def there(rank: int) -> None:
                os.environ["TOTO_CACHE"] = str(folder / machine)
                if ranks > 1:
                    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
                    os.environ |= here | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
                    os.environ["LOCAL_WORLD_SIZE"] = str(ranks)
                os.chdir(folder)
                action()

            first, *others = (in_a_fork(lambda rank=rank: there(rank), log) for rank in range(ranks))
            status = os.waitpid(first, 0)[1]
            for pid in others:  # as a launcher does
                if status:
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            return status

        try:
            wait_for(address)
            found = compare(folder, args.kills, args.ranks, random.Random(args.seed), run)
            good = all(found["ended_as_expected"]) and found["same_shards"] and all(found["same"].values())
            if not good:
                print(log.read_text()[-6000:], file=sys.stderr)
            print(json.dumps(found, indent=1))
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
    raise SystemExit(not good)


if __name__ == "__main__":
    main()
