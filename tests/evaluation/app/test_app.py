"""The functions behind the tabs of `toto app`, its command and its limits, without a browser."""

import io
import json
import shutil
import socket
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

gradio = pytest.importorskip("gradio", reason="toto app needs gradio: pip install 'modeling-toto[app]'")

from evaluation.app import command, continuation, drawing, inside, probe, prompt, tokens  # noqa: E402
from evaluation.app.args import AppArgs, models_of  # noqa: E402
from evaluation.app.clips import open_clip  # noqa: E402
from evaluation.app.models import Loaded, load_models  # noqa: E402
from evaluation.pictures import write_movie  # noqa: E402
from tokenization.sequences import CODE_OFFSET, video_rows  # noqa: E402

ROOT = Path(__file__).parents[3]
RANDOM = np.random.default_rng(0)


def png(colour) -> bytes:
    """A noisy picture of a colour."""
    noise = RANDOM.integers(0, 60, (40, 48, 3)) + np.array(colour)
    made = io.BytesIO()
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(made, "png")
    return made.getvalue()


@pytest.fixture(scope="module")
def loaded(model, processor):
    return Loaded("tiny", "tiny", model, processor)


@pytest.fixture(scope="module")
def clip(loaded):
    return open_clip(loaded, None, "toyworld:simple", 3, 4, 4)


def test_gradio_is_of_the_major_version_that_the_page_is_written_for():
    """pip silently takes gradio 3 next to pillow 13."""
    assert gradio.__version__.split(".")[0] == "6"
    command.check_gradio()


def test_another_gradio_is_refused(monkeypatch):
    monkeypatch.setattr(gradio, "__version__", "3.50.2")
    with pytest.raises(ValueError, match=r"needs gradio 6, and 3\.50\.2 is installed"):
        command.check_gradio()


# --- what is opened


def test_a_clip_of_the_world(clip, loaded):
    assert clip.frames.shape == clip.reconstructed.shape == (4, 32, 32, 3) and clip.codes.shape == (4, 4, 4)
    assert np.array_equal(clip.codes, loaded.processor.encode_frames(clip.frames).numpy())
    assert clip.ids.shape == (1, 1 + 4 * 16) and clip.ids[0, 0] == 1


def test_an_upload_is_a_picture_or_as_much_of_a_video_as_there_is(loaded, tmp_path):
    (tmp_path / "a.png").write_bytes(png((90, 20, 20)))
    picture = open_clip(loaded, str(tmp_path / "a.png"), "toyworld:simple", 0, 4, 4)
    assert picture.is_image and picture.frames.shape == (1, 32, 32, 3) and picture.ids[0, 0] == 3
    frames = np.repeat(np.arange(10, dtype=np.uint8)[:, None, None, None] * 25, 32, 1).repeat(32, 2).repeat(3, 3)
    write_movie(tmp_path / "b.mp4", frames, 8)
    for stride, expected in ((1, [0, 25, 50, 75]), (4, [0, 100, 200])):
        video = open_clip(loaded, str(tmp_path / "b.mp4"), "toyworld:simple", 0, 4, stride)
        assert not video.is_image and np.allclose(video.frames.mean((1, 2, 3)), expected, atol=6)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"text", "neither a picture nor a video by its ending"),
        ("a.mp4", b"", "is empty"),
        ("a.mp4", b"no video" * 99, "cannot be opened as a video"),
        ("a.png", b"no picture" * 99, "the image cannot be read"),
        ("a.mp4", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "is a list of other files"),
        ("a.mkv", b"ffconcat version 1.0\nfile /etc/passwd\n", "is a list of other files"),
    ],
)
def test_uploads_that_are_refused(loaded, tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as error:
        open_clip(loaded, str(tmp_path / name), "toyworld:simple", 0, 4, 4)
    assert str(tmp_path) not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((None, "/etc", 0, 4, 4), "There is no world '/etc'"),
        ((None, "toyworld:simple", -1, 4, 4), "There is no clip -1"),
        ((None, "toyworld:simple", 0, 5, 4), "tiny reads 1 to 4 frames, not 5"),
        ((None, "toyworld:simple", 0, 4, 0), "choose 1 to 64"),
    ],
)
def test_numbers_out_of_range_are_refused(loaded, given, sentence):
    """A visitor may send what the page does not offer."""
    with pytest.raises(ValueError, match=sentence):
        open_clip(loaded, *given)


