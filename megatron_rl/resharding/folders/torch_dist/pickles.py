"""Pickles of torch's checkpoints, read into plain data and written, without importing torch or running their code.

A checkpoint's pickles name classes of torch and megatron-core. Reading makes a ``Record`` of every instance, so a
file from a stranger can build data and nothing else; writing spells the opcodes of pickle protocol 2.
"""

import io
import pickle
import pickletools
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from megatron_rl.resharding.folders.stored import TORCH_DTYPES

_DTYPES = {name: short for short, name in TORCH_DTYPES.items()} | {
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_STORAGES = {
    "BFloat16Storage": "BF16",
    "HalfStorage": "F16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
STORAGE_NAMES = {dtype: name for name, dtype in _STORAGES.items()}
_PUT, _LONG_BINPUT, _STOP = b"pr."
_LENGTHS = {  # bytes of the length that stands before an argument
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_LINES = {  # opcode -> lines of text that follow
    ord(op.code): 1 + op.arg.name.endswith("_pair")
    for op in pickletools.opcodes
    if op.arg and op.arg.n == pickletools.UP_TO_NEWLINE
}
_FOLLOWING = {  # opcode -> bytes that follow; of a length before the argument, less than 0
    ord(op.code): 0 if op.arg is None else -_LENGTHS.get(op.arg.n, 1) if op.arg.n < 0 else op.arg.n
    for op in pickletools.opcodes
}
_PACKAGES = ("torch.distributed.checkpoint.", "megatron.core.dist_checkpointing.")


class Record:
    """An instance of a class that was not imported: its state as attributes, and the arguments it was made from."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.arguments = state

    def get(self, name: str) -> Any:
        """An attribute; None when the pickle does not set it."""
        return self.__dict__.get(name)


@dataclass(frozen=True)
class SavedTensor:
    """A tensor as its pickle describes it: storage (dtype, record name, elements), offset, shape and strides."""

    storage: tuple[str, str, int]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def rebuild(cls, storage: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> Any:
        """Stands for torch._utils._rebuild_tensor_v2."""
        return cls(storage, offset, whole_numbers(shape), whole_numbers(strides))


def whole_numbers(value: Any) -> tuple[int, ...]:
    """A tuple from a pickle that holds whole numbers, none negative; ValueError when it is another thing."""
    if not isinstance(value, tuple) or not all(type(n) is int and n >= 0 for n in value):
        raise ValueError(f"{value!r:.99} stands where whole numbers should")
    return value


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        known = {
            ("torch", "Size"): tuple,
            ("torch.serialization", "_get_layout"): str,
            ("torch._utils", "_rebuild_tensor_v2"): SavedTensor.rebuild,
            ("collections", "OrderedDict"): dict,
        }
        if (module, name) in known:
            return known[module, name]
        if module.startswith(_PACKAGES):
            return type(name, (Record,), {})
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint of weights needs")

    def persistent_load(self, pid: Any) -> Any:
        _, dtype, key, _, count = pid
        return dtype, key, count


def read_pickle(content: bytes) -> Any:
    """The content with Records for instances and safetensors' names for dtypes.

    Raises ValueError for anything that is no such pickle.
    """
    try:
        _check_memo(content)
        return _Unpickler(io.BytesIO(content)).load()
    except Exception as error:  # what a damaged pickle raises is anyone's guess
        raise ValueError(str(error)) from error


def _check_memo(content: bytes) -> None:
    """No object has a number that there cannot be so many of.

    Python would make room for all numbers below, which of a damaged one takes minutes or all memory. As
    ``pickletools.genops`` reads, but without making anything of what it reads: in a large checkpoint's metadata that
    takes longer than all the rest.
    """
    at, end = 0, len(content)
    while at < end:
        code = content[at]
        at += 1
        if code == _STOP or code not in _FOLLOWING:  # where reading ends, too
            return
        size = _FOLLOWING[code]
        if size >= 0:
            if code == _LONG_BINPUT and (number := int.from_bytes(content[at : at + 4], "little")) > end:
                raise ValueError(f"object number {number} of {end} bytes")
            at += size
        elif code in _LINES:
            for _ in range(_LINES[code]):
                begin, at = at, content.index(b"\n", at) + 1
                if code == _PUT and (number := int(content[begin : at - 1])) > end:
                    raise ValueError(f"object number {number} of {end} bytes")
        else:  # the length comes first
            at += -size + int.from_bytes(content[at : at - size], "little")


@dataclass(frozen=True)
class Global:
    """A class or function by name."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """The result of calling a global: pickled as REDUCE."""

    function: Global
    arguments: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Made:
    """An instance made without arguments and given a state: pickled as NEWOBJ and BUILD. Equal to itself alone."""

    type: Global
    state: Any


@dataclass(frozen=True)
class Persistent:
    """A reference that the reader resolves: torch's storages."""

    content: Any


class _Writer:
    def __init__(self) -> None:
        self.out: list[bytes] = [b"\x80\x02"]
        self.memo: dict[Any, int] = {}
        kinds = (type(None), bool, int, float, str, tuple, list, dict, Global, Call, Made, Persistent)
        self._by_type = {kind: getattr(self, f"_{kind.__name__.lower()}") for kind in kinds}

    def write(self, value: Any) -> None:
        self._by_type[type(value)](value)

    def _known(self, key: Any) -> bool:
        """Emits a reference when this value was written before."""
        number = self.memo.get(key)
        if number is not None:
            self.out.append(b"h" + bytes([number]) if number < 256 else b"j" + struct.pack("<I", number))
        return number is not None

    def _remember(self, key: Any) -> None:
        number = self.memo[key] = len(self.memo)
        self.out.append(b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number))

    def _nonetype(self, value: None) -> None:
        self.out.append(b"N")

    def _bool(self, value: bool) -> None:
        self.out.append(b"\x88" if value else b"\x89")

    def _int(self, value: int) -> None:
        if 0 <= value < 256:
            self.out.append(b"K" + bytes([value]))
        elif -(1 << 31) <= value < 1 << 31:
            self.out.append(b"J" + struct.pack("<i", value))
        else:
            self.out.append(b"\x8a\x08" + struct.pack("<q", value))

    def _float(self, value: float) -> None:
        self.out.append(b"G" + struct.pack(">d", value))

    def _str(self, value: str) -> None:
        if not self._known(value):
            text = value.encode()
            self.out.append(b"X" + struct.pack("<I", len(text)) + text)
            self._remember(value)

    def _many(self, values: Iterable[Any], end: bytes) -> None:
        self.out.append(b"(")
        for value in values:
            self.write(value)
        self.out.append(end)

    def _tuple(self, value: tuple[Any, ...]) -> None:
        self._many(value, b"t")

    def _list(self, value: list[Any]) -> None:
        self.out.append(b"]")
        self._many(value, b"e")

    def _dict(self, value: dict[Any, Any]) -> None:
        self.out.append(b"}")
        self._many((x for pair in value.items() for x in pair), b"u")

    def _global(self, value: Global) -> None:
        if not self._known(value):
            self.out.append(f"c{value.module}\n{value.name}\n".encode())
            self._remember(value)

    def _call(self, value: Call) -> None:
        if not self._known(value):
            self.write(value.function)
            self.write(value.arguments)
            self.out.append(b"R")
            self._remember(value)

    def _made(self, value: Made) -> None:
        self.write(value.type)
        self.out.append(b")\x81")
        if value.state != {}:
            self.write(value.state)
            self.out.append(b"b")

    def _persistent(self, value: Persistent) -> None:
        self.write(value.content)
        self.out.append(b"Q")


def write_pickle(value: Any) -> bytes:
    """Plain data with Global, Call, Made and Persistent in it as a pickle. Equal hashable Calls become one object."""
    writer = _Writer()
    writer.write(value)
    return b"".join((*writer.out, b"."))
