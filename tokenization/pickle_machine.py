"""What a pickle of torch.save says, without running it: no class or function that it names is ever called.

A pickle is a program. Python's own unpickler looks up every name in it and calls what it finds; this machine does
neither. It knows the few instructions that torch.save writes and the names listed below, for which it puts inert
stand-ins; any other name ends the reading with a sentence. Tensors stay in the file until `StoredTensor.read`.
"""

import math
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

# What a whole-module pickle of OpenAI's `dall_e` package names: encoder.pkl and decoder.pkl.
MODULES = {
    *(f"dall_e.{name}" for name in ("encoder.Encoder", "encoder.EncoderBlock", "utils.Conv2d")),
    *(f"dall_e.{name}" for name in ("decoder.Decoder", "decoder.DecoderBlock")),
    *(f"torch.nn.modules.{name}" for name in ("container.Sequential", "activation.ReLU", "linear.Identity")),
    *(f"torch.nn.modules.{name}" for name in ("pooling.MaxPool2d", "upsampling.Upsample")),
}
DICTIONARIES = {"collections.OrderedDict", "pytorch_lightning.utilities.parsing.AttributeDict"}
# Values that no weight depends on; nothing of them is kept.
OPAQUE = {"__builtin__.set", "torch.device"}
# Keys of a Lightning 1.0 checkpoint's `callbacks`; a name that is only a key is never built.
KEYS = {"pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"}
TENSOR, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_DTYPES = {"Float": torch.float32, "Half": torch.float16, "Double": torch.float64, "Long": torch.int64}
_DTYPES["Int"] = torch.int32
STORAGES = {f"torch.{gpu}{name}Storage": dtype for gpu in ("", "cuda.") for name, dtype in _DTYPES.items()}
NAMES = MODULES | DICTIONARIES | OPAQUE | KEYS | {TENSOR, PARAMETER} | set(STORAGES)

# The published files' pickles are under 1 MB; the tensors are not part of them.
MAX_PICKLE_BYTES = 64 * 2**20
ZIP_ERRORS = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, struct.error)


@dataclass(frozen=True)
class Name:
    """Stand-in for a class or function that a file names."""

    path: str


@dataclass(eq=False)
class Module:
    """Stand-in for a saved torch.nn.Module: holds its attributes and can do nothing."""

    path: str
    state: dict = field(default_factory=dict, repr=False)


class Opaque:
    """Stand-in for a value that is not needed."""


@dataclass(eq=False)
class Storage:
    """A run of numbers in the file; `load` returns its bytes once the file's layout is known."""

    dtype: torch.dtype
    numel: int
    load: Callable[[], bytes] | None = field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(eq=False)
class StoredTensor:
    """A tensor that still lies in its file."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """The tensor, contiguous, on the CPU, with memory of its own.

        Raises:
            ValueError: the file has been damaged, or changed since it was opened.
        """
        try:
            data = self.storage.load()
        except ZIP_ERRORS as error:
            raise ValueError(f"a tensor of the file is damaged ({error}): fetch the file again.") from error
        if len(data) != self.storage.nbytes:
            raise ValueError("the file was changed while it was read: convert it again.")
        if not math.prod(self.shape):
            return torch.empty(self.shape, dtype=self.dtype)
        flat = torch.frombuffer(bytearray(data), dtype=self.dtype)
        return flat.as_strided(self.shape, self.stride, self.offset).clone(memory_format=torch.contiguous_format)


def _sizes(value) -> bool:
    return type(value) is tuple and len(value) <= 8 and all(type(n) is int and n >= 0 for n in value)


def _tensor(*args) -> StoredTensor:
    """What torch's `_rebuild_tensor_v2(storage, offset, size, stride, ...)` would build, still in the file."""
    if len(args) < 4 or not isinstance(args[0], Storage) or not _sizes((args[1], 0)):
        raise ValueError("a tensor in it has no storage")
    storage, offset, shape, stride = args[:4]
    if not _sizes(shape) or not _sizes(stride) or len(shape) != len(stride):
        raise ValueError("a tensor in it has an impossible shape")
    numel = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    # A tensor with more elements than its storage repeats them (stride 0): a few bytes could claim terabytes.
    if numel and (last >= storage.numel or numel > storage.numel):
        raise ValueError(f"a tensor in it, {list(shape)}, is larger than its storage of {storage.numel} numbers")
    return StoredTensor(storage, offset, shape, stride)


_LITERALS = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_EMPTY |= {"NONE": type(None), "NEWFALSE": bool, "NEWTRUE": partial(bool, 1)}


