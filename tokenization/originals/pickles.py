"""Reads the tensors of original checkpoints, files of torch.save, without running anything that they name.

A pickle is a program: the standard unpickler imports the names in it and calls them. The subclass here maps a short
list of names to inert stand-ins and refuses every other name and every opcode that torch.save does not write. It
extends the pure-Python `pickle._Unpickler` because the C class cannot be restricted that far: it has no table of
opcodes to shorten, it allocates a memo as long as the largest index in the file, and it hashes any dictionary key
(a nested tuple of a few bytes takes hours). `BUILD` is replaced because the standard one sets attributes of anything.

Both containers of torch.save are read: the zip archive (torch >= 1.6) and the stream of pickles before it. Tensors
stay in the file until `StoredTensor.read`.
"""

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

# The classes in a whole-module pickle of OpenAI's `dall_e` package: encoder.pkl and decoder.pkl.
MODULES = {
    *(f"dall_e.{name}" for name in ("encoder.Encoder", "encoder.EncoderBlock", "utils.Conv2d")),
    *(f"dall_e.{name}" for name in ("decoder.Decoder", "decoder.DecoderBlock")),
    *(f"torch.nn.modules.{name}" for name in ("container.Sequential", "activation.ReLU", "linear.Identity")),
    *(f"torch.nn.modules.{name}" for name in ("pooling.MaxPool2d", "upsampling.Upsample")),
}
DICTIONARIES = {"collections.OrderedDict", "pytorch_lightning.utilities.parsing.AttributeDict"}
UNUSED = {"__builtin__.set", "torch.device"}  # values that no weight depends on; read as None
KEYS = {"pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"}  # only a key in Lightning's `callbacks`
TENSOR, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_DTYPES = {"Float": torch.float32, "Half": torch.float16, "Double": torch.float64}
_DTYPES |= {"Long": torch.int64, "Int": torch.int32}
STORAGES = {f"torch.{gpu}{name}Storage": dtype for gpu in ("", "cuda.") for name, dtype in _DTYPES.items()}
NAMES = MODULES | DICTIONARIES | UNUSED | KEYS | {TENSOR, PARAMETER} | set(STORAGES)
# fmt: off
OPCODES = (
    "PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT",
    "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD",
    "BINPERSID",
)
# fmt: on
MAX_PICKLE_BYTES = 64 * 2**20  # those of the published files are under 1 MB; tensors are not part of them
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
ZIP_ERRORS = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, struct.error)


class Name(str):
    """Stand-in for a class or function named in a file: the name alone."""


@dataclass(eq=False)
class Module:
    """Stand-in for a saved torch.nn.Module: its attributes alone."""

    path: str
    state: dict = field(default_factory=dict)


class Dictionary(dict):
    """Stand-in for every dictionary. Keys are checked first, as hashing a nested tuple can take exponential time."""

    def __setitem__(self, key, value):
        if not isinstance(key, (str, int)):
            raise ValueError("a dictionary in it has a key that is neither text nor a number")
        super().__setitem__(key, value)


@dataclass(eq=False)
class Storage:
    """A run of numbers in the file. `load` returns its bytes; it is set once the layout of the file is known."""

    dtype: torch.dtype
    numel: int
    load: Callable[[], bytes] | None = None

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


def _sizes(value) -> bool:
    return type(value) is tuple and len(value) <= 8 and all(type(n) is int and n >= 0 for n in value)


