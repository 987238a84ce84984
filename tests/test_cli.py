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
DATA_FLOW += [
    "scaling",
    "plan",
    "finetune",
    "prompt",
    "probe",
    "track",
    "permanence",
    "robot",
    "anticipate",
    "generate",
]
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


@pytest.mark.parametrize(
    "module", ["evaluation.probe", "evaluation.ngrams", "evaluation.report", "training.sweep", "training.pretrain"]
)
def test_verbs_are_modules_too(module):
    """So that `accelerate launch -m training.pretrain` works; a verb of several files is a folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", module, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: toto {module.split('.')[1]}" in done.stdout


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


def hide(folder: Path, name: str, kind: str) -> str:
    """Put something into `folder` that Python imports as `name`; returns how the sentence shows it."""
    if kind == "file":
        (folder / f"{name}.py").touch()
        return f"The file ./{name}.py"
    (folder / name).mkdir()
    (folder / name / "__init__.py").touch()
    return f"The folder ./{name}"


@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.parametrize("name", toto_cli.PACKAGES)
@pytest.mark.parametrize("program", ["python -m toto_cli", "toto"])
def test_a_folder_that_hides_a_package_is_named(tmp_path, program, name, kind):
    """`python -m` puts the working directory first; the console script does not, but PYTHONPATH may."""
    shown = hide(tmp_path, name, kind)
    script = tmp_path / "bin" / "toto"
    script.parent.mkdir()
    script.write_text("from toto_cli import main\nmain()\n")
    command = [sys.executable, str(script)] if program == "toto" else [sys.executable, "-m", "toto_cli"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command += ["plan", "--recipe", "base"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    rest = f"hides the package {name} of modeling-toto; run toto from another folder or rename it."
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {shown} {rest}\n")


def test_a_verb_run_as_a_module_names_the_folder_too(tmp_path):
    """`python -m training.plan` imports a hidden package only later, but refuses at once."""
    shown = hide(tmp_path, "modeling_toto", "folder")
    command = [sys.executable, "-m", "training.plan", "--recipe", "base"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"error: {shown} hides the package modeling_toto")


def test_an_editable_installation_is_hidden_by_an_empty_folder(tmp_path):
    """setuptools' finder comes after Python's own, which takes any folder for a namespace package."""
    (tmp_path / "training").mkdir()
    finder = f"""
import importlib.util, sys
class Editable:
    def find_spec(name, path=None, target=None):
        file = {str(ROOT)!r} + ("/toto_cli.py" if name == "toto_cli" else f"/{{name}}/__init__.py")
        ours = name in {("toto_cli", *toto_cli.PACKAGES)}
        return importlib.util.spec_from_file_location(name, file) if ours else None
sys.meta_path.append(Editable)
import toto_cli
print(toto_cli.hidden_package())
"""
    command = [sys.executable, "-S", "-c", finder]  # -S: without an installation that the tests may run in
    done = subprocess.run(command, capture_output=True, text=True, env={}, cwd=tmp_path, check=False)
    assert done.stdout.startswith("The folder ./training hides the package training"), done.stderr


def test_a_folder_that_hides_nothing_is_no_obstacle(tmp_path, monkeypatch):
    """A folder that is not on Python's path, or stands on it after ours."""
    hide(tmp_path, "training", "folder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    assert toto_cli.hidden_package() is None
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert toto_cli.hidden_package() is None


def test_ctrl_c_ends_with_a_line(capsys):
    def command(argv):
        raise KeyboardInterrupt(*argv)

    for argv, told in (([], "stopped"), (["go on with: toto pretrain --resume RUN"], "go on with: toto pretrain")):
        with pytest.raises(SystemExit) as end:
            toto_cli.run(command, argv)
        assert end.value.code == 130 and capsys.readouterr().err.strip().startswith(told)
    command.__module__ = "evaluation.probe.command"
    with pytest.raises(SystemExit):
        toto_cli.run(command, [])
    assert capsys.readouterr().err.strip() == "stopped; go on with: toto probe"


def test_a_command_refuses_with_a_sentence():
    done = toto("train-tokenizer", "--kind", "jpeg")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "error: --kind is 'jpeg'; it must be one of vqgan, dvae."


@pytest.mark.parametrize("flags", [["--output", "s3://bucket/page.html"], ["--output=s3://bucket/page.html"]])
def test_a_url_that_is_not_written_is_refused_at_once(flags, capsys):
    def main(_argv):
        pytest.fail("the command ran")

    with pytest.raises(SystemExit):
        toto_cli.run(main, ["--results", "x.json", *flags])
    assert "--output s3://bucket/page.html is a URL, but this command writes local files" in capsys.readouterr().err
