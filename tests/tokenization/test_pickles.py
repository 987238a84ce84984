"""Old torch files are read exactly, and nothing that a hostile one asks for is ever done."""

import collections
import copyreg
import io
import os
import pickle
import random
import resource
import struct
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from tokenization.originals import pickles
from tokenization.originals.pickles import read_state_dict, read_torch_file

pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(value, path, zipped):
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def with_pickle(path, data):
    """The zip file of torch.save with another data.pkl."""
    source = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, data if info.filename.endswith("/data.pkl") else old.read(info))
    return path


def pickle_of(path):
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))


class Attack:
    """Pickled as a call of `function(*args)`."""

    def __init__(self, function, *args, state=None):
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.call


@FORMATS
def test_a_modules_tensors_are_its_state_dicts(tmp_path, zipped):
    dall_e = pytest.importorskip("dall_e", reason="OpenAI's package is not installed")
    torch.manual_seed(0)
    for module in (dall_e.Encoder(n_hid=64, vocab_size=512), dall_e.Decoder(n_hid=64, n_init=16, vocab_size=512)):
        tensors = read_state_dict(save(module, tmp_path / "whole.pkl", zipped))
        expected = module.state_dict()
        assert set(tensors) == set(expected)
        for name, value in expected.items():
            read = tensors[name].read()
            assert tensors[name].shape == tuple(value.shape) and torch.equal(read, value) and read.is_contiguous()


def test_nothing_of_dall_e_or_torch_nn_is_built(tmp_path, monkeypatch):
    dall_e = pytest.importorskip("dall_e", reason="OpenAI's package is not installed")
    path = save(dall_e.Encoder(n_hid=64, vocab_size=512), tmp_path / "encoder.pkl", False)

    def refuse(*args, **kwargs):
        raise AssertionError("a module was built")

    monkeypatch.setattr(nn.Module, "__setstate__", refuse)
    monkeypatch.setattr(nn.Module, "__init__", refuse)
    for name in [name for name in sys.modules if name.split(".")[0] == "dall_e"]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it now fails
    value = read_torch_file(path)
    assert type(value) is pickles.Module and value.path == "dall_e.encoder.Encoder"


@FORMATS
def test_views_dtypes_and_odd_shapes(tmp_path, zipped):
    base = torch.arange(24.0).reshape(4, 6)
    state = collections.OrderedDict(
        whole=base,
        transposed=base.t(),
        part=base[1:3, 2:5],
        scalar=torch.tensor(3.5),
        half=torch.randn(5).half(),
        double=torch.randn(2, 2).double(),
        empty=torch.empty(0, 3),
        count=torch.tensor(7),
        channels_last=torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    )
    # The views repeat the storage of `whole`; what is read may not exceed the file, so another tensor makes up for it.
    save({"state_dict": state, "rest": torch.zeros(100)}, tmp_path / "state.ckpt", zipped)
    for name, tensor in read_state_dict(tmp_path / "state.ckpt").items():
        read = tensor.read()
        assert read.dtype == state[name].dtype and torch.equal(read, state[name]) and read.is_contiguous()


@FORMATS
def test_a_lightning_checkpoint_gives_its_state_dict(tmp_path, zipped, monkeypatch):
    layer = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, betas=(0.5, 0.9))
    layer(torch.randn(8, 3)).sum().backward()
    optimizer.step()
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    with monkeypatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
            patch.setitem(sys.modules, name, module)
        checkpoint = {
            "epoch": 3,
            "global_step": 10**6,
            "pytorch-lightning_version": "1.0.8",
            "callbacks": {module.ModelCheckpoint: {"monitor": "val", "best_model_score": torch.tensor(0.5)}},
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [],
            "state_dict": layer.state_dict(),
        }
        path = save(checkpoint, tmp_path / "last.ckpt", zipped)
    tensors = read_state_dict(path)
    assert set(tensors) == set(layer.state_dict()) and "1.num_batches_tracked" in tensors
    assert all(torch.equal(tensors[name].read(), value) for name, value in layer.state_dict().items())
    assert read_torch_file(path)["global_step"] == 10**6


def test_storages_of_a_gpu_are_read_without_one(tmp_path):
    """taming's checkpoint was written on a GPU: its pickle says torch.cuda.FloatStorage."""
    path = save({"a": torch.arange(3.0)}, tmp_path / "cpu.pt", True)
    data = pickle_of(path).replace(b"ctorch\nFloatStorage\n", b"ctorch.cuda\nFloatStorage\n")
    assert b"torch.cuda" in data
    assert read_state_dict(with_pickle(path, data))["a"].read().tolist() == [0, 1, 2]