@dataclass(eq=False)
class StoredTensor:
    """A tensor that is still in its file: the first four arguments of torch's `_rebuild_tensor_v2`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self):
        if not isinstance(self.storage, Storage) or not _sizes((self.offset,)):
            raise ValueError("a tensor in it has no storage")
        if not _sizes(self.shape) or not _sizes(self.stride) or len(self.shape) != len(self.stride):
            raise ValueError("a tensor in it has an impossible shape")
        numel, limit = math.prod(self.shape), self.storage.numel
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        # A tensor with more elements than its storage repeats them (stride 0): a few bytes could claim terabytes.
        if numel and (last >= limit or numel > limit):
            raise ValueError(f"a tensor in it, {list(self.shape)}, is larger than its storage of {limit} numbers")
        self.dtype, self.nbytes = self.storage.dtype, numel * self.storage.dtype.itemsize

    def read(self) -> torch.Tensor:
        """The tensor, contiguous, on the CPU, with its own memory.

        Raises:
            ValueError: the file is damaged, or was changed since it was opened.
        """
        try:
            data = self.storage.load()
        except ZIP_ERRORS as error:
            raise ValueError(f"A tensor of the file is damaged ({error}); fetch the file again.") from error
        if len(data) != self.storage.nbytes:
            raise ValueError("The file was changed while it was being read; convert it again.")
        if not self.nbytes:
            return torch.empty(self.shape, dtype=self.dtype)
        flat = torch.frombuffer(bytearray(data), dtype=self.dtype)
        return flat.as_strided(self.shape, self.stride, self.offset).clone(memory_format=torch.contiguous_format)


class _Dispatch(dict):
    def __missing__(self, code: int):
        name = pickletools.code2op[chr(code)].name if chr(code) in pickletools.code2op else code
        raise ValueError(f"it uses the pickle opcode {name}, which torch.save does not write")


class _Unpickler(pickle._Unpickler):
    """Unpickler of one pickle of torch.save; fills `storages` (key -> Storage) with those that the pickle refers to."""

    dispatch = _Dispatch((code, pickle._Unpickler.dispatch[code]) for code in (getattr(pickle, o)[0] for o in OPCODES))

    def __init__(self, file, storages: dict[str, Storage]):
        super().__init__(file)
        self.storages = storages

    def find_class(self, module: str, name: str) -> Name:
        path = f"{module}.{name}"
        if path not in NAMES:
            raise ValueError(f"it names {path}, which is not on the list of names that such files need")
        return Name(path)

    def persistent_load(self, pid) -> Storage | Name:
        """A storage or, in files before torch 1.6, the class of a module, which comes with its source text."""
        match pid:
            case ("module", Name(name), _, _):
                return name
            case ("storage", Name(name), str(key), _, int(numel), *rest) if name in STORAGES and rest in ([], [None]):
                storage = self.storages.setdefault(key, Storage(STORAGES[name], numel))
                if numel < 0 or (storage.dtype, storage.numel) != (STORAGES[name], numel):
                    raise ValueError(f"it describes the storage {key!r} in two ways")
                return storage
        raise ValueError("it refers to an outside object that is not a tensor storage")

    def load_call(self) -> None:
        args, name = self.stack.pop(), self.stack.pop()
        if type(name) is not Name or type(args) is not tuple:
            raise ValueError("it calls something that is not a name")
        if name == TENSOR:
            self.append(StoredTensor(*args[:4]))
        elif name == PARAMETER and args and isinstance(args[0], StoredTensor):
            self.append(args[0])
        elif name in UNUSED:
            self.append(None)
        elif name in MODULES and not args:
            self.append(Module(name))
        elif name in DICTIONARIES and not args:
            self.append(Dictionary())
        else:
            raise ValueError(f"it calls {name} in a way that torch.save does not write")

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(state, Dictionary) or not isinstance(target, (Module, Dictionary)):
            raise ValueError("it sets attributes of something other than a module")
        if isinstance(target, Module):  # of an OrderedDict it is torch's `_metadata`, which is not needed
            target.state = state

    def load_dictionary(self) -> None:
        self.append(Dictionary())

    dispatch |= {pickle.REDUCE[0]: load_call, pickle.NEWOBJ[0]: load_call, pickle.BUILD[0]: load_build}
    dispatch |= {pickle.EMPTY_DICT[0]: load_dictionary}


def _unpickle(file, storages: dict[str, Storage]):
    try:
        return _Unpickler(file, storages).load()
    except EOFError as error:
        raise ValueError(f"its pickle ends early, or is longer than {MAX_PICKLE_BYTES:,} bytes") from error
    except (pickle.UnpicklingError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"its pickle is malformed ({error})") from error


def _read_zip(path: Path):
    """The value of `<root>/data.pkl`; storages are the entries `<root>/data/<key>`, never compressed."""
    archive, storages = zipfile.ZipFile(path), {}
    entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("it is a zip archive, but not one of torch.save")
    size = path.stat().st_size
    if not all(0 <= info.header_offset < size for info in entries.values()):
        raise ValueError("its directory points outside the file")
    if any(info.compress_type != zipfile.ZIP_STORED or info.file_size > size for info in entries.values()):
        raise ValueError("it is a compressed zip archive, which torch.save does not write")
    if entries[pickles[0]].file_size > MAX_PICKLE_BYTES:
        raise ValueError(f"its pickle is longer than {MAX_PICKLE_BYTES:,} bytes")
    value = _unpickle(io.BytesIO(archive.read(pickles[0])), storages)
    for key, storage in storages.items():
        info = entries.get(f"{pickles[0].removesuffix('data.pkl')}data/{key}")
        if info is None or info.file_size != storage.nbytes:
            raise ValueError(f"the storage {key!r} is not the {storage.nbytes:,} bytes that its tensors need")
        storage.load = partial(archive.read, info)  # checks the CRC of the entry
    return value


def _read_legacy(path: Path):
    """Five pickles (magic number, version, system, value, order of the storages), then the bytes of the storages."""
    size, storages = path.stat().st_size, {}
    with path.open("rb") as file:
        # Reading from memory returns at most what is there; reading from a file allocates the length that is claimed.
        head = io.BytesIO(file.read(MAX_PICKLE_BYTES))
        magic, version, system = (_unpickle(head, {}) for _ in range(3))
        if magic != LEGACY_MAGIC or version != 1001 or not isinstance(system, dict):
            raise ValueError("it is a pickle, but not one of torch.save")
        if not system.get("little_endian", True):
            raise ValueError("it was written on a big-endian machine")
        value, order = _unpickle(head, storages), _unpickle(head, {})
        keys = type(order) is list and all(isinstance(key, str) for key in order)
        if not keys or sorted(order) != sorted(storages):
            raise ValueError("its list of storages does not match its tensors")
        file.seek(head.tell())
        for key in order:
            storage, count = storages[key], file.read(8)
            start = file.tell()
            if len(count) < 8 or struct.unpack("<q", count)[0] != storage.numel or start + storage.nbytes > size:
                raise ValueError(f"the storage {key!r} is not the {storage.nbytes:,} bytes that its tensors need")
            storage.load = partial(np.fromfile, path, np.uint8, storage.nbytes, offset=start)
            file.seek(start + storage.nbytes)
    return value


def read_torch_file(path: str | Path):
    """The value in a file of torch.save: dicts, lists, numbers and text; tensors are `StoredTensor`, modules `Module`.

    Raises:
        OSError: there is no such file. ValueError: it is not a torch file, is damaged, or names something not listed.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(256)
    if b"git-lfs" in head or head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ValueError(f"{path} is a web page or a git-lfs pointer, not a torch file; fetch the file itself.")
    if not head.startswith((b"PK", b"\x80\x02")):
        raise ValueError(f"{path} is not a file of torch.save, or its beginning is damaged; fetch it again.")
    try:
        return _read_zip(path) if head.startswith(b"PK") else _read_legacy(path)
    except ZIP_ERRORS as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); fetch it again.") from error
    except ValueError as error:
        raise ValueError(f"{path} is refused, truncated or damaged: {error}; nothing in it was run.") from error


