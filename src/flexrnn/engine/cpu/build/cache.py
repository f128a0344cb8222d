"""Compiled libraries on disk: a private folder, whole files only, and not too many of them.

An entry is a library, or an object that is linked with several, and behind it a digest of its bytes
and its key, at which neither loader nor linker looks. It is written under another name and then
renamed, so that an entry is whole or not there; where a disk or a crash has eaten a part of one,
the digest says so.
"""

import atexit
import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from flexrnn.engine.step import CannotRunError

MAXIMUM_BYTES = 256 * 2**20  # an LSTM in one dtype takes about 50 KiB
_DIGEST_BYTES = hashlib.sha256().digest_size
_BUILD = "build-"
_ABANDONED_SECONDS = 3600.0


def folder() -> Path:
    """The folder of this user's libraries: FLEXRNN_CACHE_DIR, else XDG_CACHE_HOME/flexrnn.

    Raises:
        CannotRunError: another user could have written to it.
        OSError: it cannot be made.
    """
    outer = _named() or _of_user()
    outer.mkdir(mode=0o700, parents=True, exist_ok=True)
    inner = outer.resolve(strict=True) / "cpu"
    inner.mkdir(mode=0o700, exist_ok=True)
    check_private(inner)
    return inner


def _named() -> Path | None:
    name = os.environ.get("FLEXRNN_CACHE_DIR")
    return Path(name) if name else None


def _of_user() -> Path:
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if caches.is_absolute():  # as the XDG specification says
        return caches / "flexrnn"
    try:
        return Path.home() / ".cache" / "flexrnn"
    except RuntimeError as error:
        raise FileNotFoundError(str(error)) from None


def check_private(path: Path) -> None:
    """Refuse a folder that another user could put a library into.

    Raises:
        CannotRunError: it is a link, is not the user's, or others may write to it or above it.
        OSError: it is not there.
    """
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise CannotRunError(f"{path}: expected a folder, got a link or a file")
    if found.st_uid != os.geteuid():
        raise CannotRunError(
            f"{path}: expected a folder of user {os.geteuid()}, got one of user {found.st_uid}; "
            "FLEXRNN_CACHE_DIR can name another"
        )
    if (mode := stat.S_IMODE(found.st_mode)) & 0o077:
        raise CannotRunError(
            f"{path}: expected a folder that is closed to others (mode 700), got mode {mode:o}"
        )
    for above in path.parents:
        mode = above.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise CannotRunError(
                f"{path}: expected no folder above it that everybody may write to, got {above}"
            )


@contextlib.contextmanager
def building(where: Path) -> Iterator[Path]:
    """A new folder in a cache's folder, in which a library is made; it is removed afterwards."""
    made = Path(tempfile.mkdtemp(prefix=_BUILD, dir=where))  # mode 0700
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def put(where: Path, key: str, library: Path) -> Path:
    """Make a library or an object that lies in a build folder an entry."""
    content = library.read_bytes()
    library.write_bytes(content + _digest(key, content))
    entry = where / f"{key}{library.suffix}"
    library.replace(entry)
    sweep(where, keep=entry)
    return entry


def get(where: Path, key: str, suffix: str = ".so") -> Path | None:
    """The entry of a key where it is there and whole; what is left of another is removed."""
    entry = where / f"{key}{suffix}"
    try:
        content = entry.read_bytes()
        if content[-_DIGEST_BYTES:] != _digest(key, content[:-_DIGEST_BYTES]):
            entry.unlink(missing_ok=True)
            return None
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):
        os.utime(entry)  # `sweep` removes what has not been used for the longest time
    return entry


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + content).digest()


def sweep(where: Path, keep: Path, maximum: int = MAXIMUM_BYTES) -> None:
    """Remove the oldest entries beyond a number of bytes, and what ended compilations left."""
    entries = []
    with os.scandir(where) as there:  # thousands: half the time of as many paths
        for entry in there:
            with contextlib.suppress(FileNotFoundError):  # another process sweeps, too
                name, found = entry.name, entry.stat(follow_symlinks=False)
                if name.startswith(_BUILD) and found.st_mtime < time.time() - _ABANDONED_SECONDS:
                    shutil.rmtree(entry.path, ignore_errors=True)
                elif name.endswith((".so", ".o")):
                    entries.append((name != keep.name, -found.st_mtime, found.st_size, name))
    total = 0
    for _, _, size, name in sorted(entries):  # `keep`, then the newest
        total += size
        if total > maximum and name != keep.name:
            with contextlib.suppress(OSError):
                (where / name).unlink()


def check_room(where: Path) -> None:
    """Write as much as a compilation does.

    Raises:
        OSError: the disk is full.
    """
    with tempfile.TemporaryFile(dir=where) as file:
        file.write(bytes(2**20))


_temporary: dict[int, Path] = {}  # process -> its own folder


def temporary() -> Path:
    """A private folder that goes with this process, for when there is no other.

    Raises:
        OSError: there is no room for it.
    """
    process = os.getpid()  # what fork copies belongs to the parent
    if process not in _temporary:
        made = Path(tempfile.mkdtemp(prefix="flexrnn-"))
        if _temporary.setdefault(process, made) is made:
            atexit.register(_remove, process)
        else:  # another thread was faster
            made.rmdir()
    return _temporary[process]


def _remove(process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(_temporary[process], ignore_errors=True)