def hostile(marker):
    """Values whose unpickling by Python would leave a file at `marker`, or call something."""
    touch = f"touch {marker}"
    return {
        "os.system": Attack(os.system, touch),
        "builtins.eval": Attack(eval, f"open({str(marker)!r}, 'w')"),
        "builtins.exec": Attack(exec, f"open({str(marker)!r}, 'w')"),
        "builtins.getattr": Attack(getattr, Attack(__import__, "os"), "system"),
        "torch.serialization.load": Attack(torch.load, str(marker) + ".inner"),
        "pickle.loads": Attack(pickle.loads, pickle.dumps(Attack(os.system, touch))),
        "in a state_dict": {"state_dict": {"a": torch.zeros(2), "b": Attack(os.system, touch)}},
        "in other keys": {"state_dict": {"a": torch.zeros(2)}, "callbacks": {"x": Attack(os.system, touch)}},
        "torch.nn.Linear": nn.Linear(2, 2),
        "a module with a hook": {"a": Attack(nn.ReLU().register_forward_hook, os.system)},
        "functools.partial": Attack(__import__("functools").partial, os.system, touch),
        "numpy": Attack(__import__("numpy").load, str(marker)),
    }


@FORMATS
@pytest.mark.parametrize("attack", list(hostile("x")))
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, attack, zipped):
    marker = tmp_path / "marker"
    torch.save(Attack(os.system, f"touch {marker}"), f"{marker}.inner")
    path = save(hostile(marker)[attack], tmp_path / "bad.pkl", zipped)
    with pytest.raises(ValueError, match=r"bad\.pkl is refused.* it names [\w.]+, which is not on the list") as refusal:
        read_state_dict(path)
    assert not marker.exists() and "\n" not in str(refusal.value)


def test_the_attacks_would_work(tmp_path):
    marker = tmp_path / "marker"
    torch.load(save(Attack(os.system, f"touch {marker}"), tmp_path / "bad.pkl", True), weights_only=False)
    assert marker.exists()


