"""Reads the tensors of old torch files without unpickling them: `pickle_machine` parses what they say.

Both containers of torch.save are read: the zip archive (torch >= 1.6) and the stream of pickles before it.
"""

import io
import mmap
import struct
import zipfile
from functools import partial
from pathlib import Path

from tokenization.pickle_machine import MAX_PICKLE_BYTES, ZIP_ERRORS, Module, PickleMachine, StoredTensor

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


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
        raise ValueError("it is a compressed zip archive, which torch does not write")
    root = pickles[0].removesuffix("data.pkl")
    if entries[pickles[0]].file_size > MAX_PICKLE_BYTES:
        raise ValueError(f"its pickle is longer than {MAX_PICKLE_BYTES:,} bytes")
    value = PickleMachine(storages).run(io.BytesIO(archive.read(pickles[0])))
    for key, storage in storages.items():
        info = entries.get(f"{root}data/{key}")
        if info is None or info.file_size != storage.nbytes:
            raise ValueError(f"the storage {key!r} should be {storage.nbytes:,} bytes and is not")
        storage.load = partial(archive.read, info)  # checks the entry's CRC
    return value


def _bytes_at(path: Path, start: int, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(count)


def _read_legacy(path: Path):
    """Five pickles (magic number, version, system, the value, the order of storages), then the storages' bytes."""
    size, storages = path.stat().st_size, {}
    # Of a mapped file, a read returns at most what is there; of an open one it allocates whatever length is claimed.
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
        magic, version, system = (PickleMachine({}).run(file) for _ in range(3))
        if magic != LEGACY_MAGIC or version != 1001 or type(system) is not dict:
            raise ValueError("it is a pickle, but not one of torch.save")
        if not system.get("little_endian", True):
            raise ValueError("it was written on a big-endian machine")
        value, order = PickleMachine(storages).run(file), PickleMachine({}).run(file)
        keys = type(order) is list and all(isinstance(key, str) for key in order)
        if not keys or sorted(order) != sorted(storages):
            raise ValueError("its list of storages does not fit its tensors")
        for key in order:
            storage, count = storages[key], file.read(8)
            start = file.tell()
            if len(count) < 8 or struct.unpack("<q", count)[0] != storage.numel or start + storage.nbytes > size:
                raise ValueError(f"the storage {key!r} should be {storage.nbytes:,} bytes and is not")
            storage.load = partial(_bytes_at, path, start, storage.nbytes)
            file.seek(start + storage.nbytes)
    return value


def read_torch_file(path: str | Path):
    """The value in a file of torch.save: dicts, lists, numbers and text; tensors are `StoredTensor`, modules `Module`.

    Raises:
        OSError: no such file. ValueError: no torch file, a damaged one, or one that names something unlisted.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(256)
    if b"git-lfs" in head or head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ValueError(f"{path} is no torch file but a web page or a git-lfs pointer: fetch the file itself.")
    if not head.startswith((b"PK", b"\x80\x02")):
        raise ValueError(f"{path} is no file of torch.save, or its beginning is damaged: fetch it again.")
    try:
        return _read_zip(path) if head.startswith(b"PK") else _read_legacy(path)
    except ZIP_ERRORS as error:
        raise ValueError(f"{path} is truncated or damaged ({error}): fetch it again.") from error
    except ValueError as error:
        raise ValueError(f"{path} is refused, truncated or damaged: {error}.") from error


def _tensors_of(module: Module, prefix: str, seen: set[int]) -> dict[str, StoredTensor]:
    """The parameters and buffers of a saved module, named as its state_dict would."""
    parts = [module.state.get(key) for key in ("_parameters", "_buffers", "_modules")]
    if not seen.isdisjoint(map(id, (module, *parts))):  # so that the walk ends, and in time
        raise ValueError("a module in it occurs twice")
    seen.update(map(id, (module, *parts)))
    if not all(type(part) is dict and all(isinstance(name, str) for name in part) for part in parts):
        raise ValueError(f"the module {prefix or module.path} in it lacks its tensors")
    tensors = {f"{prefix}{name}": value for part in parts[:2] for name, value in part.items() if value is not None}
    for name, child in parts[2].items():
        if not isinstance(child, Module) or prefix.count(".") > 50:
            raise ValueError(f"the module {prefix}{name} in it is none")
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
    if type(tensors) is dict and "state_dict" in tensors:
        tensors = tensors["state_dict"]
    named = type(tensors) is dict and all(isinstance(name, str) for name in tensors)
    if not named or not tensors or not all(isinstance(value, StoredTensor) for value in tensors.values()):
        raise ValueError(f"{path} holds no state_dict and no module: it is not a checkpoint of these tokenizers.")
    if sum(tensor.nbytes for tensor in tensors.values()) > Path(path).stat().st_size:
        raise ValueError(f"{path} claims more numbers than it has bytes: it is damaged, or was made to harm.")
    return tensors
