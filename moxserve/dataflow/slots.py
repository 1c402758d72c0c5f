"""Shared memory in slots, and how a datapoint lies in one. No processes, no pipes: `transport` has those.

    slot     header | arrays ... | table of arrays | pickle
    header   where the table is, how many arrays, length of the pickle, kind of message, worker, number of the datapoint

The arrays that a datapoint is made of lie as they are, 64-byte aligned; the rest is a pickle of protocol 5, with arrays
deeper inside out of band.

The memory is one file without a name: Linux keeps it in RAM (memfd), so that nothing is ever left in /dev/shm, whose
size does not matter either; elsewhere it is a deleted file in the folder of temporary files. The file is sparse: a slot
has room for datapoints of any size, and takes the memory of the largest one that was in it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import struct
import tempfile
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any, NamedTuple

import numpy as np

from moxserve.errors import DataError

__all__ = ["DATA", "ERROR", "MAX_SLOTS", "Message", "Slots", "WritableSlot"]

# Kinds of messages.
DATA, ERROR = 0, 1
# As many numbers fit into the smallest buffer that a pipe has, so that writing one never waits.
MAX_SLOTS = 2048
_HEADER = struct.Struct("=QQQQII")
_ENTRY = struct.Struct("=QQ")
_ALIGN = 64
_FIRST_BYTES = 1 << 16
_ROOM_BITS = 43
_LEAST_BITS = 24
_CONTAINERS = (list, tuple, dict)
# Types of elements that their name tells all of; the others are pickled.
_PLAIN = frozenset("?bBhHiIlLqQefdgFDGSUmM")
# `isbuiltin` of types of other packages, such as ml_dtypes, some of which have a letter of NumPy's.
_FOREIGN = 2


class Message(NamedTuple):
    """What was in a slot.

    Attributes:
        kind: DATA or ERROR.
        worker: number of the worker that wrote it.
        number: of the datapoint.
        value: the datapoint, or the error's parts.
    """

    kind: int
    worker: int
    number: int
    value: Any


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("moxserve-dataflow", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile(prefix="moxserve-dataflow-") as file:
        return os.dup(file.fileno())


def _make_room(file: int, count: int) -> int:
    """Give a file its size, without memory; return how many bits the address within a slot has."""
    error: OSError | None = None
    for bits in range(_ROOM_BITS - max(count - 1, 1).bit_length(), _LEAST_BITS - 1, -1):
        try:
            os.ftruncate(file, count << bits)
        except OSError as failed:  # more than the file system, or a limit of this process, allows
            error = failed
        else:
            return bits
    raise DataError(
        f"no memory for {count} datapoints to be handed between processes: {error}",
        hint="raise the limit of file sizes (ulimit -f), take a smaller hwm or buffer_size, or set TMPDIR",
    )


class Slots:
    """Slots in memory that this process shares with those it forks, or hands this object to when it starts them.

    Args:
        count: of slots.

    Raises:
        DataError: the system has no memory to share.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._file = _nameless_file()
        self._bits = _make_room(self._file, count)
        self._windows: list[mmap.mmap | None] = [None] * count

    def __reduce__(self) -> tuple[Any, ...]:
        """To a process that is being started."""
        return _received, (self.count, self._bits, reduction.DupFd(self._file))

    def __del__(self) -> None:
        """Give the memory back; arrays of it that someone still has keep theirs."""
        if hasattr(self, "_bits"):
            os.close(self._file)

    def window(self, slot: int, size: int) -> mmap.mmap:
        """Return at least the first `size` bytes of a slot.

        Raises:
            DataError: there is not that much room.
        """
        window = self._windows[slot]
        if window is None or len(window) < size:
            room = 1 << max(size - 1, _FIRST_BYTES - 1).bit_length()
            if room > 1 << self._bits:
                raise DataError(f"a datapoint of {size} bytes is larger than the {1 << self._bits} bytes of a slot")
            try:
                window = mmap.mmap(self._file, room, offset=slot << self._bits)
            except (OSError, ValueError) as error:
                raise DataError(f"no memory for a datapoint of {size} bytes: {error}") from error
            self._windows[slot] = window
        return window

    def write(self, slot: int, message: Message) -> None:
        """Put a message into a slot.

        Raises:
            DataError: there is no room for it.
        """
        WritableSlot(self, slot).write(message)

    def view(self, slot: int) -> tuple[Message, Any]:
        """Return a message whose arrays lie in the slot, and what those arrays keep alive: a weak reference tells when
        none of them is left, and the slot may be filled again.
        """
        head, window = self._head(slot)
        owner: Any = (ctypes.c_char * len(window)).from_buffer(window)
        return _decode(head, window, lambda shape, dtype, place: np.ndarray(shape, dtype, owner, place)), owner

    def read(self, slot: int) -> Message:
        """Copy a message out of a slot; its arrays are writable, and nobody else's."""
        head, window = self._head(slot)
        return _decode(head, window, lambda shape, dtype, place: np.ndarray(shape, dtype, window, place).copy())

    def _head(self, slot: int) -> tuple[_Head, mmap.mmap]:
        window = self._windows[slot] or self.window(slot, _FIRST_BYTES)
        head = _HEADER.unpack_from(window)
        end = head[0] + head[1] * _ENTRY.size + head[2]
        return head, window if end <= len(window) else self.window(slot, end)


