"""The items of .distcp files: zip archives as ``torch.save`` writes them, each around one tensor or object.

Entries are stored, not compressed, so a tensor's bytes lie in the file as they do in memory. Written archives have
a CRC of zero for them, which torch does not check: the bytes are copied by the kernel and never seen here.
(Format: APPNOTE.TXT 6.3, 4.3; torch's caffe2/serialize/inline_container.cc.)
"""

import os
import struct
import zlib
from functools import cache, lru_cache
from math import prod
from typing import Any, NamedTuple

from megatron_rl.resharding.folders.stored import ITEMSIZES, PAGE
from megatron_rl.resharding.folders.torch_dist.pickles import (
    STORAGE_NAMES,
    Call,
    Global,
    Persistent,
    SavedTensor,
    read_pickle,
    write_pickle,
)
from megatron_rl.resharding.layout import row_major

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_DESCRIPTOR, _DESCRIPTOR64 = struct.Struct("<4s3I"), struct.Struct("<4sI2Q")
_DESCRIBED = 8  # flag of an entry whose sizes stand behind it
_FULL = 0xFFFFFFFF
_Rows = list[tuple[bytes, int, int, int]]  # of the directory: name, size, crc, offset
_TAIL = 2048  # bytes at an archive's end that hold its directory in any usual case


def _local(name: bytes, size: int, crc: int, pad: int = 0) -> bytes:
    """A local file header; ``pad`` bytes (0 or at least 4) of an extra field that means nothing follow the name."""
    extra = struct.pack("<2H2Q", 1, 16, size, size) if size >= _FULL else b""
    if pad:
        extra += b"FB" + struct.pack("<H", pad - 4) + b"Z" * (pad - 4)  # as torch pads
    short = min(size, _FULL)
    return _LOCAL.pack(b"PK\3\4", 45, 0x800, 0, 0, 0, crc, short, short, len(name), len(extra)) + name + extra


def _directory(entries: _Rows, begin: int) -> bytes:
    """The central directory of (name, size, crc, offset) at position ``begin``, and the end records."""
    out = []
    for name, size, crc, offset in entries:
        extra = struct.pack("<2H2Q", 1, 16, size, size) if size >= _FULL else b""
        short = min(size, _FULL)
        fixed = (b"PK\1\2", 45, 45, 0x800, 0, 0, 0, crc, short, short, len(name), len(extra), 0, 0, 0, 0, offset)
        out.append(_CENTRAL.pack(*fixed) + name + extra)
    directory = b"".join(out)
    end = begin + len(directory)
    if begin >= _FULL:
        directory += _END64.pack(
            b"PK\6\6", 44, 45, 45, 0, 0, len(entries), len(entries), len(directory), begin
        ) + _LOCATOR64.pack(b"PK\6\7", 0, end, 1)
    size = end - begin
    return directory + _END.pack(b"PK\5\6", 0, 0, len(entries), len(entries), size, min(begin, _FULL), 0)


def _head(description: Any) -> tuple[bytes, _Rows]:
    """The small entries that every archive begins with, and their rows in the directory."""
    out: bytes = b""
    entries: _Rows = []
    for name, content in (("data.pkl", write_pickle(description)), ("byteorder", b"little"), ("version", b"3\n")):
        full, crc = f"archive/{name}".encode(), zlib.crc32(content)
        entries.append((full, len(content), crc, len(out)))
        out += _local(full, len(content), crc) + content
    return out, entries


def object_archive(value: Any) -> bytes:
    """``torch.save`` of plain data."""
    head, entries = _head(value)
    return head + _directory(entries, len(head))


@cache
def _tensor_head(dtype: str, shape: tuple[int, ...]) -> tuple[bytes, _Rows]:
    storage = Persistent(("storage", Global("torch", STORAGE_NAMES[dtype]), "0", "cpu", prod(shape)))
    arguments = (storage, 0, shape, row_major(shape), False, Call(Global("collections", "OrderedDict"), ()))
    return _head(Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments))


def tensor_archive(dtype: str, shape: tuple[int, ...], position: int, residue: int) -> tuple[bytes, bytes]:
    """What stands before and after a tensor's bytes in an archive that begins at ``position`` of its file.

    The bytes begin at a position that leaves ``residue`` modulo the page size.
    """
    size = prod(shape) * ITEMSIZES[dtype]
    head, entries = _tensor_head(dtype, shape)
    name = b"archive/data/0"
    pad = (residue - position - len(head) - len(_local(name, size, 0))) % PAGE
    pad += PAGE if 0 < pad < 4 else 0
    before = head + _local(name, size, 0, pad)
    return before, _directory([*entries, (name, size, 0, len(head))], len(before) + size)


class _Entry(NamedTuple):
    """What an archive's directory says of an entry: its size, and from where to where in the file it reaches."""

    name: bytes
    size: int
    begin: int  # its local header
    end: int  # the next one, or the directory