# --- tokens


def test_what_is_said_of_a_token_agrees(loaded, clip):
    nats = tokens.surprises(loaded, clip)
    frame, row, column = 2, 1, 3
    with torch.no_grad():
        logits = loaded.model(input_ids=clip.ids).logits[0]
    place = (frame * 4 + row) * 4 + column
    shares = logits[place].log_softmax(-1)
    code = clip.codes[frame, row, column]
    assert np.isclose(nats[frame, row, column], -shares[CODE_OFFSET + code].item(), atol=1e-4)
    best = tokens.guesses(loaded, clip, frame, row, column)
    assert best[0][0] == logits[place, CODE_OFFSET:].argmax() and len(best) == tokens.LIKELIEST
    said = tokens.sentence(loaded, clip, nats, frame, row, column)
    assert f"**Code {code}** of 64, at frame 3, row 2, column 4" in said and "PSNR" in said
    chosen = tokens.most_surprising(clip, nats)
    assert nats[tuple(number - 1 for number in chosen)] == nats.max()


def test_pictures_of_a_token(loaded, clip):
    nats = tokens.surprises(loaded, clip)
    made = tokens.pictures(loaded, clip, nats, 1, 2, 3)
    assert [each.shape for each in made] == [(drawing.SIDE, drawing.SIDE, 3)] * len(tokens.TITLES)
    cell = drawing.SIDE // 4
    inside_of_mark = made[0][2 * cell + 4 : 3 * cell - 4, 3 * cell + 4 : 4 * cell - 4]
    expected = drawing.enlarged(clip.frames[1])[2 * cell + 4 : 3 * cell - 4, 3 * cell + 4 : 4 * cell - 4]
    assert np.array_equal(inside_of_mark, expected) and not np.array_equal(made[0], drawing.enlarged(clip.frames[1]))
    parts = tokens.patches(loaded, clip, 1, 2, 3)
    assert np.array_equal(parts[:, :128], drawing.enlarged(clip.frames[1][16:24, 24:32], 128))
    assert np.array_equal(parts[:, 140:268], drawing.enlarged(clip.reconstructed[1][16:24, 24:32], 128))


# --- continuation


@pytest.mark.parametrize("new", [2, 5])
@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, None), (1.0, None), (0.8, 7)])
def test_each_draw_is_that_of_generate_frames_with_its_seed(loaded, clip, new, temperature, top_k):
    """Within the context of 4 frames and beyond it."""
    ids = video_rows(clip.codes[None, :2], end=False)
    frames = list(continuation.drawn_frames(loaded.model, ids, new, temperature, top_k, [4, 9]))
    assert len(frames) == new
    for row, seed in enumerate((4, 9)):
        generator = torch.Generator().manual_seed(seed)
        expected = loaded.model.generate_frames(ids, new, temperature, top_k, generator=generator)
        assert torch.equal(torch.cat(frames, 1)[row], expected[0, ids.shape[1] :])


def test_a_frame_is_there_before_the_next_is_begun(loaded, clip, monkeypatch):
    drawn = []
    monkeypatch.setattr(continuation, "draw", lambda *given, **more: drawn.append(1) or torch.tensor([3]))
    steps = continuation.continued(loaded, clip, 2, 3, 1.0, None, [0])
    shapes = [(next(steps).shape[1], len(drawn)) for _ in range(3)]
    assert shapes == [(3, 16), (4, 32), (5, 48)]


@pytest.mark.parametrize(
    ("prompt", "temperature", "top_k", "sentence"),
    [(5, 1.0, None, "The clip has 4 frames"), (2, 3.0, None, "The temperature is 3"), (2, 1.0, -1, "likeliest tokens")],
)
def test_draws_that_are_refused(loaded, clip, prompt, temperature, top_k, sentence):
    with pytest.raises(ValueError, match=sentence):
        next(continuation.continued(loaded, clip, prompt, 2, temperature, top_k, [0]))


