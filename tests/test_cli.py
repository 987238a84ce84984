"""`toto` lists its verbs in data-flow order, quickly, and each of them explains itself."""

import importlib.util
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import toto_cli

ROOT = Path(__file__).parents[1]
DATA_FLOW = ["demo", "tokenize", "train-tokenizer", "convert-tokenizer", "evaluate-tokenizer", "pretrain", "sweep"]
DATA_FLOW += ["scaling", "plan", "finetune", "probe", "track", "permanence", "robot", "anticipate", "generate"]
DATA_FLOW += ["ngrams", "visualize", "report", "export", "app"]
# Processor seconds, not wall-clock: the machine of the tests may be busy.
HELP_SECONDS = 3.0


def toto(*argv: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "toto_cli.py"), *argv]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)


def cpu_seconds(*argv: str) -> tuple[subprocess.CompletedProcess, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = toto(*argv)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_verbs_stand_in_data_flow_order():
    assert set(toto_cli.VERBS) <= set(DATA_FLOW)
    assert list(toto_cli.VERBS) == sorted(toto_cli.VERBS, key=DATA_FLOW.index)
    assert {"demo", "tokenize", "train-tokenizer", "pretrain", "probe", "generate", "report"} <= set(toto_cli.VERBS)


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_toto_help_lists_every_verb_quickly(argv):
    done, seconds = cpu_seconds(*argv)
    assert done.returncode == 0, done.stderr
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert listed == list(toto_cli.VERBS)
    assert seconds < HELP_SECONDS


@pytest.mark.parametrize("verb", toto_cli.VERBS)
def test_every_verb_has_its_module_and_explains_itself(verb):
    module, _ = toto_cli.VERBS[verb]
    assert importlib.util.find_spec(module) is not None, f"toto {verb} is listed, and {module} does not exist"
    done, seconds = cpu_seconds(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: toto {verb}" in done.stdout
    assert seconds < 2 * HELP_SECONDS  # 3 s on an idle core; caches and clock rates of a loaded one double it


def test_an_unknown_verb_is_reported():
    done = toto("pretrian")
    assert done.returncode == 2
    assert "there is no verb 'pretrian'" in done.stderr and "pretrain" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_users_mistake_is_one_sentence(capsys, monkeypatch):
    def command(argv):
        raise ValueError(f"no {argv[0]}.")

    monkeypatch.delenv("TOTO_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as end:
        toto_cli.run(command, ["luck"])
    assert end.value.code == 1
    assert capsys.readouterr().err == "error: no luck.\n"
    monkeypatch.setenv("TOTO_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no luck"):
        toto_cli.run(command, ["luck"])


def test_a_bug_is_not_hidden():
    def command(argv):
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        toto_cli.run(command, [])


def test_ctrl_c_ends_quietly(capsys):
    def command(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        toto_cli.run(command, [])
    assert end.value.code == 130 and capsys.readouterr().err == ""


def test_a_command_refuses_with_a_sentence():
    done = toto("train-tokenizer", "--kind", "jpeg")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "error: --kind is 'jpeg'; it must be one of vqgan, dvae."