_Head = tuple[int, int, int, int, int, int]


def _decode(head: _Head, window: mmap.mmap, array: Callable[[Any, Any, int], np.ndarray]) -> Message:
    table, arrays, length, number, kind, worker = head
    start = table + arrays * _ENTRY.size
    view = memoryview(window)
    buffers = [bytearray(view[a : a + n]) for a, n in _ENTRY.iter_unpack(view[table:start])] if arrays else ()
    laid, value, is_tuple = pickle.loads(view[start : start + length], buffers=buffers)
    for key, place, dtype, shape in laid:
        value[key] = array(shape, dtype, place)
    return Message(kind, worker, number, tuple(value) if is_tuple else value)


def _received(count: int, bits: int, file: Any) -> Slots:
    slots = Slots.__new__(Slots)
    slots.count, slots._bits, slots._file, slots._windows = count, bits, file.detach(), [None] * count
    return slots


class WritableSlot:
    """A slot that is being filled. Arrays made by `allocate` lie in it already, and are not copied by `write`.

    Args:
        slots: where it is.
        slot: its number.
    """

    def __init__(self, slots: Slots, slot: int) -> None:
        self._slots, self._slot = slots, slot
        self._end = _ALIGN
        # Address of an array's first byte in this process -> where it lies in the slot. The arrays are kept, so that no
        # other can come to have the address of one.
        self._places: dict[int, int] = {}
        self._arrays: list[np.ndarray] = []

    def allocate(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Make an array in the slot; valid until the slot is filled with the next datapoint."""
        dtype = np.dtype(dtype)
        if dtype.hasobject:
            return np.empty(shape, dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        place = self._place(size)
        window = self._slots.window(self._slot, self._end)
        array: np.ndarray = np.frombuffer(window, dtype, size // max(dtype.itemsize, 1), place).reshape(shape)
        self._places[array.__array_interface__["data"][0]] = place
        self._arrays.append(array)
        return array

    def _place(self, size: int) -> int:
        place = self._end
        self._end = -(-(place + size) // _ALIGN) * _ALIGN
        return place

    def write(self, message: Message) -> None:
        """Fill it.

        Raises:
            DataError: there is no room.
        """
        found: list[pickle.PickleBuffer] = []
        dp = message.value
        kind = type(dp)
        laid, rest = self._lay(dp) if kind in _CONTAINERS else ((), dp)
        text = pickle.dumps((laid, rest, kind is tuple), 5, buffer_callback=found.append)
        entries = []
        for buffer in found:
            raw = buffer.raw()
            place = self._place(raw.nbytes)
            self._slots.window(self._slot, self._end)[place : place + raw.nbytes] = raw
            entries.append((place, raw.nbytes))
        start = self._end + len(entries) * _ENTRY.size
        window = self._slots.window(self._slot, start + len(text))
        for i, entry in enumerate(entries):
            _ENTRY.pack_into(window, self._end + i * _ENTRY.size, *entry)
        window[start : start + len(text)] = text
        head = (self._end, len(entries), len(text), message.number, message.kind, message.worker)
        _HEADER.pack_into(window, 0, *head)

    def _lay(self, dp: Any) -> tuple[list[tuple[Any, int, str, tuple[int, ...]]], Any]:
        """Put the arrays of a datapoint into the slot; return where they are, and the rest: a list or dict."""
        laid = []
        is_dict = type(dp) is dict
        rest: Any = dp.copy() if is_dict else list(dp)
        for key, value in dp.items() if is_dict else enumerate(dp):
            if type(value) is np.ndarray and value.dtype.char in _PLAIN and value.dtype.isbuiltin != _FOREIGN:
                laid.append((key, self._put(value), value.dtype.str, value.shape))
                rest[key] = None
        return laid, rest

    def _put(self, array: np.ndarray) -> int:
        if self._places and array.flags.c_contiguous and array.size:
            place = self._places.get(array.__array_interface__["data"][0])
            if place is not None:
                return place
        place = self._place(array.nbytes)
        window = self._slots.window(self._slot, self._end)
        # Whatever its strides are, it is copied once.
        np.ndarray(array.shape, array.dtype, window, place)[...] = array
        return place