def test_the_film_and_the_movie(loaded, clip, tmp_path):
    frames = drawing.film(clip.frames, 10, 2)
    tile = drawing.film(clip.frames[:1]).shape[0]
    assert frames.shape == (2 * tile, 8 * tile, 3)
    assert tuple(frames[0, 0]) == drawing.PROMPT and tuple(frames[0, 2 * tile]) == drawing.DRAWN
    assert (frames[tile:, 2 * tile :] == 255).all()  # no place there
    generated = np.repeat(clip.frames[None], 3, 0)
    assert (tmp_path / continuation.movie(clip, generated, 2, tmp_path)).stat().st_size > 500


# --- inside


def test_layers_attention_and_surprise(loaded, clip):
    inner = inside.insides(loaded, clip)
    assert inner.layers.shape == (4, 4, 4, 4, 3) and len(inner.explained) == 4
    assert all(0 < share <= 1.001 for share in inner.explained)
    attention = inside.attended(loaded, clip, 2, None, (2, 1, 3))
    assert attention.shape == (4, 4, 4) and 0 < attention.sum() <= 1.001
    place = (2 * 4 + 1) * 4 + 3
    assert attention.reshape(-1)[place] > 0 and not attention.reshape(-1)[place + 1 :].any()  # causal
    single = [inside.attended(loaded, clip, 2, inside.head_of(f"head {k}"), (2, 1, 3)) for k in (1, 2)]
    np.testing.assert_allclose(np.mean(single, 0), attention, rtol=1e-5, atol=1e-7)
    assert inside.head_of(inside.ALL_HEADS) is None
    made = inside.films(loaded, clip, inner, 1, None, (2, 1, 3))
    assert made[0].shape == (drawing.SIDE, drawing.SIDE, 3) and len({each.shape for each in made[1:]}) == 1


# --- prompt


def test_a_label_is_drawn_by_a_model_that_was_tuned_and_no_other(loaded, clip, tmp_path):
    model = loaded_promptable(tmp_path)
    scene = open_clip(model, None, "toyworld:motion", 1, 4, 4)
    task, row, numbers = prompt.prompted(model, scene, "flow", 2, 7)
    assert row.shape == (8, 64, 64, 3) and numbers.shape == (2, 64, 64)
    assert np.array_equal(row[4:6], scene.frames[2:4]) and set(np.unique(numbers)) <= set(np.linspace(-16, 16, 5))
    assert "**flow x** in px: " in prompt.said(task, numbers)
    with pytest.raises(ValueError, match="flow needs this frame and the next one"):
        prompt.prompted(model, scene, "flow", 3, 7)
    with pytest.raises(ValueError, match="was tuned on depth, flow, segmentation"):
        prompt.prompted(model, scene, "colour", 0, 7)
    with pytest.raises(ValueError, match="is not promptable"):
        prompt.prompted(loaded_shipped(), scene, "depth", 0, 7)


def loaded_shipped() -> Loaded:
    (found,) = load_models([str(ROOT / "checkpoints" / "toto-motion")]).values()
    return found


def loaded_promptable(folder: Path) -> Loaded:
    """toto-motion with a prompt.json next to it: its labels mean nothing without a tune."""
    from training.prompting.args import PromptDataArgs
    from training.prompting.command import make_prompting

    place = shutil.copytree(ROOT / "checkpoints" / "toto-motion", folder / "promptable")
    (found,) = load_models([str(place)]).values()
    make_prompting(PromptDataArgs(), found.processor).write(place)
    return found


# --- probe


def packed(tmp_path, names: dict[str, bytes]):
    file = tmp_path / "photos.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return file


def two_classes(count=10):
    return {f"my/{name}/{k}.png": png(colour) for k in range(count) for name, colour in COLOURS.items()}


COLOURS = {"red": (190, 10, 10), "blue": (10, 10, 190)}


def last(steps):
    *said, result = steps
    assert said and all(isinstance(each, str) for each in said)
    return result


