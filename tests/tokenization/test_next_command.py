"""The line `next: toto ...`, the lines of long work off a terminal, and Ctrl-C."""

import importlib.util
import io
import os
import re
import shlex
import signal
import threading
from pathlib import Path

import pytest
from media import make_image, tiny_tokenizer

import toto_cli
from tokenization.shards import parts
from tokenization.shards.encode import Encoder
from tokenization.shards.files import held_out_of_few, is_held_out
from tokenization.shards.format import read_manifest
from tokenization.terminal import next_command
from tokenization.terminal.progress import tqdm
from tokenization.terminal.stopping import CTRL_C, Stopping
from tokenization.tokenize_dataset import main
from training.flags import parse
from training.pretrain import TYPES


def words_of(said: str) -> list[str]:
    (line,) = [line for line in said.splitlines() if line.startswith("next: ")]
    return shlex.split(line.removeprefix("next: "))


@pytest.fixture
def images(tmp_path):
    (tmp_path / "my photos").mkdir()
    for number in range(9):
        make_image(tmp_path / "my photos" / f"{number}.png", (number, 0, 0))
    return tmp_path / "my photos"


@pytest.fixture
def tokenizer(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_the_next_command_after_tokenize_fits_the_shards(images, tokenizer, tmp_path, capsys):
    main(["--dataset", str(images), "--tokenizer", str(tokenizer), "--output", str(tmp_path / "my shards")])
    toto, verb, *flags = words_of(capsys.readouterr().out)
    assert (toto, verb) == ("toto", "pretrain") and str(tmp_path / "my shards") in flags
    from training.pretrain import row_layout
    from training.rows.shard_rows import check_fit

    model, data, *_ = parse(TYPES, flags, "toto pretrain", "")
    layout = row_layout(model, None, False)
    check_fit(read_manifest(tmp_path / "my shards"), layout)
    assert data.tokens_per_step == 4 * layout.num_frames * layout.tokens_per_frame
    assert sum(shard["held_out"] for shard in read_manifest(tmp_path / "my shards")["shards"]) > 0


def test_the_next_command_of_the_shipped_tokenizer_is_short(capsys):
    manifest = {"grid": [8, 8], "num_codes": 512, "kind": "video", "num_frames": 16}
    next_command.after_tokenize("out/shards", manifest, "train")
    assert words_of(capsys.readouterr().out) == ["toto", "pretrain", "--recipe", "tiny_cpu", "--shards", "out/shards"]
    next_command.after_tokenize("out/shards", manifest, "validation")
    assert capsys.readouterr().out == ""


def test_next_commands_name_what_was_written(tmp_path, capsys, monkeypatch):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.mp4").touch()
    (tmp_path / "a.txt").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    pretrained, generated = next_command.after_pretrain, next_command.after_generate
    expected = {
        "generate --model run --video b/x.mp4 --output run/continued": (pretrained, "run", str(tmp_path)),
        "generate --model run --video toyworld:motion:0 --output run/continued": (pretrained, "run", "toyworld:motion"),
        "probe --model run --output run/probe.json": (pretrained, "run", None),
        "report --runs run --generations out --output out/report.html": (generated, "run", "out"),
        "report --generations out/a.png --output out/report.html": (generated, "hub/id", "out/a.mp4"),
        "report --results out/p.json --runs run --output out/report.html": (
            *(next_command.after_result, "out/p.json", "run"),
        ),
    }
    for words, (call, *made) in expected.items():
        call(*made)
        assert words_of(capsys.readouterr().out) == ["toto", *words.split()]
    with next_command.silent():
        next_command.say_next("probe")
    monkeypatch.setenv("RANK", "1")
    next_command.say_next("probe")
    assert capsys.readouterr().out == ""


def test_of_few_items_one_is_held_out():
    inside = [name for name in map(str, range(100)) if not is_held_out(name)][:10]
    chosen = held_out_of_few(inside)
    assert chosen in inside and held_out_of_few(reversed(inside)) == chosen
    outside = next(name for name in map(str, range(100)) if is_held_out(name))
    assert held_out_of_few([*inside, outside]) is None and held_out_of_few(inside[:1] * 5) is None


def test_off_a_terminal_progress_is_in_lines(monkeypatch):
    stream = io.StringIO()
    assert list(tqdm(range(3), desc="quick", file=stream)) == [0, 1, 2] and stream.getvalue() == ""
    monkeypatch.setattr("tokenization.terminal.progress.FIRST_LINE_SECONDS", 0)
    monkeypatch.setattr("tokenization.terminal.progress.LINE_SECONDS", 0)
    with tqdm(total=3, unit=" items", file=stream) as bar:
        bar.set_description("slow")
        for _ in range(3):
            bar.update()
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue() and lines[-1].startswith("slow: 3 of 3 items [")
    with tqdm(total=3, file=stream, logs=True) as bar:  # whose work prints its own lines
        bar.update(3)
    assert stream.getvalue().splitlines() == lines


def test_the_first_ctrl_c_asks_and_the_second_ends(capsys):
    before = signal.getsignal(signal.SIGINT)
    with Stopping("finishing this", signal.SIGINT) as stopping:
        assert not stopping.asked
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.asked and stopping.by == CTRL_C
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(10)  # where the signal comes a moment later
    assert "finishing this; Ctrl-C again ends at once" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_finishes_a_part_and_the_same_command_goes_on(images, tokenizer, tmp_path, monkeypatch, capsys):
    flags = ["--dataset", str(images), "--tokenizer", str(tokenizer), "--items_per_part", "3"]
    flags += ["--output", str(tmp_path / "shards")]
    start = Encoder.start

    def interrupted(self, frames):  # in the main thread, inside the first part
        if self.began is None:
            signal.raise_signal(signal.SIGINT)
        return start(self, frames)

    monkeypatch.setattr(Encoder, "start", interrupted)
    with pytest.raises(SystemExit) as end:
        toto_cli.run(main, flags)
    said = capsys.readouterr().err
    assert end.value.code == 130 and "stopping at the end of this part" in said
    assert f"stopped; go on with: toto tokenize {shlex.join(flags)}" in said
    kept = {file.stem for file in (tmp_path / "shards.partial" / "parts").glob("*.json")}
    assert kept == {parts.part_name(0, 0)} and not (tmp_path / "shards").exists()
    monkeypatch.setattr(Encoder, "start", start)
    main(flags)
    assert "1 parts are finished" in capsys.readouterr().out
    assert read_manifest(tmp_path / "shards")["num_sequences"] == 9


def test_every_verb_ends_with_the_next_command():
    """Those that are left out end the path: a page that is served, a policy that acts, a Llama for other programs."""
    ends = {"export", "app", "robot policy"}
    modules = {verb: module for verb, (module, _) in toto_cli.VERBS.items()}
    for verb in ("sweep", "prompt", "permanence", "robot", "visualize"):
        package = importlib.import_module(f"{modules.pop(verb)}.command")
        (table,) = (each for each in vars(package).values() if isinstance(each, dict) and "__name__" not in each)
        modules |= {f"{verb} {action}": module for action, (module, _) in table.items()}
    silent = set()
    for verb, module in modules.items():
        file = Path(importlib.util.find_spec(module).origin)
        file = file.with_name("command.py") if file.name == "__init__.py" else file
        if not re.search(r"^ +(say_next|after_\w+|look_inside|go_on)\(", file.read_text(), re.MULTILINE):
            silent.add(verb)
    assert silent == ends


def test_what_is_looked_at_next_is_a_clip(tmp_path, capsys):
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.mp4").touch()
    for dataset, clip in {
        "toyworld:cups:0": "toyworld:cups:0",
        "toyworld:motion": "toyworld:motion:0",
        "toyworld:photos": "toyworld:motion:0",
        str(tmp_path / "media"): str(tmp_path / "media" / "a.mp4"),
    }.items():
        next_command.look_inside("m", dataset, "out/score.json")
        words = ["visualize", "surprise", "--model", "m", "--input", clip, "--output", "out/surprise.png"]
        assert words_of(capsys.readouterr().out) == ["toto", *words]


def test_the_next_command_does_not_name_what_is_there_already(tmp_path):
    assert next_command.beside(tmp_path / "a.json", "b.png") == tmp_path / "b.png"
    for name in ("b.png", "b-2.png", "shards"):
        (tmp_path / name).touch()
    assert next_command.beside(tmp_path / "a.json", "b.png") == tmp_path / "b-3.png"
    assert next_command.beside(tmp_path / "a.json", "shards") == tmp_path / "shards-2"