class PickleMachine:
    """Runs one pickle of torch.save: stack, memo, and the instructions of pickle protocol 2 that torch needs."""

    def __init__(self, storages: dict[str, Storage]):
        self.storages, self.stack, self.marks, self.memo = storages, [], [], {}

    def run(self, file):
        """The value of the pickle that starts where `file` stands; `file` stands behind it afterwards."""
        start = file.tell()
        for opcode, argument, position in pickletools.genops(file):
            if position - start > MAX_PICKLE_BYTES:
                raise ValueError(f"its pickle is longer than {MAX_PICKLE_BYTES:,} bytes")
            if opcode.name == "STOP":
                return self.pop()
            if opcode.name in _LITERALS:
                self.push(argument)
            elif opcode.name in _EMPTY:
                self.push(_EMPTY[opcode.name]())
            elif step := getattr(self, f"do_{opcode.name}", None):
                step(argument)
            else:
                raise ValueError(f"it uses the pickle instruction {opcode.name}, which torch does not write")

    def pop(self):
        if not self.stack or (self.marks and len(self.stack) <= self.marks[-1]):
            raise ValueError("its pickle takes a value that is not there")
        return self.stack.pop()

    def pop_marked(self) -> list:
        if not self.marks:
            raise ValueError("its pickle takes a value that is not there")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def push(self, value) -> None:
        self.stack.append(value)

    # --- containers

    def do_PROTO(self, version) -> None:
        if version != 2:
            raise ValueError(f"it uses pickle protocol {version}, where torch writes 2")

    def do_MARK(self, _) -> None:
        self.marks.append(len(self.stack))

    def do_TUPLE(self, _) -> None:
        self.push(tuple(self.pop_marked()))

    def do_TUPLE1(self, _) -> None:
        self.push((self.pop(),))

    def do_TUPLE2(self, _) -> None:
        second = self.pop()
        self.push((self.pop(), second))

    def do_TUPLE3(self, _) -> None:
        third, second = self.pop(), self.pop()
        self.push((self.pop(), second, third))

    def do_APPEND(self, _) -> None:
        self.extend(list, [self.pop()])

    def do_APPENDS(self, _) -> None:
        self.extend(list, self.pop_marked())

    def do_SETITEM(self, _) -> None:
        value = self.pop()
        self.extend(dict, [self.pop(), value])

    def do_SETITEMS(self, _) -> None:
        self.extend(dict, self.pop_marked())

    def extend(self, kind: type, items: list) -> None:
        target = self.pop()
        if type(target) is not kind:
            raise ValueError("its pickle fills something that is no list or dictionary")
        if kind is list:
            target.extend(items)
        else:
            keys, values = items[::2], items[1::2]
            if len(keys) != len(values) or not all(isinstance(key, (str, int, Name)) for key in keys):
                raise ValueError("a dictionary in it has a key that is neither text nor a number")
            target.update(zip(keys, values, strict=True))
        self.push(target)

    # --- the memo

    def do_BINPUT(self, slot) -> None:
        self.memo[slot] = self.pop()
        self.push(self.memo[slot])

    def do_BINGET(self, slot) -> None:
        if slot not in self.memo:
            raise ValueError("its pickle takes a value that is not there")
        self.push(self.memo[slot])

    do_LONG_BINPUT, do_LONG_BINGET = do_BINPUT, do_BINGET

    # --- names, and what is done with them

    def do_GLOBAL(self, name: str) -> None:
        path = name.replace(" ", ".")
        if path not in NAMES:
            raise ValueError(
                f"it names {path}, which is not on the list of what such files need; nothing of it was run"
            )
        self.push(Name(path))

    def do_REDUCE(self, _) -> None:
        args, name = self.pop(), self.pop()
        path = name.path if isinstance(name, Name) else None
        if type(args) is not tuple:
            raise ValueError("its pickle calls something without arguments")
        if path == TENSOR:
            self.push(_tensor(*args))
        elif path == PARAMETER and args and isinstance(args[0], StoredTensor):
            self.push(args[0])
        elif path in OPAQUE:
            self.push(Opaque())
        elif path in DICTIONARIES and args == ():
            self.push({})
        else:
            raise ValueError(f"it calls {path or 'something that is no name'} in a way that no such file does")

    def do_NEWOBJ(self, _) -> None:
        args, name = self.pop(), self.pop()
        path = name.path if isinstance(name, Name) else None
        if args != () or path not in MODULES | DICTIONARIES:
            raise ValueError(f"it builds {path or 'something that is no name'} in a way that no such file does")
        self.push(Module(path) if path in MODULES else {})

    def do_BUILD(self, _) -> None:
        state, target = self.pop(), self.pop()
        if type(state) is not dict or not isinstance(target, (Module, dict)):
            raise ValueError("it sets attributes of something that has none")
        if isinstance(target, Module):  # of an OrderedDict it is torch's `_metadata`, which is not needed
            target.state = state
        self.push(target)

    def do_BINPERSID(self, _) -> None:
        """A storage, or (in files before 1.6) a module's class together with its source text."""
        match self.pop():
            case ("module", Name() as name, _, _):
                self.push(name)
            case ("storage", Name(path), str(key), _, int(numel), *rest) if path in STORAGES and rest in ([], [None]):
                storage = self.storages.setdefault(key, Storage(STORAGES[path], numel))
                if numel < 0 or (storage.dtype, storage.numel) != (STORAGES[path], numel):
                    raise ValueError(f"it describes the storage {key!r} in two ways")
                self.push(storage)
            case _:
                raise ValueError("it refers to something outside that is no tensor storage")
