"""Every code block of README.md and docs/ is run, or says why not.

The blocks of a document run in order, in one namespace, in a directory of their own, by a Python that turns warnings into errors:

* `python`: run; top-level `await` is allowed.
* `console`: each line that begins with `$ ` is run by the shell, the others are compared with what it printed.
* `text` behind a line `<!-- output -->`: compared with what the block before it printed.
* `toml`, `json`: parsed.
* a block that holds nothing but a snippet (`--8<-- "file"`) shows a file of this project, which has tests of its own.
* `sh` behind `<!-- run -->` or `<!-- test -->` in README.md is what .ci/run types.
* anything behind `<!-- not run: reason -->` is left alone.

`...` in expected output stands for any text.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

RUN = {"python", "console"}
PARSED = {"toml": tomllib.loads, "json": json.loads}
PROSE = {"text"}
"""Languages of blocks that hold no code."""

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+|~~~+) *(?P<language>[\w+-]*)")
MARK = re.compile(r"^ *<!-- (?P<mark>run|test|output|not run: .{10,}) -->$")
SNIPPET = re.compile(r'^--8<-- "(?P<file>[^"]+)"$')

TIMEOUT_S = 240


class Block(NamedTuple):
    """A fenced block: its language, the number (from 1) of the first line inside, its text, the mark above it."""

    language: str
    line: int
    source: str
    mark: str | None

    @property
    def snippet(self) -> str | None:
        match = SNIPPET.match(self.source.strip())
        return match["file"] if match else None

    @property
    def runs(self) -> bool:
        return self.language in RUN and self.mark is None and self.snippet is None


def blocks_of(text: str) -> list[Block]:
    found: list[Block] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        match = FENCE.match(lines[number])
        number += 1
        if match is None:
            continue
        above = MARK.match(lines[number - 2]) if number > 1 else None
        first, body = number, []
        while number < len(lines) and lines[number].strip() != match["fence"]:
            body.append(lines[number].removeprefix(match["indent"]))
            number += 1
        number += 1
        found.append(
            Block(match["language"], first + 1, "".join(f"{line}\n" for line in body), above["mark"] if above else None)
        )
    return found


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def matches(expected: str, printed: str) -> bool:
    pattern = ".*?".join(map(re.escape, expected.strip().split("...")))
    # Tables are padded to their width with blanks nobody sees.
    visible = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    return re.fullmatch(pattern, visible, re.DOTALL) is not None


ALL_BLOCKS = [pytest.param(d, b, id=f"{name_of(d)}:{b.line}") for d in DOCUMENTS for b in blocks_of(d.read_text())]


@pytest.mark.parametrize(("document", "block"), ALL_BLOCKS)
def test_every_block_is_run_or_says_why_not(document, block):
    if block.mark is not None and block.mark.startswith("not run"):
        return
    if block.snippet is not None:
        assert (ROOT / block.snippet).is_file()
    elif block.mark in ("run", "test"):
        assert (document.name, block.language) == ("README.md", "sh"), "only the README's blocks are typed by .ci/run"
    elif block.language in PARSED:
        PARSED[block.language](block.source)
    else:
        known = RUN | PROSE
        assert block.language in known, f"nothing runs {block.language!r}: use one of {known} or mark it as not run"


@pytest.mark.parametrize("document", [pytest.param(d, id=name_of(d)) for d in DOCUMENTS])
def test_blocks_run_and_print_what_the_document_shows(document, tmp_path):
    blocks = blocks_of(document.read_text())
    running = [block for block in blocks if block.runs]
    if not running:
        return
    work = [{"kind": block.language, "line": block.line, "source": block.source} for block in running]
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", Path(__file__).with_name("docs_runner.py"), document],
        input=json.dumps(work),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, f"{name_of(document)} makes Python complain:\n{done.stderr}"
    printed = dict(zip(running, json.loads(done.stdout), strict=True))
    before: Block | None = None
    for block in blocks:
        shown = None
        if block.mark == "output":
            assert before is not None, f"{name_of(document)}:{block.line} shows output of no block"
            shown = printed[before]
        elif block.language == "console" and block.runs:
            shown = printed[block]
        if shown is not None:
            where = f"{name_of(document)}:{block.line}"
            assert matches(block.source, shown), f"{where} shows\n{block.source}\nbut this was printed:\n{shown}"
        before = block if block.runs else before


def test_blocks_are_found_with_their_marks_and_lines():
    text = 'Hello\n\n```python\na = 1\n```\n\n<!-- not run: needs a printer -->\n  ```sh\n  lpr x\n  ```\n```toml\n--8<-- "f"\n```\n'
    python, sh, toml = blocks_of(text)
    assert python == Block("python", 4, "a = 1\n", None)
    assert sh == Block("sh", 9, "lpr x\n", "not run: needs a printer")
    assert toml.snippet == "f"


def test_dots_stand_for_any_text():
    assert matches("one\n...\nfour", "one\ntwo  \nthree\nfour\n")
    assert not matches("one\ntwo", "one\nthree")


def test_the_ci_types_the_readmes_commands():
    """One source of truth: .ci/run takes both commands from the marked blocks, and no other text holds them."""
    marks = [block.mark for block in blocks_of((ROOT / "README.md").read_text())]
    assert marks.count("run") == marks.count("test") == 1
    script = (ROOT / ".ci" / "run").read_text()
    assert "marked run" in script
    assert "marked test" in script
