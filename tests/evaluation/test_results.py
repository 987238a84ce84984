"""Results are read as the class that wrote them, and written as they were read: those of earlier versions too."""

import json
from pathlib import Path

import pytest

from evaluation.report.reading import read_results
from evaluation.results import Baseline, Best, ProbeResult, Row
from training.results import FinetuneResult

ROOT = Path(__file__).parents[2]
FILES = [*sorted(ROOT.glob("docs/studies/probing/*.json")), *sorted(ROOT.glob("checkpoints/*/probe*.json"))]
FILES = [file for file in FILES if file.name != "costs.json"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_committed_result_is_written_as_it_was_read(file):
    content = json.loads(file.read_text())
    result = (FinetuneResult if "checkpoint" in content else ProbeResult).from_json(content)
    assert result.other == {}
    assert json.dumps(result.to_json()) == json.dumps(content)  # keys in the same order
    assert type(result).from_json(result.to_json()) == result


def test_there_are_committed_results():
    assert sum("finetune" in file.stem for file in FILES) == 6 and len(FILES) > 30


def minimal() -> dict:
    row = {"layer": 0, "head": "linear", "lr": 0.1, "val_accuracy": 0.5, "accuracy": 0.5}
    return {"layers": [row], "best": row, "baselines": {"pixels": {"accuracy": 0.3}}, "n_test": 100}


def test_what_an_earlier_version_did_not_write_is_none_and_stays_away():
    result = ProbeResult.from_json(minimal())
    assert (result.depth, result.data, result.label, result.task.majority) == (None, None, "accuracy", None)
    assert isinstance(result.task.layers[0], Row) and isinstance(result.task.best, Best)
    assert isinstance(result.task.baselines["pixels"], Baseline) and result.task.best.setting == {"lr": 0.1}
    assert result.to_json() == minimal()
    with_none = minimal() | {"media": None}
    assert "media" in result.lacks and "media" not in ProbeResult.from_json(with_none).lacks
    assert ProbeResult.from_json(with_none).to_json() == with_none


def test_keys_of_a_later_version_are_kept():
    content = minimal()
    content |= {"mood": "good", "data": {"dataset": "d", "weather": None}, "label": "x"}
    content["tasks"] = {"x": {key: content[key] for key in ("layers", "best", "baselines")} | {"colour": [1]}}
    content["best"]["shade"] = {"a": 1}
    result = ProbeResult.from_json(content | {"colour": [1]})
    assert result.other == {"mood": "good"} and result.data.other == {"weather": None}
    assert result.task.other == {"colour": [1]} and result.task.best.other == {"shade": {"a": 1}}
    assert result.to_json() == content | {"colour": [1]}


def test_what_every_version_writes_must_be_there(tmp_path):
    del (content := minimal())["best"]["accuracy"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"a\.json is not a complete result: A Row has no 'accuracy'"):
        read_results([str(tmp_path)])
    with pytest.raises(ValueError, match="The label 'x' is not one of the tasks y"):
        ProbeResult.from_json(minimal() | {"label": "x", "tasks": {"y": minimal()}})
