"""Texts of libraries, and scripts that stand for a compiler."""

from pathlib import Path

SEVEN = 'extern "C" __attribute__((visibility("default"))) int answer() { return 7; }\n'
EIGHT = SEVEN.replace("7", "8")
GXX = 'exec g++ "$@"'


def become(script: Path, body: str) -> None:
    script.write_text(f"#!/bin/sh\necho x >> {script}.calls\n{body}\n")
    script.chmod(0o700)


def calls(script: Path) -> int:
    return len(Path(f"{script}.calls").read_text().splitlines())


def entries(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())
