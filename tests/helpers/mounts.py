"""File systems that one process mounts for itself: a small one in memory, and one over a file whose disk fails.

The second is a server of the kernel's FUSE protocol, which passes everything on to the file until it is told to fail.
So errors come from the kernel, where a mapped file is touched too: there they are a signal.
"""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

_NEW_USER, _NEW_MOUNTS, _PRIVATE, _DETACH = 0x10000000, 0x20000, (1 << 18) | (1 << 14), 2

_HEADER, _ANSWER = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
_KEEP_CACHE = 1 << 1  # This is a flag of an opened file.
_SIZE = 1 << 3  # This bit says that SETATTR sets the size.
_MOST = 1 << 17  # bytes in one message


class Operation(IntEnum):
    """Operations of FUSE, from the kernel's include/uapi/linux/fuse.h."""

    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    INTERRUPT = 36
    BATCH_FORGET = 42
    FALLOCATE = 43


_WITHOUT_ANSWER = (Operation.FORGET, Operation.BATCH_FORGET, Operation.INTERRUPT)


def in_own_mounts(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns in a forked process that may mount file systems; skips the test where that is not allowed."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_alone, args=(sender, work, *arguments))
    process.start()
    sender.close()
    try:
        allowed, result = receiver.recv()
    except EOFError:
        process.join()
        pytest.fail(f"the process ended with exit code {process.exitcode}")
    process.join()
    if not allowed:
        pytest.skip("no file system can be mounted here")
    return result


def _alone(told: Any, work: Callable[..., Any], *arguments: Any) -> None:
    if not _own_mounts():
        told.send((False, None))
        return
    try:
        told.send((True, work(*arguments)))
    except Unmountable:
        told.send((False, None))


class Unmountable(Exception):
    """The system does not let this process mount a file system."""


def _own_mounts() -> bool:
    """Let this process see mounts of its own; returns whether it may."""
    if sys.platform != "linux":
        return False
    libc, user, group = ctypes.CDLL(None), os.getuid(), os.getgid()
    if libc.unshare(_NEW_USER | _NEW_MOUNTS):
        return False
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    return libc.mount(b"none", b"/", None, _PRIVATE, None) == 0


def mount_memory(directory: Path, size: str) -> None:
    """Mount a file system in memory of this size."""
    directory.mkdir()
    _mount(b"tmpfs", directory, f"size={size}")


def _mount(kind: bytes, place: Path, options: str) -> None:
    if ctypes.CDLL(None).mount(b"none", os.fsencode(place), kind, 0, options.encode()):
        raise Unmountable


_WORKS, _FAILS, _FORGETS = range(3)


@dataclass(frozen=True)
class FailingDisk:
    """A file whose disk fails, or works again."""

    file: Path
    _state: Any  # shared with the server: one of the three below

    def fail(self, forget: bool = False) -> None:
        """Let the disk fail. forget: the kernel forgets what it has read, even what is mapped."""
        self._state.value = _FORGETS if forget else _FAILS
        self.file.open("rb").close()

    def mend(self) -> None:
        self._state.value = _WORKS


@contextmanager
def failing_disk(file: Path, operation: Operation) -> Iterator[FailingDisk]:
    """A disk under one file that can be made to fail in one operation by an input/output error (EIO).

    The process has to have mounts of its own.
    """
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        raise Unmountable from error
    state, real = multiprocessing.Value("i", _WORKS, lock=False), os.open(file, os.O_RDWR)
    server = os.fork()
    if not server:
        ctypes.CDLL(None).prctl(1, 9)  # it ends with the process that has started it (PR_SET_PDEATHSIG)
        try:
            _serve(device, real, operation, state)
        finally:
            os._exit(0)
    try:
        _mount(b"fuse", file, f"fd={device},rootmode=100644,user_id=0,group_id=0,max_read={_MOST}")
        os.close(device)
        yield FailingDisk(file, state)
        ctypes.CDLL(None).umount2(os.fsencode(file), _DETACH)
    finally:
        os.kill(server, 9)
        os.waitpid(server, 0)
        os.close(real)


def _serve(device: int, real: int, failing: Operation, state: Any) -> None:
    while True:
        try:
            message = os.read(device, _MOST + 4096)
        except OSError as error:
            if error.errno == errno.ENODEV:  # it is unmounted
                return
            continue  # The process that has asked does not wait any more.
        _, operation, unique, *_ = _HEADER.unpack_from(message)
        if operation in _WITHOUT_ANSWER:
            continue
        try:
            if operation == failing and state.value != _WORKS:
                raise OSError(errno.EIO, "")
            code, answer = 0, _answer(operation, message[_HEADER.size :], real, state.value == _FORGETS)
            if operation == Operation.OPEN and state.value == _FORGETS:  # once is enough
                state.value = _FAILS
        except OSError as error:
            code, answer = -(error.errno or errno.EIO), b""
        try:
            os.write(device, _ANSWER.pack(_ANSWER.size + len(answer), code, unique) + answer)
        except OSError:  # nobody waits for it any more
            continue


def _answer(operation: int, body: bytes, real: int, forget: bool) -> bytes:
    match operation:
        case Operation.INIT:  # version 7.31, no reading ahead
            return struct.pack("<IIIIHHIIHHI7I", 7, 31, 0, 0, 8, 8, _MOST, 1, 0, 0, 0, *([0] * 7))
        case Operation.GETATTR:
            return _attributes(real)
        case Operation.SETATTR:
            valid, _, _, size = struct.unpack_from("<IIQQ", body)
            if valid & _SIZE:
                os.ftruncate(real, size)
            return _attributes(real)
        case Operation.OPEN:
            return struct.pack("<QII", 0, 0 if forget else _KEEP_CACHE, 0)
        case Operation.READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            return os.pread(real, size, offset)
        case Operation.WRITE:
            _, offset, size = struct.unpack_from("<QQI", body)
            return struct.pack("<II", os.pwrite(real, body[40 : 40 + size], offset), 0)
        case Operation.FALLOCATE:
            _, offset, size = struct.unpack_from("<QQQ", body)
            os.posix_fallocate(real, offset, size)
            return b""
        case Operation.FSYNC:
            os.fsync(real)
            return b""
        case Operation.RELEASE | Operation.FLUSH:
            return b""
    raise OSError(errno.ENOSYS, "")


def _attributes(real: int) -> bytes:
    found = os.fstat(real)
    nanoseconds = [time % 10**9 for time in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)]
    seconds = [time // 10**9 for time in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)]
    who = (found.st_mode, 1, 0, 0, 0, 4096, 0)
    return struct.pack("<QII", 0, 0, 0) + struct.pack(
        "<6Q3I7I", 1, found.st_size, found.st_blocks, *seconds, *nanoseconds, *who
    )
