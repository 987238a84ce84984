"""The line on a busy machine: who hears it, once, and from which work."""

import io
import os

import pytest
import torch

from tokenization.terminal import busy
from tokenization.terminal.progress import bars_of_models, tqdm


@pytest.fixture
def machine(monkeypatch):
    """A machine of four cores, its load, the threads that others run, and how many this process would use."""

    def made(load: float, threads: int = 4, others: float = 2.0) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: 4)
        monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setattr(busy, "others_running", lambda: others)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(busy, "_asked", [])
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.delenv("RANK", raising=False)

    return made


def said(capsys) -> str:
    busy.note_if_busy()
    return capsys.readouterr().err


@pytest.mark.parametrize(("load", "threads", "free"), [(2.1, 4, 2), (3.9, 4, 1), (0.9, 4, 3), (9.0, 2, 1), (2.6, 2, 1)])
def test_a_busy_machine_is_named_with_the_threads_that_are_free(machine, capsys, load, threads, free):
    machine(load, threads)
    line = said(capsys)
    assert f"load {load:.1f} on 4 cores" in line and f"{threads} threads" in line and line.count("\n") == 1
    assert f"OMP_NUM_THREADS={free} " in line
    assert said(capsys) == ""  # once in a process


def test_it_is_said_only_where_it_helps(machine, monkeypatch, capsys):
    for load, threads in ((0.3, 4), (2.4, 2), (4.0, 1)):
        machine(load, threads)
        assert said(capsys) == "", (load, threads)
    machine(3.9, others=0.0)  # of a job that has just ended
    assert said(capsys) == ""
    for name, value in (("OMP_NUM_THREADS", "4"), ("RANK", "1")):
        machine(3.9)
        monkeypatch.setenv(name, value)
        assert said(capsys) == "", name
        monkeypatch.delenv(name)
    machine(3.9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert said(capsys) == ""


def test_a_load_of_our_own_is_not_reported(machine, monkeypatch, capsys):
    machine(0.1)
    assert said(capsys) == ""
    monkeypatch.setattr(os, "getloadavg", lambda: (3.9, 0.0, 0.0))  # this process works
    assert said(capsys) == ""


def test_work_with_a_bar_looks_at_the_machine(machine, capsys):
    machine(3.9)
    list(tqdm(range(2), file=io.StringIO(), disable=True))
    assert capsys.readouterr().err == ""
    list(tqdm(range(2), file=io.StringIO()))
    assert "the machine is busy" in capsys.readouterr().err
    machine(3.9)
    with bars_of_models():
        assert "the machine is busy" in capsys.readouterr().err


def test_threads_that_run_are_counted(tmp_path, monkeypatch):
    (tmp_path / "loadavg").write_text("0.10 1.25 1.84 4/311 8532\n")
    monkeypatch.setattr(busy, "RUNNING", tmp_path / "loadavg")
    assert busy.others_running(seconds=0) == 3
    monkeypatch.setattr(busy, "RUNNING", tmp_path / "none")
    assert busy.others_running() == float("inf")