def test_a_zip_is_probed_next_to_its_floors(loaded, tmp_path):
    extra = {
        "my/red/notes.txt": b"no",
        "__MACOSX/my/red/._0.png": b"no",
        "top.png": png((0, 0, 0)),
        "my/blue/bad.png": b"no",
    }
    photos = probe.photos_of_zip(packed(tmp_path, two_classes() | extra))
    assert {each.label for each in photos} == set(COLOURS) and len(photos) == 21
    result = last(probe.probed(loaded, photos))
    assert result.parts == (12, 4, 4) and result.counts == {"blue": 10, "red": 10}
    assert len(result.skipped) == 1 and "bad.png" in result.skipped[0]
    assert result.floors["raw pixels"] == (4, 4) and result.floors["always the commonest class"] == (2, 4)
    text = probe.table("tiny", result)
    assert "raw pixels | 4 of 4 (100%)" in text and "1 photos were left out" in text
    shown = probe.gallery(result)
    right = (result.probe.predictions == result.true).sum()
    assert [said.endswith(": right") for _, said in shown] == [False] * (4 - right) + [True] * right
    assert all(said.split(":")[0].split(",")[0] in COLOURS for _, said in shown)


def test_floors_by_hand(loaded, monkeypatch):
    """Of seven photos and eight, five and four are trained on, and one and two tested."""
    read, labels = [], ["a"] * 7 + ["b"] * 8
    photos = [probe.Photo(label, str(k), lambda side, k=k: np.full((side, side, 3), k, np.uint8)) for k, label in
              enumerate(labels)]  # fmt: skip

    def fit(train, train_labels, validation, validation_labels, test, test_labels, head):
        assert [len(each) for each in (train_labels, validation_labels, test_labels)] == [9, 3, 3]
        return SimpleNamespace(predictions=np.array(["a", "b", "b"]) if len(read) == 1 else np.array(["a"] * 3))

    monkeypatch.setattr(probe, "extract_features", lambda reader, _: read.append(reader) or SimpleNamespace(take=id))
    monkeypatch.setattr(probe, "fit_probe", fit)
    result = last(probe.probed(loaded, photos))
    assert sorted(result.true) == ["a", "b", "b"] and result.parts == (9, 3, 3)
    assert result.floors["always the commonest class"] == (1, 3), "of the photos that are trained on"
    assert result.floors["raw pixels"] == result.floors["the same model, random weights"] == (1, 3)
    own, twin, pixels = read
    assert own.fingerprint() != twin.fingerprint() and isinstance(pixels, probe.PixelBackbone)


def test_wrong_photos_come_first():
    found = SimpleNamespace(predictions=np.array(list("abab")))
    result = probe.Probed(found, {}, {}, (1, 1, 4), np.zeros((4, 8, 8, 3), np.uint8), np.array(list("aaab")), [], 0.0)
    assert [said for _, said in probe.gallery(result)] == ["a, not b", "a: right", "a: right", "b: right"]


def test_a_fifth_of_every_class_is_test_and_none_is_in_two_parts():
    labels = np.array(["a"] * 5 + ["b"] * 40)
    part = probe.split(labels)
    for label, share in (("a", 1), ("b", 8)):
        assert [(part[labels == label] == number).sum() for number in (1, 2)] == [share, share]


def test_files_of_each_class_and_a_folder_of_the_server(loaded, tmp_path):
    for name, content in two_classes(5).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    files = [str(file) for file in sorted((tmp_path / "my" / "red").iterdir())]
    uploads = probe.photos_of_uploads([("", files), (" seas ", files), ("nothing", None)])
    assert {each.label for each in uploads} == {"class 1", "seas"} and len(uploads) == 10
    photos = probe.photos_of_folder(str(tmp_path / "my"))
    assert sorted({each.label for each in photos}) == ["blue", "red"] and len(photos) == 10
    assert photos[0].read(32).shape == (32, 32, 3)


def test_digits_need_no_upload():
    photos = probe.digits()
    assert len(photos) == 100 and {each.label for each in photos} == set("0123456789")
    assert photos[0].read(32).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ({"a.png": b"x"}, "no photos in folders"),
        ({"red/a.png": b"x"}, "photos of 1 classes"),
        ({f"{k}/a.png": b"x" for k in range(30)}, "photos of 30 classes"),
        ({f"{k}/a.png": b"x" for k in range(2)}, "class '0' has 1 photos; give at least 5"),
        ({f"{name}/{k}.png": b"x" for name in "ab" for k in range(5)}, r"Too few photos can be read \(0 of 10\)"),
    ],
)
def test_zips_that_are_refused(loaded, tmp_path, names, sentence):
    with pytest.raises(ValueError, match=sentence):
        list(probe.probed(loaded, probe.photos_of_zip(packed(tmp_path, names))))


