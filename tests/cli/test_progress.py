"""The progress bar: on a terminal, for what takes long, and nowhere else."""

from __future__ import annotations

import pytest

from dstorage.cli import progress
from dstorage.cli.progress import Meter


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE_S", 0.0)


def steps(count=3):
    with Meter("counting", count) as meter:
        for _ in range(count):
            meter.advance()


def test_a_terminal_sees_what_takes_long(at_once, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    steps()
    output, errors = capsys.readouterr()
    assert "counting" in errors
    assert output == ""


def test_a_terminal_does_not_see_what_is_over_soon(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    steps()
    assert capsys.readouterr() == ("", "")


def test_what_is_no_terminal_sees_nothing(at_once, monkeypatch, capsys):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    steps()
    assert capsys.readouterr() == ("", "")


def test_bytes_are_counted_as_bytes(at_once, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Meter("storing", 4_000_000, unit="bytes") as meter:
        meter.advance(2_000_000)
        meter.advance(2_000_000)
    assert "MB" in capsys.readouterr().err
