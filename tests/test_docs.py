"""The documentation: its code blocks are collected, the site is strict and needs nothing online."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, check=False
    )


def examples(page: Path) -> int:
    """Python blocks of a page; of a block that shows a session, its inputs."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return sum(max(1, len(re.findall(r"^>>> ", block, re.MULTILINE))) for block in blocks)


def test_every_python_block_is_a_test() -> None:
    pages = [ROOT / "README.md", *PAGES]
    written = {page.relative_to(ROOT).as_posix(): examples(page) for page in pages}
    listed = run("pytest", "--collect-only", "-q", "README.md", "docs").stdout
    collected = {page: len(re.findall(rf"^{page}::line", listed, re.MULTILINE)) for page in written}
    assert collected == written
    assert written["README.md"] >= 1
    assert written["docs/tutorial.md"] >= 20


@pytest.mark.parametrize("page", ["lengths", "regularize", "streaming", "initial", "record"])
def test_every_feature_has_an_example_that_runs_and_says_what_it_costs(page: str) -> None:
    head, *sections = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8").split("\n## ")
    for section in sections or [head]:
        assert "```python\n" in section, section[:60]
        assert "**Cost**: " in section, section[:60]


def test_a_wrong_block_fails(tmp_path: Path) -> None:
    shutil.copy(ROOT / "conftest.py", tmp_path)
    blocks = [f"```python\nassert 1 + 1 == {n}\n```\n" for n in (2, 3)]
    (tmp_path / "README.md").write_text("\n".join(blocks), encoding="utf-8")
    tested = run("pytest", "-rfp", "README.md", cwd=tmp_path)
    assert tested.returncode == 1
    told = re.findall(r"^(PASSED|FAILED) README.md::line:(\d+),", tested.stdout, re.MULTILINE)
    assert sorted(told) == [("FAILED", "5"), ("PASSED", "1")]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """What the site is made of, in a folder to spoil; stubs stand for figures, which take time."""
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("docs", "src"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "figures")
        )
    (tmp_path / "docs/figures").mkdir()
    for page in PAGES:
        for figure in re.findall(r'--8<-- "(\w+\.svg)"', page.read_text(encoding="utf-8")):
            (tmp_path / "docs/figures" / figure).write_text("<svg></svg>", encoding="utf-8")
    return tmp_path


def test_site_builds_and_loads_nothing_from_elsewhere(site: Path) -> None:
    build = run("mkdocs", "build", "--strict", cwd=site)
    assert build.returncode == 0, build.stderr
    pages = list((site / "site").rglob("*.html"))
    assert len(pages) >= len(PAGES)
    loads = r'<(?:script|img|iframe)[^>]*\bsrc="?(?:https?:)?//|<link[^>]*\bhref="?(?:https?:)?//'
    for page in pages:
        assert not re.search(loads, page.read_text(encoding="utf-8")), page.name


WRONG = {  # what is written at the end of a page, and what is then said
    "\n[nowhere](nowhere.md)\n": "a link 'nowhere.md', but the target is not found",
    "\n[no such heading](tutorial.md#no-such-heading)\n": "an anchor '#no-such-heading'",
    "\n[nobody][flexrnn.fromscratch.Nobody]\n": "target 'flexrnn.fromscratch.Nobody'",
}


def test_a_broken_site_fails(site: Path) -> None:
    """Each of four faults is one of the warnings for which a strict build fails."""
    with (site / "docs/index.md").open("a", encoding="utf-8") as page:
        page.writelines(WRONG)
    (site / "docs/lost.md").write_text("# Lost", encoding="utf-8")  # a page nobody lists
    build = run("mkdocs", "build", "--strict", cwd=site)
    assert build.returncode != 0
    assert "Aborted with 4 warnings in strict mode!" in build.stderr + build.stdout
    for said in [*WRONG.values(), 'not included in the "nav" configuration:\n  - lost.md']:
        assert build.stderr.count(said) == 1, said


def test_a_missing_figure_fails(site: Path) -> None:
    figure = next((site / "docs/figures").iterdir())
    figure.unlink()
    build = run("mkdocs", "build", "--strict", cwd=site)
    assert build.returncode != 0
    assert figure.name in build.stderr