OD = b"ccollections\nOrderedDict\n"
RELU = b"ctorch.nn.modules.activation\nReLU\n"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x03tQ"
REBUILT = TENSOR + b"(" + STORAGE


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "truncated|exhausted"),
        (b"0.", "POP"),
        (b".", "malformed"),
        (b"h\x05.", "malformed .*not found at index 5"),
        (b"}q\x00K\x01h\x00s.", "holds no state_dict"),  # a dictionary that holds itself
        (b"(K\x01h\x07t.", "malformed .*not found at index 7"),
        (b"tR.", "malformed"),
        (b"K\x01)R.", "calls something that is not a name"),
        (b"X\x09\x00\x00\x00os.system)R.", "calls something that is not a name"),  # text is not a name
        (OD + b"]R.", "calls something that is not a name"),  # nor is a list a tuple of arguments
        (b"]K\x01K\x02s.", "malformed"),  # sets an item of an empty list
        (b"K\x01K\x02a.", "malformed"),  # appends to a number
        (b"}(K\x01K\x02K\x03u.", "malformed"),
        (b"})K\x01s.", "neither text nor a number"),
        (OD + b")R}X\x01\x00\x00\x00ac" + b"os\nsystem\nsb.", "os.system"),
        (OD + b"(K\x01tR.", "calls collections.OrderedDict"),
        (OD + b"}X\x0a\x00\x00\x00__init__xxK\x01sb.", "sets attributes"),  # attributes of a class
        (TENSOR + b"}b.", "sets attributes"),
        (RELU + b")R.", "lacks its tensors"),  # a module without attributes
        (RELU + b"K\x01\x85\x81.", "calls torch.nn"),
        (RELU + b"K\x01\x85R.", "calls torch.nn"),
        (RELU + b")\x81N}X\x04\x00\x00\x00pathK\x01s\x86b.", "sets attributes"),  # the state of __slots__
        (STORAGE + b"}X\x05\x00\x00\x00numelK\x01sb.", "sets attributes"),
        (REBUILT + b"K\x00K\x03\x85K\x01\x85tR}X\x06\x00\x00\x00offsetK\x09sb.", "sets attributes"),
        (TENSOR + b")\x81.", "malformed"),
        (b"cdall_e.utils\nConv2d.w\n.", "Conv2d.w"),
        (b"\x82\x01.", "EXT1"),
        (b"(cos\nsystem\nX\x02\x00\x00\x00lsios\nsystem\n.", "os.system"),
        (b"(X\x02\x00\x00\x00lsios\nsystem\n.", "INST"),
        (b"\x8c\x02os\x8c\x06system\x93.", "SHORT_BINUNICODE"),
        (b"X\x01\x00\x00\x000Q.", "outside object"),
        (STORAGE.replace(b"FloatStorage", b"OtherStorage") + b".", "torch.OtherStorage"),
        (STORAGE.replace(b"K\x03tQ", b"J\xfe\xff\xff\xfftQ") + b".", "in two ways"),
        (STORAGE + b"0" + STORAGE.replace(b"Float", b"Double") + b".", "POP"),
        (b"(" + STORAGE + STORAGE.replace(b"Float", b"Double") + b"t.", "in two ways"),
        (STORAGE.replace(b"K\x03tQ", b"J\xff\xff\xff\x7ftQ") + b".", "is not the 8,589,934,588 bytes"),
        (STORAGE.replace(b"K\x03tQ", b"\x8a\x09" + b"\xff" * 8 + b"\x7ftQ") + b".", "is not the .* bytes"),
        (REBUILT + b"K\x00K\x04\x85K\x01\x85tR.", "larger than its storage"),
        (REBUILT + b"K\x01K\x03\x85K\x01\x85tR.", "larger than its storage"),
        (REBUILT + b"K\x00K\x02\x85K\x09\x85tR.", "larger than its storage"),
        (REBUILT + b"K\x00J\xff\xff\xff\x7f\x85K\x00\x85tR.", "larger than its storage"),  # stride 0
        (REBUILT + b"K\x00J\xff\xff\xff\xff\x85K\x01\x85tR.", "impossible shape"),
        (REBUILT + b"K\x00K\x01\x85K\x01K\x01\x86tR.", "impossible shape"),
        (REBUILT + b"K\x00]K\x01\x85tR.", "impossible shape"),
        (TENSOR + b"(K\x01K\x00K\x01\x85K\x01\x85tR.", "no storage"),
        (b"\x95\x02\x00\x00\x00\x00\x00\x00\x00}.", "FRAME"),
        (b"\xff.", "opcode 255"),
    ],
)
def test_every_misuse_of_the_format_is_a_sentence(tmp_path, body, words):
    path = with_pickle(save({"a": torch.zeros(3)}, tmp_path / "odd.pt", True), b"\x80\x02" + body)
    with pytest.raises(ValueError, match=words) as refusal:
        read_state_dict(path)
    assert "odd.pt" in str(refusal.value) and "\n" not in str(refusal.value)


LONG = {
    "BINUNICODE": b"X\xff\xff\xff\xff",
    "BINUNICODE8": b"\x8d" + b"\xff" * 7 + b"\x7f",
    "BYTEARRAY8": b"\x96" + b"\xff" * 7 + b"\0",
    "LONG_BINPUT": b"}r\xff\xff\xff\xff",  # pickle.Unpickler allocates a memo of that length, 64 GiB
}


