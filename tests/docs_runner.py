"""Runs the code blocks of one document, in order, in one namespace, in the current directory; a program for test_docs.

Standard input: JSON, a list of {"kind": "python" | "console", "line": first line of the code, "source": text}.
Standard output: JSON, a list with what each block printed. A block that fails ends the program with a traceback whose file
and line are the document's.

Top-level `await` works as in `python -m asyncio`: one event loop lives through the whole document.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
import linecache
import logging
import os
import subprocess
import sys
from pathlib import Path

SHELL_TIMEOUT_S = 120


def run(document: str, blocks: list[dict[str, object]]) -> list[str]:
    namespace: dict[str, object] = {"__name__": "__main__"}
    linecache.getlines(document)  # while the relative name still means the document
    # A busy machine is no fault of the document; a filter, because documents make event loops of their own as well.
    logging.getLogger("asyncio").addFilter(lambda record: not record.getMessage().startswith("Executing "))
    printed = []
    with asyncio.Runner() as runner:
        for block in blocks:
            source, line = str(block["source"]), int(str(block["line"]))
            if block["kind"] == "console":
                printed.append(shell(source, f"{document}:{line}"))
                continue
            # Padded, so that a traceback's lines are the document's.
            code = compile("\n" * (line - 1) + source, document, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                result = eval(code, namespace)
                if inspect.iscoroutine(result):
                    runner.run(result)
            printed.append(out.getvalue())
    return printed


def shell(source: str, where: str) -> str:
    """Run each line that starts with `$ `, and give back the block as it would look on a terminal."""
    environment = dict(os.environ, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", COLUMNS="120")
    shown = []
    for line in source.splitlines():
        if line.startswith("$ "):
            done = subprocess.run(
                line[2:],
                shell=True,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=SHELL_TIMEOUT_S,
            )
            shown += [line, done.stdout.rstrip("\n")]
            # A document shows a failing command by `; echo $?` or `|| ...`, so that its reader sees it too.
            if done.returncode:
                raise SystemExit(f"{where}: `{line[2:]}` ended with {done.returncode}: {done.stdout}")
    return "".join(f"{text}\n" for text in shown if text)


if __name__ == "__main__":
    answer = run(sys.argv[1], json.load(sys.stdin))
    json.dump(answer, sys.stdout)
