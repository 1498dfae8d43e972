"""Arrays out of PyTorch's weights files, without PyTorch.

Such a file holds a pickle, which says of each tensor what numbers it is made of and how, and beside it the numbers. A
pickle is a program: Python's own reader would run whatever the file asks for. The reader here knows the few words that
state dicts are written in, and each makes a description that can do nothing. Any other word is refused.

Two layouts exist: a zip archive (torch 1.6, 2020, and later) and, before, pickles and numbers one after the other, in
which older published files are still distributed. Both are read here, for little-endian machines.
"""

import collections
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
"""The number that the older layout starts with."""
DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
"""What torch calls a row of numbers of each type."""
BROKEN = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, ValueError, OverflowError, UnicodeDecodeError),
    *(EOFError, OSError, MemoryError, RuntimeError, AttributeError, IndexError, KeyError, TypeError),
)
"""What reading raises where a file is damaged, or made to do harm: also where it says that it is encrypted, that a part
lies before its start, or that a text is larger than the memory."""


class Storage(NamedTuple):
    """A row of numbers: the name that the file keeps it under, its dtype and length."""

    key: str
    dtype: str
    length: int


class Tensor(NamedTuple):
    """A view of a storage: where it starts, its shape, and its strides in numbers."""

    storage: Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a state dict that torch.save wrote, by name; read-only.

    ValueError where the file is none of torch's, is damaged, or asks for anything but tensors of plain numbers;
    OSError where it cannot be opened.
    """
    with path.open("rb") as file:
        try:
            read_layout = _zipped if zipfile.is_zipfile(file) else _older
            file.seek(0)
            described, numbers = read_layout(file)
            if not described or not all(isinstance(value, Tensor) for value in described.values()):
                raise pickle.UnpicklingError("it holds no state dict, which is tensors by name and nothing else.")
            return {name: _array(tensor, numbers) for name, tensor in described.items()}
        except BROKEN as error:
            reason = str(error) or type(error).__name__
            raise ValueError(f"{path} is no file of PyTorch weights that can be read safely: {reason}") from error


class _Reader(pickle.Unpickler):
    """Reads a pickle into dicts, numbers, texts, and the descriptions above; `storages` are those that it names."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What a word of the pickle stands for; each call makes it anew, so that nothing lasting can be changed."""
        known: dict[str, Any] = {
            "collections.OrderedDict": collections.OrderedDict,
            "torch._utils._rebuild_tensor_v2": lambda storage, *view: Tensor(storage, *view[:3]),
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            **{f"torch.{storage}": dtype for storage, dtype in DTYPES.items()},
        }
        if f"{module}.{name}" not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no weights need.")
        return known[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that a tensor is a view of, of torch's ("storage", type, key, device, length, ...)."""
        _, dtype, key, _, length, *view = pid
        if dtype not in DTYPES.values() or any(view):
            raise pickle.UnpicklingError(f"it has numbers of an unknown kind: {pid}.")
        return self.storages.setdefault(key, Storage(key, dtype, length))


def _zipped(file: Any) -> tuple[Mapping[str, Any], Mapping[str, np.ndarray]]:
    """(the description, the numbers by storage) of an archive with a pickle and a file for each storage."""
    with zipfile.ZipFile(file) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise pickle.UnpicklingError("it is compressed, which torch.save does not do.")
        folder = archive.namelist()[0].split("/")[0]
        with archive.open(f"{folder}/data.pkl") as pickled:
            reader = _Reader(pickled)
            described = reader.load()
        numbers = {key: archive.read(f"{folder}/data/{key}") for key in reader.storages}
    return described, {key: _numbers(reader.storages[key], content) for key, content in numbers.items()}


def _older(file: Any) -> tuple[Mapping[str, Any], Mapping[str, np.ndarray]]:
    """The same of pickles in a row: a magic number, two of versions, the description, keys; then each key's numbers."""
    magic, _, _ = (_Reader(file).load() for _ in range(3))
    if magic != MAGIC:
        raise pickle.UnpicklingError("it starts with another number than torch.save's.")
    reader = _Reader(file)
    described = reader.load()
    numbers = {}
    for key in _Reader(file).load():
        storage = reader.storages[key]
        length = np.frombuffer(file.read(8), "<i8")
        if list(length) != [storage.length]:
            raise pickle.UnpicklingError(f"{storage.length} numbers were announced, but there are {list(length)}.")
        numbers[key] = _numbers(storage, file.read(storage.length * np.dtype(storage.dtype).itemsize))
    return described, numbers


def _numbers(storage: Storage, content: bytes) -> np.ndarray:
    numbers = np.frombuffer(content, storage.dtype)
    if len(numbers) != storage.length:
        raise pickle.UnpicklingError(f"{storage.length} numbers were announced, but there are {len(numbers)}.")
    return numbers


def _array(tensor: Tensor, numbers: Mapping[str, np.ndarray]) -> np.ndarray:
    row = numbers[tensor.storage.key]
    strides = [stride * row.itemsize for stride in tensor.strides]  # NumPy refuses those that lead out of the row
    return np.ndarray(tensor.shape, row.dtype, row, tensor.start * row.itemsize, strides)
