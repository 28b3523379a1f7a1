"""Progress: whole lines every ten seconds where nobody sees a bar, a bar on a terminal."""

import io
import sys

import pytest
from tqdm import tqdm

from unified_lift.progress import Bar, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def shown(monkeypatch, stream, clock, *, seconds, **looks):
    """Return what a stream gets of that many steps of a second each."""
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("read", quiet=False, then="read: points", **looks) as move:
        for done in range(1, seconds + 1):
            clock[0] += 1.0
            move(done, seconds)
    return stream.getvalue()


def test_a_file_gets_a_line_every_ten_seconds_and_one_at_the_end(monkeypatch, clock):
    text = shown(monkeypatch, io.StringIO(), clock, seconds=35, unit=" views")
    heads = [line.split(",")[0] for line in text.split("\n")]
    assert heads == ["read: 29 % (10 of 35)", "read: 57 % (20 of 35)", "read: 86 % (30 of 35)", *heads[3:]]
    assert heads[3:] == ["read: points: 100 % (35 of 35)", ""]
    assert "\r" not in text
    assert text.startswith("read: 29 % (10 of 35), 00:10 gone, 00:25 left,  1.00 views/s\n")


def test_what_is_short_has_one_line_and_what_leaves_nothing_behind_none_in_the_end(monkeypatch, clock):
    assert shown(monkeypatch, io.StringIO(), clock, seconds=9).startswith("read: points: 100 % (9 of 9), 00:09 gone")
    assert shown(monkeypatch, io.StringIO(), clock, seconds=9, leave=False) == ""
    assert shown(monkeypatch, io.StringIO(), clock, seconds=12, leave=False).count("\n") == 1


def test_notes_between_lines_stay_whole(monkeypatch, clock):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Bar(total=2, desc="geometry") as bar:
        clock[0] += 11
        bar.update()
        tqdm.write("note: all is well", file=stream)
        bar.set_postfix({"loss": "0.5"}, refresh=False)
        bar.update()
    first, note, last = stream.getvalue().splitlines()
    assert (first[:25], note) == ("geometry: 50 % (1 of 2), ", "note: all is well")
    assert last.endswith(", loss=0.5")


def test_a_terminal_gets_a_bar_unless_it_is_a_dumb_one(monkeypatch, clock):
    monkeypatch.setenv("TERM", "xterm")
    assert "\rread:  50%|" in shown(monkeypatch, Terminal(), clock, seconds=2)
    monkeypatch.setenv("TERM", "dumb")
    assert "\r" not in shown(monkeypatch, Terminal(), clock, seconds=2)
