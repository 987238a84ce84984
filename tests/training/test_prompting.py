"""Tuning for prompts: rows and colours of labels, what the loss counts, pairs of a user, and a run that resumes."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_toto import TotoConfig, TotoForCausalLM
from tokenization.processing_toto import TotoProcessor
from tokenization.sequences import END_ID, VIDEO_START_ID, prompted_rows
from training.find_model import latest
from training.prompting.calibration import colours_shown, grey_error
from training.prompting.command import main
from training.prompting.examples import PairExamples, WorldExamples, value_range
from training.prompting.objective import IGNORED, LabelTokens
from training.prompting.tasks import TASKS, Prompting, check_context, make_coding, read_prompting
from training.rows.prompted_rows import PromptedRows, episode_coding, episode_frames

TOKENIZER = "checkpoints/toto-motion/visual_tokenizer"
GREYS = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
FEW = np.array([(0, 0, 0), (0, 200, 0), (200, 0, 0), (200, 200, 0), (0, 0, 255), (255, 0, 255)], np.uint8)


@pytest.fixture(scope="module")
def processor():
    return TotoProcessor.from_visual_tokenizer(TOKENIZER)


@pytest.fixture(scope="module")
def start(tmp_path_factory, processor):
    """A tiny Toto of the motion tokenizer's codes, with room for 8 frames and a prompt id."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    layout = {"vocab_size": 704, "tokens_per_frame": 64, "num_frames": 8, "max_position_embeddings": 515}
    TotoForCausalLM(TotoConfig(**sizes, **layout, num_key_value_heads=2)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


class Through:
    """Stands for a processor: its tokenizer changes pixels by a function."""

    resolution, grid = 64, (8, 8)

    def __init__(self, change):
        self.change = change

    def encode_frames(self, frames):
        self.frames = frames
        return torch.zeros(len(frames), 8, 8, dtype=torch.long)

    def decode(self, _ids):
        return self.change(self.frames)[:, None]


def test_a_prompted_row():
    codes = torch.arange(2 * 2 * 4 * 4).view(2, 2, 4, 4)
    rows = prompted_rows(codes, 5)
    assert rows.shape == (2, 2 + 32 + 1) and set(rows[:, 0].tolist()) == {VIDEO_START_ID}
    assert set(rows[:, 1].tolist()) == {5} and set(rows[:, -1].tolist()) == {END_ID}
    assert (rows[:, 2:-1] - 64).equal(codes.flatten(1))
    assert prompted_rows(codes, 63, end=False).shape == (2, 34)
    for wrong in (3, 64):
        with pytest.raises(ValueError, match="ids 4 to 63 are reserved"):
            prompted_rows(codes, wrong)


@pytest.mark.parametrize("colours", [GREYS, FEW], ids=["greys", "few colours"])
@pytest.mark.parametrize("name", TASKS)
def test_labels_are_read_back_as_they_were_painted(name, colours):
    task = TASKS[name]
    coding = make_coding(task, colours)
    if name != "segmentation":
        assert {task.low, task.high} <= set(coding.values)
    values = np.random.default_rng(0).choice(coding.values, (2, 4, 4))
    painted = coding.paint(values)
    assert painted.dtype == np.uint8 and painted.shape == (2, 4, 4, 3)
    assert np.allclose(coding.read(painted), values)
    between = np.random.default_rng(1).uniform(task.low, task.high, (1, 8, 8))
    assert (
        np.abs(coding.read(coding.paint(between)) - between).max() <= np.diff(np.sort(coding.values)).max() / 2 + 1e-6
    )
    beyond = np.array([[-1e6, 1e6, np.nan]])
    found = coding.read(coding.paint(beyond))
    assert np.allclose(found, [[coding.values.min(), coding.values.max(), coding.values[0]]])


def test_few_colours_keep_what_most_pixels_are_on_the_background():
    assert make_coding(TASKS["depth"], FEW).values.tolist() == [6, 5, 4, 3, 2, 1]
    assert make_coding(TASKS["flow"], FEW).values.tolist() == [0, -8, -16, 8, 16]
    with pytest.raises(ValueError, match="shows only 4 colours, too few for segmentation"):
        make_coding(TASKS["segmentation"], FEW[:4])


def test_colours_are_greys_where_the_tokenizer_shows_them():
    same, noisy = Through(lambda frames: frames), Through(lambda frames: np.where(frames < 250, frames + 5, frames))
    assert grey_error(same) == 0 and np.array_equal(colours_shown(same), GREYS)
    assert grey_error(noisy) == 5 and len(colours_shown(noisy)) == 256
    coarse = Through(lambda frames: (frames // 128 * 127).astype(np.uint8))  # no greys, but saturated colours
    found = colours_shown(coarse)
    assert len(found) < 256 and found[0].tolist() == [0, 0, 0] and len(np.unique(found, axis=0)) == len(found)
    with pytest.raises(ValueError, match="shows only 0 of"):
        colours_shown(Through(lambda frames: 0 * frames))


def test_the_motion_tokenizer_shows_no_greys_but_the_hues_of_its_world(processor):
    assert grey_error(processor) > 50
    colours = colours_shown(processor)
    assert len(colours) == 6 and colours[1:].mean(1).tolist() == sorted(colours[1:].mean(1))
    task = TASKS["depth"]
    coding = make_coding(task, colours)
    truth = np.concatenate([each.truth for each in WorldExamples(task, "train", 0, 64).episode(0)])
    codes = processor.encode_frames(coding.paint(truth))
    back = coding.read(processor.decode(prompted_rows(codes[None], 4, end=False))[0])
    assert (back == truth).mean() > 0.98


@pytest.mark.parametrize("name", TASKS)
def test_episodes_of_the_world_share_no_clip(name):
    task = TASKS[name]
    world = WorldExamples(task, "train", 3, 64)
    episodes = [world.episode(k) for k in range(4)]
    names = [each.name.split(":")[0] for episode in episodes for each in episode]
    assert len(set(names)) == len(names) == 4 * task.groups
    assert len({each.name.split(":")[-1] for episode in episodes for each in episode}) > 2, "of several moments"
    for episode in episodes:
        for each in episode:
            assert each.images.shape == (task.inputs, 64, 64, 3)
            assert each.truth.shape == (len(task.labels), 64, 64) and each.truth.dtype == np.float32
    again = WorldExamples(task, "train", 3, 64).episode(2)
    assert all(np.array_equal(a.truth, b.truth) for a, b in zip(again, episodes[2], strict=True))


def test_flow_moves_the_pixels_of_the_first_image_to_the_second():
    (first, second), flow = (lambda each: (each.images, each.truth))(
        WorldExamples(TASKS["flow"], "train", 0, 64).episode(0)[0]
    )
    y, x = np.nonzero((flow != 0).any(0))
    assert len(y)
    to_x, to_y = x + flow[0, y, x].astype(int), y + flow[1, y, x].astype(int)
    inside = (to_x >= 0) & (to_x < 64) & (to_y >= 0) & (to_y < 64)
    same = (first[y, x] == second[to_y, to_x]).all(1)[inside]
    assert same.mean() > 0.5  # others walk, or something nearer hides them


def test_the_first_mask_shows_all_classes_of_an_episode_and_none_is_held_out():
    task = TASKS["segmentation"]
    for k in range(6):
        first, *others = WorldExamples(task, "train", 0, 64, held_out=(4,)).episode(k)
        classes = [set(np.unique(each.truth)) - {0} for each in (first, *others)]
        assert not any(5 in each for each in classes)
        hues = WorldExamples(task, "train", 0, 64).world.hues(int(first.name.split(":")[0].split("/")[-1]))
        assert all(each <= {hue + 1 for hue in hues} for each in classes)


def test_classes_have_other_colours_in_other_episodes_and_other_tasks_do_not():
    coding = make_coding(TASKS["segmentation"], FEW)
    orders = {tuple(map(tuple, episode_coding(TASKS["segmentation"], coding, 0, k).colours)) for k in range(12)}
    assert len(orders) > 8 and {order[0] for order in orders} == {(0, 0, 0)}
    assert episode_coding(TASKS["depth"], coding, 0, 3) is coding


def test_a_row_holds_images_and_painted_labels_in_turn(processor):
    task = TASKS["flow"]
    coding, world = make_coding(task, FEW), WorldExamples(task, "train", 0, 64)
    rows = PromptedRows(task, coding, world, processor, seed=0)
    row = rows.row(2)
    assert row.shape == (515,) and row[1] == task.prompt_id
    frames = episode_frames(world.episode(2), coding)
    assert np.array_equal(frames[2:4], coding.paint(world.episode(2)[0].truth))
    assert row.equal(prompted_rows(processor.encode_frames(frames)[None], task.prompt_id)[0])


def test_the_loss_counts_label_tokens_only(start):
    model = TotoForCausalLM.from_pretrained(start)
    prompting = Prompting("", dict(TASKS), {})
    objective = LabelTokens(model, prompting, {}, (2, 1), 2)
    torch.manual_seed(1)
    codes = torch.randint(0, 640, (3, 8, 8, 8))
    rows = [prompted_rows(codes[k : k + 1], task.prompt_id)[0] for k, task in enumerate(TASKS.values())]
    labels = objective.labels_of(torch.stack(rows))
    frames = labels[:, 2:-1].view(3, 8, 64)
    wanted = {"depth": {1, 3, 5, 7}, "flow": {2, 3, 6, 7}, "segmentation": {3, 5, 7}}
    for k, name in enumerate(TASKS):
        for frame in range(8):
            kept = frames[k, frame].equal(rows[k][2:-1].view(8, 64)[frame])
            assert kept if frame in wanted[name] else (frames[k, frame] == IGNORED).all(), (name, frame)
    assert (labels[:, [0, 1, -1]] == IGNORED).all()
    model.eval()
    loss, sums = objective.losses(model, rows, torch.device("cpu"))
    logits = model(torch.stack(rows)).logits[:, :-1].log_softmax(-1)
    nats = -logits.gather(2, torch.stack(rows)[:, 1:, None])[..., 0]
    counted = labels[:, 1:] != IGNORED
    assert torch.allclose(loss, nats[counted].mean(), atol=1e-4)
    assert torch.allclose(sums[:, 0], (nats * counted).sum(1).double(), atol=1e-2)
    assert sums[:, 1].tolist() == [256, 256, 192]
    # a micro-batch is its share of the step
    halves = LabelTokens(model, prompting, {}, (2, 2), 4)
    parts = [halves.losses(model, rows[:1], torch.device("cpu"))[0] for _ in range(2)]
    assert torch.allclose(sum(parts), nats[:1][counted[:1]].mean(), atol=1e-4)
    # a task counts as much as another, whatever the number of its rows and tokens
    validation = {"depth": [rows[0]] * 3, "segmentation": rows[2:]}
    found = LabelTokens(model, prompting, validation, (2, 1), 2).validate(
        SimpleNamespace(device=torch.device("cpu")), model, None, 1
    )
    means = [nats[k][counted[k]].mean().item() for k in (0, 2)]
    assert list(found["val_losses"].values()) == pytest.approx(means, abs=1e-4) and found["val_rows"] == 4
    assert found["val_loss"] == pytest.approx(sum(means) / 2, abs=1e-5)


def test_prompt_json_holds_everything(tmp_path):
    codings = {name: make_coding(task, FEW) for name, task in TASKS.items()}
    Prompting("abc", dict(TASKS), codings, (4,)).write(tmp_path)
    back = read_prompting(tmp_path)
    assert (back.tokenizer, back.tasks, back.held_out_hues) == ("abc", TASKS, (4,))
    assert all(np.array_equal(back.codings[name].colours, codings[name].colours) for name in TASKS)
    content = json.loads((tmp_path / "prompt.json").read_text())
    assert content["tasks"]["flow"]["prompt_id"] == 5 and content["tasks"]["flow"]["low"] == -16
    with pytest.raises(FileNotFoundError, match="was not tuned for prompts"):
        read_prompting(tmp_path / "other")
    (tmp_path / "prompt.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read"):
        read_prompting(tmp_path)


def test_a_model_without_room_for_a_row_is_refused():
    with pytest.raises(ValueError, match="515 ids with its prompt id, but the model has only 514 positions"):
        check_context(SimpleNamespace(tokens_per_frame=64, max_position_embeddings=514), TASKS)


def test_a_tuning_resumes_bit_for_bit(start, tmp_path):
    flags = ["--model", str(start), "--val_rows", "2", "--logging_steps", "1", "--warmup_steps", "1"]
    flags += ["--rows_per_step", "2", "--per_device_batch_size", "2", "--save_steps", "2"]
    main([*flags, "--steps", "4", "--output_dir", str(tmp_path / "whole")])
    main([*flags, "--steps", "4", "--output_dir", str(tmp_path / "parts")])
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step_000004")
    main(["--resume", str(tmp_path / "parts")])
    weights = [(latest(tmp_path / run) / "model.safetensors").read_bytes() for run in ("whole", "parts")]
    assert weights[0] == weights[1]
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert set(rows[-1]["val_losses"]) == set(TASKS) and rows[-1]["val_rows"] == 6
    assert set(read_prompting(latest(tmp_path / "whole")).tasks) == set(TASKS)
    assert (tmp_path / "whole" / "media.json").is_file()


def test_from_scratch_has_other_weights_and_the_same_rows(start, tmp_path):
    flags = ["--model", str(start), "--task", "depth", "--steps", "1", "--val_rows", "0", "--rows_per_step", "1"]
    flags += ["--per_device_batch_size", "1", "--learning_rate", "1e-9", "--warmup_steps", "0"]
    main([*flags, "--output_dir", str(tmp_path / "a")])
    main([*flags, "--from_scratch", "true", "--output_dir", str(tmp_path / "b")])
    before, a, b = (
        TotoForCausalLM.from_pretrained(p).lm_head.weight
        for p in (start, latest(tmp_path / "a"), latest(tmp_path / "b"))
    )
    assert torch.allclose(before, a, atol=1e-6) and not torch.allclose(before, b, atol=1e-3)


@pytest.fixture
def pairs(tmp_path):
    """30 pairs of 40 x 32 pixels: the depth in millimetres is 1000 + 10 times the column; a corner is unknown."""
    (tmp_path / "image").mkdir()
    (tmp_path / "label").mkdir()
    for k in range(30):
        Image.fromarray(np.full((32, 40, 3), k, np.uint8)).save(tmp_path / "image" / f"{k:02}.png")
        label = np.broadcast_to(1000 + 10 * np.arange(40), (32, 40)).astype(np.uint16).copy()
        label[:4, 4:8] = 0
        Image.fromarray(label).save(tmp_path / "label" / f"{k:02}.png")
    return tmp_path


def test_pairs_of_a_user(pairs):
    task = TASKS["depth"]
    examples = PairExamples(task, pairs, 0, 64)
    one = examples.read(3)
    assert one.images.shape == (1, 64, 64, 3) and (one.images == 3).all()
    assert one.truth.shape == (1, 64, 64)
    assert np.isnan(one.truth[0, :8, :8]).all() and not np.isnan(one.truth[0, 8:]).any()
    assert one.truth[0, -1, 0] == 1040 and one.truth[0, -1, -1] == 1350  # the middle 32 of 40 columns
    assert len({each.name for each in examples.episode(0)}) == 4
    low, high = value_range(examples, task)
    assert 1040 <= low < 1060 and 1330 < high <= 1350
    train, test = (PairExamples(replace(task, groups=2), pairs, 0, 64, part).pairs for part in ("train", "test"))
    assert len(train) == 27 and len(test) == 3 and not set(train) & set(test)


def test_a_table_of_pairs_is_read_like_a_folder(pairs, tmp_path):
    names = [f"{k:02}.png" for k in range(30)]
    columns = {kind: [str(pairs / kind / name) for name in names] for kind in ("image", "label")}
    table = datasets.Dataset.from_dict(columns)
    table = table.cast_column("image", datasets.Image()).cast_column("label", datasets.Image())
    table.to_parquet(str(tmp_path / "pairs.parquet"))
    task = TASKS["depth"]
    from_table, from_folder = (PairExamples(task, data, 0, 64) for data in (tmp_path / "pairs.parquet", pairs))
    for a, b in zip(from_table.episode(1), from_folder.episode(1), strict=True):
        assert np.array_equal(a.images, b.images) and np.array_equal(a.truth, b.truth, equal_nan=True)
    with pytest.raises(ValueError, match="has no column second, only image, label"):
        PairExamples(TASKS["flow"], tmp_path / "pairs.parquet", 0, 64)


def test_flow_of_a_user_is_scaled_with_the_image(pairs):
    (pairs / "second").mkdir()
    for file in sorted((pairs / "image").iterdir()):
        Image.open(file).save(pairs / "second" / file.name)
        (pairs / "label" / file.name).unlink()
        np.save(pairs / "label" / f"{file.stem}.npy", np.full((32, 40, 2), (3.0, -1.0)))
    one = PairExamples(TASKS["flow"], pairs, 0, 64).read(0)
    assert one.images.shape == (2, 64, 64, 3)
    assert (one.truth[0] == 6).all() and (one.truth[1] == -2).all()


def test_mistakes_in_a_users_data_are_sentences(pairs, start, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*second"):
        PairExamples(TASKS["flow"], pairs, 0, 64)
    (pairs / "label" / "00.png").unlink()
    with pytest.raises(ValueError, match=r"do not hold the same names \(00\)"):
        PairExamples(TASKS["depth"], pairs, 0, 64)
    (pairs / "image" / "00.png").unlink()
    np.save(pairs / "label" / "01.npy", np.zeros((5, 5)))
    (pairs / "label" / "01.png").unlink()
    with pytest.raises(ValueError, match=r"5 x 5 numbers, but .* 40 x 32 pixels"):
        PairExamples(TASKS["depth"], pairs, 0, 64).read(0)
    for flags, sentence in (
        (["--data", str(pairs)], "holds the labels of one task"),
        (["--low", "1"], "the embedded world has its own"),
        (["--task", "normals"], "must be one of depth, flow, segmentation, all"),
        (["--data", str(pairs), "--task", "depth", "--low", "5", "--high", "1"], "--low must be below --high"),
    ):
        with pytest.raises(ValueError, match=sentence):
            main(["--model", str(start), "--output_dir", str(tmp_path / "run"), *flags])
    with pytest.raises(ValueError, match="No model is named"):
        main([])


def test_a_tuning_on_pairs_keeps_their_range(pairs, start, tmp_path):
    flags = ["--model", str(start), "--task", "depth", "--data", str(pairs), "--low", "900", "--steps", "1"]
    flags += ["--rows_per_step", "1", "--per_device_batch_size", "1", "--val_rows", "1"]
    main([*flags, "--output_dir", str(tmp_path / "run")])
    task = read_prompting(latest(tmp_path / "run")).tasks["depth"]
    assert task.low == 900 and 1330 < task.high <= 1350