@pytest.mark.parametrize("opcode", list(LONG))
@FORMATS
def test_a_claimed_length_is_not_allocated(tmp_path, opcode, zipped):
    """Opcodes that say that they are, or that the memo is, gigabytes to exabytes long."""
    body, path = b"\x80\x02" + LONG[opcode] + b"short.", tmp_path / "long.pt"
    whole = save({}, path, zipped).read_bytes()
    if zipped:
        with_pickle(path, body)
    else:
        path.write_bytes(whole[: whole.index(b"type_sizes")] + body)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, limit[1]))
    try:
        with pytest.raises(ValueError, match="damaged"):
            read_torch_file(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


@pytest.mark.parametrize("start", [b"}", OD + b")R"])
@pytest.mark.parametrize("mark, end", [(b"", b"K\x01s."), (b"(", b"K\x01u.")])
def test_a_key_that_can_take_hours_to_hash_is_not_hashed(tmp_path, start, mark, end):
    """A tuple of 2 ** 20 references to one; of 2 ** 60 it would never end, as tuples do not keep their hash."""
    bomb = b")" + b"q\x00h\x00\x86" * 20
    path = with_pickle(save({}, tmp_path / "bomb.pt", True), b"\x80\x02" + start + mark + bomb + end)
    with pytest.raises(ValueError, match="neither text nor a number"):
        read_torch_file(path)


@FORMATS
def test_the_length_of_a_pickle_is_limited(tmp_path, monkeypatch, zipped):
    path = save({"a" * 1000: torch.zeros(2)}, tmp_path / "long.pt", zipped)
    read_state_dict(path)
    monkeypatch.setattr(pickles, "MAX_PICKLE_BYTES", 1000)
    with pytest.raises(ValueError, match="is longer than 1,000 bytes"):
        read_state_dict(path)


def test_an_extension_code_registered_elsewhere_is_not_used(tmp_path):
    copyreg.add_extension("os", "system", 250)
    try:
        path = with_pickle(save({}, tmp_path / "odd.pt", True), b"\x80\x02\x82\xfa.")
        with pytest.raises(ValueError, match="EXT1"):
            read_torch_file(path)
    finally:
        copyreg.remove_extension("os", "system", 250)


def test_a_module_that_holds_itself_ends(tmp_path):
    keys = (b"X\x0b\x00\x00\x00_parameters}", b"X\x08\x00\x00\x00_buffers}")
    children = b"X\x08\x00\x00\x00_modules}X\x01\x00\x00\x00ah\x00s"
    body = RELU + b")\x81q\x00}(" + b"".join(keys) + children + b"ub."
    path = with_pickle(save({}, tmp_path / "loop.pt", True), b"\x80\x02" + body)
    with pytest.raises(ValueError, match="occurs twice"):
        read_state_dict(path)


def test_tensors_that_repeat_a_storage_cannot_outgrow_the_file(tmp_path):
    big = torch.zeros(10_000)
    path = save({f"t{i}": big.view(-1) for i in range(50)}, tmp_path / "bomb.pt", True)
    with pytest.raises(ValueError, match="more numbers than it has bytes"):
        read_state_dict(path)


def test_a_compressed_archive_is_refused(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2) + b"\0" * 10**7)
    with pytest.raises(ValueError, match="compressed"):
        read_torch_file(path)


@FORMATS
def test_a_truncated_file_is_a_sentence(tmp_path, zipped):
    whole = save({"a": torch.randn(50, 50), "b": torch.randn(9)}, tmp_path / "whole.pt", zipped).read_bytes()
    cut = tmp_path / "cut.pt"
    for length in (0, 1, 40, 100, 300, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.pt") as refusal:
            read_state_dict(cut)
        assert "\n" not in str(refusal.value)


@FORMATS
def test_damage_is_a_sentence_or_harmless(tmp_path, zipped):
    """Any byte may be wrong: the file is refused with a ValueError, or read; nothing else happens."""
    whole = save({"a": torch.randn(4, 4), "b": torch.zeros(3)}, tmp_path / "whole.pt", zipped).read_bytes()
    generator, refused, path = random.Random(0), 0, tmp_path / "damaged.pt"
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(generator.choice([1, 1, 3])):
            data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data)
        try:
            for tensor in read_state_dict(path).values():
                tensor.read()
        except ValueError:
            refused += 1
    assert refused > 100


def test_a_changed_number_is_noticed_in_a_zip(tmp_path):
    path = save({"a": torch.full((1000,), 1.5)}, tmp_path / "a.pt", True)
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<f", 1.5)) + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        read_state_dict(path)["a"].read()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<!DOCTYPE html><html>gone</html>", "web page"),
        (b"\n<html lang=en>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git-lfs pointer"),
        (b"no torch", "not a file of torch.save"),
        (pickle.dumps({"a": 1}, protocol=2), "not one of torch.save|damaged"),
        (pickle.dumps({"a": 1}, protocol=4), "not a file of torch.save"),
    ],
)
def test_other_files_are_distinguished(tmp_path, data, words):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ValueError, match=words):
        read_torch_file(tmp_path / "file")


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, {"state_dict": {}}, {"state_dict": 3}, {1: torch.zeros(2)}])
def test_a_file_without_named_tensors_is_reported(tmp_path, value):
    with pytest.raises(ValueError, match="holds no state_dict"):
        read_state_dict(save(value, tmp_path / "other.pt", True))


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_state_dict(tmp_path / "none.pkl")