def _tensors_of(module: Module, prefix: str, seen: set[int]) -> dict[str, StoredTensor]:
    """The parameters and buffers of a saved module, under the names of its state_dict."""
    parts = [module.state.get(key) for key in ("_parameters", "_buffers", "_modules")]
    if not seen.isdisjoint(map(id, (module, *parts))):  # a cycle, or shared parts that multiply the walk
        raise ValueError("a module in it occurs twice")
    seen.update(map(id, (module, *parts)))
    if not all(isinstance(part, dict) and all(isinstance(name, str) for name in part) for part in parts):
        raise ValueError(f"the module {prefix or module.path} in it lacks its tensors")
    tensors = {f"{prefix}{name}": value for part in parts[:2] for name, value in part.items() if value is not None}
    for name, child in parts[2].items():
        if not isinstance(child, Module) or prefix.count(".") > 50:
            raise ValueError(f"{prefix}{name} in it is not a module")
        tensors |= _tensors_of(child, f"{prefix}{name}.", seen)
    return tensors


def read_state_dict(path: str | Path) -> dict[str, StoredTensor]:
    """The named tensors of a saved module, of a Lightning checkpoint's `state_dict`, or of a plain state_dict.

    Raises:
        OSError, ValueError: as `read_torch_file`; or the file holds no named tensors, or claims more than its own size.
    """
    value = read_torch_file(path)
    try:
        tensors = _tensors_of(value, "", set()) if isinstance(value, Module) else value
    except ValueError as error:
        raise ValueError(f"{path} is refused or damaged: {error}.") from error
    if isinstance(tensors, dict) and "state_dict" in tensors:
        tensors = tensors["state_dict"]
    named = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
    if not named or not tensors or not all(isinstance(value, StoredTensor) for value in tensors.values()):
        raise ValueError(f"{path} holds no state_dict and no module; it is not a checkpoint of these tokenizers.")
    if sum(tensor.nbytes for tensor in tensors.values()) > Path(path).stat().st_size:
        raise ValueError(f"{path} claims more numbers than it has bytes; it is damaged or malicious.")
    return tensors