def test_a_zip_bomb_and_no_zip_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="photos may have 0 MB"):
        probe.photos_of_zip(packed(tmp_path, {"a/b.png": b"0" * 2000}))
    (tmp_path / "no.zip").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"no\.zip cannot be read as a zip"):
        probe.photos_of_zip(tmp_path / "no.zip")


def test_names_in_a_zip_are_only_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos = probe.photos_of_zip(packed(tmp_path, {"../../evil/a.png": png((9, 9, 9)), "/etc/b.png": png((9, 9, 9))}))
    assert [each.read(32).shape for each in photos] == [(32, 32, 3)] * 1  # ".." is a hidden part
    assert [file.name for file in tmp_path.iterdir()] == ["photos.zip"]


# --- the command


def test_bad_input_is_one_sentence(checkpoint, tmp_path, model, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"Nothing can listen at port {port} of 127.0.0.1"):
            command.main(["--model", checkpoint, "--port", str(port)])
    with pytest.raises(ValueError, match="--host is 'nowhere-at-all'"):
        command.main(["--model", checkpoint, "--host", "nowhere-at-all"])
    with pytest.raises(ValueError, match=r"There is no model folder '\./nowhere'"):
        load_models(["./nowhere"])
    with pytest.raises(ValueError, match="The model 'nowhere/toto' is neither here"):
        load_models(["nowhere/toto"])
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a model but no processor"):
        load_models([str(tmp_path)])
    with pytest.raises(ValueError, match="--port is 70000"):
        AppArgs(port=70000)
    with pytest.raises(ValueError, match="--photos is '/nowhere', which is not a folder"):
        AppArgs(photos="/nowhere")
    monkeypatch.setattr("evaluation.app.args.CHECKPOINTS", tmp_path)
    with pytest.raises(ValueError, match="--model MODEL is missing"):
        models_of(AppArgs())


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def status(address: str) -> int:
    try:
        return urllib.request.urlopen(address, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


def upload(address: str, name: str, content: bytes) -> tuple[int, list]:
    """(status, paths on the server) of a file that is uploaded as the page does."""
    border = "border"
    head = f'--{border}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    body = head + content + f"\r\n--{border}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={border}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{address}/gradio_api/upload", body, kind)) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, []


def test_only_its_own_folder_is_served_and_uploads_are_limited(checkpoint, tmp_path, monkeypatch):
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")  # restored afterwards
    secret, folder = tmp_path / "secret.txt", tmp_path / "served"
    secret.write_text("secret")
    folder.mkdir()
    args = AppArgs(model=[checkpoint], port=free_port(), max_upload=1)
    page = command.served(args, [checkpoint], str(folder))
    address = f"http://127.0.0.1:{args.port}"
    try:
        assert status(address) == 200
        files = ["/etc/passwd", str(secret), f"{folder}/../secret.txt", "README.md", f"{checkpoint}/config.json"]
        for file in files:
            assert status(f"{address}/gradio_api/file={file}") == 403, file
        code, paths = upload(address, "../../a.png", png((1, 1, 1)))
        assert code == 200 and paths[0].startswith(str(folder))
        assert status(f"{address}/gradio_api/file={paths[0]}") == 200
        assert upload(address, "big.png", b"0" * 2**21)[0] == 413
        config = json.loads(urllib.request.urlopen(f"{address}/config").read())
    finally:
        page.close(verbose=False)
    assert not config["analytics_enabled"] and not config["footer_links"]
    controls = ("dropdown", "file", "slider", "number", "radio", "textbox", "image", "video", "gallery")
    for each in config["components"]:
        if each["type"] in controls:
            assert each["props"].get("label"), each
        if each["type"] == "image":
            assert each["props"].get("alt_text"), each
    assert all(each["api_visibility"] == "private" for each in config["dependencies"])
