"""A model is asked for what it was not trained on: a sentence for each difference, and none without a record."""

import json
from shutil import copytree
from types import SimpleNamespace

import numpy as np
import pytest

from evaluation import continue_clip
from evaluation.generate import main
from evaluation.unlike_training import Trained, trained_on, unlike_training
from tokenization.processing_toto import TotoProcessor

CLIP = np.zeros((4, 32, 32, 3), np.uint8)


def manifest(folder, **fields):
    """A folder with the manifest of video shards."""
    folder.mkdir()
    content = {"format": 1, "kind": "video", "dataset": "media/clips", "stride": 4, "fps": None, "resolution": 32}
    (folder / "manifest.json").write_text(json.dumps(content | {"tokenizer": {"fingerprint": "f00"}} | fields))
    return str(folder)


@pytest.fixture
def run_of(checkpoint, tmp_path):
    """A function that makes a run folder with this text as its recipe."""

    def make(recipe: str) -> str:
        copytree(checkpoint, tmp_path / "run" / "checkpoints" / "step_000001")
        (tmp_path / "run" / "recipe.yaml").write_text(recipe)
        return str(tmp_path / "run")

    return make


def test_the_record_of_a_run(run_of, tmp_path, checkpoint):
    shards = manifest(tmp_path / "shards")
    timed = manifest(tmp_path / "timed", stride=None, fps=7.5, resolution=64)
    drawn = manifest(tmp_path / "drawn", dataset="toyworld:motion", stride=9, tokenizer={"fingerprint": "d"})
    sources = [{"data": each} for each in (shards, timed, drawn, str(tmp_path / "gone"))]
    sources += [{"data": "media", "kind": "video", "stride": 6}, {"data": "pictures", "kind": "image", "stride": 5}]
    sources = [each | {"weight": 0.125 if k < 4 else 0.25} for k, each in enumerate(sources)]
    run = run_of(json.dumps({"sources": sources}))
    found = trained_on(f"{run}/checkpoints/step_000001")
    assert found == Trained(frozenset({"f00", "d"}), frozenset({32, 64}), frozenset({4, 6}), frozenset({7.5}))
    assert trained_on(checkpoint) is None and trained_on("org/name") is None


def test_a_sentence_for_each_difference(model, processor):
    config = model.config  # 4 frames of 16 tokens, a context of 4
    own = Trained(frozenset({processor.fingerprint}), frozenset({32}), frozenset({4}), frozenset())
    assert unlike_training(config, processor, 4, None) == unlike_training(config, processor, 9, own, 4) == []
    assert unlike_training(config, processor, 4, own, fps=7.5) == []  # the rate of the stride's videos is unknown

    def only(*args, **times) -> str:
        (sentence,) = unlike_training(*args, **times)
        assert sentence[-1] == "." and sentence.count(". ") == 0
        return sentence

    short = SimpleNamespace(num_frames=2, context_frames=4, tokens_per_frame=16, num_codes=64)
    assert "trained on rows of 2 frames, but this row reaches 3" in only(short, processor, 3, None)
    assert "this row reaches 4" in only(short, processor, 30, None)  # the oldest are dropped
    larger = processor.with_sizes(64)
    assert "trained on 16 tokens a frame, but frames of 64 pixels have 64" in only(config, larger, 4, None)
    more = SimpleNamespace(num_frames=4, context_frames=4, tokens_per_frame=16, num_codes=99)
    assert "trained on 99 codes, but the visual tokenizer has 64" in only(more, processor, 4, None)
    assert "frames of 64 pixels, but these have 32" in only(config, processor, 4, Trained(resolutions=frozenset({64})))
    other = only(config, processor, 4, Trained(tokenizers=frozenset({"f00"})))
    assert f"the visual tokenizer f00, but this one is {processor.fingerprint}" in other
    assert "every 4th frame of its videos, but of this one every 8th frame" in only(config, processor, 4, own, stride=8)
    timed = Trained(rates=frozenset({7.5}))
    assert "7.5 frames per second of its videos, but of this" in only(config, processor, 4, timed, stride=4)
    assert "trained on 7.5 frames per second, but this clip has 3" in only(config, processor, 4, timed, fps=3.0)
    assert unlike_training(config, processor, 4, timed, fps=7.5) == []


def test_the_commands_print_it(run_of, tmp_path, capsys):
    run = run_of(f"shards: {manifest(tmp_path / 'shards')}\n")
    main(["--model", run, "--output", str(tmp_path / "out"), "--num_frames", "1"])
    text = capsys.readouterr().out
    assert text.count("warning: ") == 1 and "the visual tokenizer f00" in text
    flags = ["--max_clips", "2", "--num_samples", "1", "--dataset", "toyworld"]
    main(["--score", *flags, "--model", run, "--output", str(tmp_path / "a.json")])
    assert "warning: The model was trained on codes of the visual tokenizer f00" in capsys.readouterr().out


def test_continue_clip_warns(run_of, tmp_path, checkpoint, recwarn):
    processor = TotoProcessor.from_pretrained(checkpoint)
    continue_clip(checkpoint, CLIP, 1)
    assert not [each for each in recwarn if "trained on" in str(each.message)]
    run = run_of(
        f"shards: {manifest(tmp_path / 'shards', tokenizer={'fingerprint': processor.fingerprint}, resolution=64)}\n"
    )
    with pytest.warns(UserWarning, match="trained on frames of 64 pixels, but these have 32"):
        continue_clip(run, CLIP, 1)