def _entries(handle: int, begin: int, length: int) -> dict[str, _Entry]:
    """The entries of an archive inside a file, by their names without the first folder."""
    tail = os.pread(handle, min(length, _TAIL), begin + max(length - _TAIL, 0))
    if len(tail) < _END.size or tail[-_END.size :][:4] != b"PK\5\6":
        raise ValueError("its directory is missing")
    _, _, _, _, count, size, first, _ = _END.unpack(tail[-_END.size :])
    if first == _FULL:
        locator = tail[-_END.size - _LOCATOR64.size : -_END.size]
        if locator[:4] != b"PK\6\7":
            raise ValueError("its directory is broken")
        at = _LOCATOR64.unpack(locator)[2]
        if at > length:
            raise ValueError("its directory is broken")
        record = os.pread(handle, _END64.size, begin + at)
        _, _, _, _, _, _, _, count, size, first = _END64.unpack(record)
    if length - first - size not in (_END.size, _END64.size + _LOCATOR64.size + _END.size):
        raise ValueError("its directory is broken")
    past = length - len(tail)
    directory = tail[first - past :][:size] if first >= past else os.pread(handle, size, begin + first)
    rows, at = [], 0
    for _ in range(count):
        fields = _CENTRAL.unpack_from(directory, at)
        method, stored, names, extras, comments, offset = (fields[i] for i in (4, 9, 10, 11, 12, 16))
        at += _CENTRAL.size
        name = directory[at : at + names]
        extra = directory[at + names : at + names + extras]
        at += names + extras + comments
        while len(extra) >= 4:
            kind, n = struct.unpack_from("<2H", extra)
            if kind == 1:
                wide = list(struct.unpack_from(f"<{n // 8}Q", extra, 4))
                if stored == _FULL:
                    stored = wide.pop(0)
                    wide = wide[1:] if fields[8] == _FULL else wide
                if offset == _FULL:
                    offset = wide.pop(0)
            extra = extra[4 + n :]
        if fields[0] != b"PK\1\2" or method or offset >= first:
            raise ValueError("its directory is broken, or an entry compressed")
        rows.append((offset, stored, name))
    ends = [offset for offset, _, _ in sorted(rows)[1:]] + [first]
    return {
        name.decode().partition("/")[2]: _Entry(name, stored, begin + offset, begin + end)
        for (offset, stored, name), end in zip(sorted(rows), ends, strict=True)
    }


def _content(handle: int, entry: _Entry) -> int:
    """Position in the file of an entry's bytes.

    They end where the next entry begins or, in torch's own files, a descriptor before it. Raises ValueError when they
    do not, or when the local header is not what the directory says.
    """
    head = os.pread(handle, _LOCAL.size + len(entry.name), entry.begin)
    signature, _, flags, method, _, _, _, packed, size, names, extras = _LOCAL.unpack(head[: _LOCAL.size])
    position = entry.begin + _LOCAL.size + names + extras
    after = entry.end - position - entry.size
    short = min(entry.size, _FULL)
    if flags & _DESCRIBED:
        kind = {_DESCRIPTOR.size: _DESCRIPTOR, _DESCRIPTOR64.size: _DESCRIPTOR64}.get(after)
        described = os.pread(handle, after, position + entry.size) if kind else b""
        right = kind is not None and kind.unpack(described)[::2] == (b"PK\7\10", entry.size)
    else:
        right = after == 0 and packed == size == short
    if not right or signature != b"PK\3\4" or method or head[_LOCAL.size :] != entry.name:
        raise ValueError(f"entry {entry.name.decode()} is not what the directory says")
    return int(position)


@lru_cache(maxsize=1 << 10)  # chunks of one shape are described alike
def _described(content: bytes) -> Any:
    return read_pickle(content)


def find_tensor(handle: int, begin: int, length: int) -> tuple[str, tuple[int, ...], int]:
    """Dtype, shape and position in the file of the tensor of an archive at [begin, begin + length) of an open file.

    Raises ValueError saying what is wrong with the archive, or when it holds no contiguous tensor.
    """
    try:
        entries = _entries(handle, begin, length)
        position = _content(handle, entries["data.pkl"])
        saved = _described(os.pread(handle, entries["data.pkl"].size, position))
        if not isinstance(saved, SavedTensor):
            raise ValueError("it holds no tensor")
        dtype, key, _ = saved.storage
        data = entries[f"data/{key}"]
    except (struct.error, KeyError, UnicodeDecodeError, IndexError, TypeError) as error:
        raise ValueError(f"it is damaged ({error!r})") from error
    moved = [
        (n, step)
        for n, step, usual in zip(saved.shape, saved.strides, row_major(saved.shape), strict=True)
        if n > 1 and step != usual
    ]
    if moved or saved.offset:
        raise ValueError("its tensor is not contiguous")
    if data.size != prod(saved.shape) * ITEMSIZES.get(dtype, 0):
        raise ValueError(f"{data.size} bytes do not fit {dtype} {list(saved.shape)}")
    return dtype, saved.shape, _content(handle, data)
