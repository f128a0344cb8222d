"""Entries on disk: where they are, who may have written them, how many stay."""

import os
import re
from pathlib import Path

import pytest

from flexrnn.engine.cpu.build import cache
from flexrnn.engine.step import CannotRunError


def made(folder: Path, size: int = 100) -> Path:
    path = folder / "step.so"
    path.write_bytes(os.urandom(size))
    return path


def test_the_folder_is_named_or_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXRNN_CACHE_DIR", str(tmp_path / "named"))
    assert cache.folder() == tmp_path / "named" / "cpu"
    monkeypatch.delenv("FLEXRNN_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "flexrnn" / "cpu"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache.folder() == tmp_path / "home" / ".cache" / "flexrnn" / "cpu"
    assert cache.folder().stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o755, 0o701])
def test_a_folder_that_is_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(0o700)
    cache.check_private(tmp_path)
    tmp_path.chmod(mode)
    message = (
        f"{tmp_path}: expected a folder that is closed to others (mode 700), got mode {mode:o}"
    )
    with pytest.raises(CannotRunError, match=f"^{re.escape(message)}$"):
        cache.check_private(tmp_path)


def test_a_link_in_its_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "cpu").symlink_to(target)
    monkeypatch.setenv("FLEXRNN_CACHE_DIR", str(tmp_path / "outer"))
    with pytest.raises(CannotRunError, match=r"cpu: expected a folder, got a link or a file$"):
        cache.folder()


def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    with pytest.raises(CannotRunError, match=f"expected a folder of user {own + 1}, got .* {own};"):
        cache.check_private(tmp_path)


def test_a_folder_above_that_everybody_may_write_to_is_refused(tmp_path: Path) -> None:
    inner = tmp_path / "open" / "inner"
    inner.mkdir(parents=True, mode=0o700)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(CannotRunError, match="no folder above it that everybody may write to"):
        cache.check_private(inner)
    (tmp_path / "open").chmod(0o1777)  # as /tmp: others cannot rename what is ours
    cache.check_private(inner)


def test_an_entry_is_what_was_put_there_or_nothing(tmp_path: Path) -> None:
    assert cache.get(tmp_path, "key") is None
    with cache.building(tmp_path) as folder:
        content = made(folder).read_bytes()
        entry = cache.put(tmp_path, "key", folder / "step.so")
    assert not folder.exists()
    assert cache.get(tmp_path, "key") == entry
    assert entry.read_bytes().startswith(content)
    entry.rename(tmp_path / "other.so")
    assert cache.get(tmp_path, "key") is None
    assert cache.get(tmp_path, "other") is None  # that digest is of another key
    assert not list(tmp_path.iterdir())


def test_a_compilation_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with cache.building(tmp_path) as folder:
            made(folder)
            raise CannotRunError

    with pytest.raises(CannotRunError):
        fail()
    assert not list(tmp_path.iterdir())


def test_what_was_not_used_for_the_longest_time_goes_first(tmp_path: Path) -> None:
    for age, name in enumerate("abcd"):
        path = tmp_path / f"{name}.so"
        path.write_bytes(bytes(1000))
        os.utime(path, (2e9 - age, 2e9 - age))
    cache.sweep(tmp_path, keep=tmp_path / "d.so", maximum=2500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.so", "d.so"]
    cache.sweep(tmp_path, keep=tmp_path / "d.so", maximum=10)
    assert [path.name for path in tmp_path.iterdir()] == ["d.so"]


def test_use_makes_an_entry_young(tmp_path: Path) -> None:
    with cache.building(tmp_path) as folder:
        made(folder)
        entry = cache.put(tmp_path, "key", folder / "step.so")
    os.utime(entry, (1000, 1000))
    cache.get(tmp_path, "key")
    assert entry.stat().st_mtime > 1e9
