"""The router's own log: written by a thread of its own, whole, in order, and without holding anybody up."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from jaxroute.serve import log
from jaxroute.serve.log import set_up_logs

LOG = logging.getLogger("jaxroute.test")


class Slow(io.StringIO):
    """A stream that nobody reads until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()

    def write(self, text: str) -> int:
        self.open.wait(10)
        return super().write(text)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_lines_are_whole_and_in_order_with_what_came_in_extra() -> None:
    stream = io.StringIO()
    with set_up_logs("info", stream):
        for number in range(500):
            LOG.info("said", extra={"number": number})
        LOG.debug("not said")
    assert [line["number"] for line in lines(stream)] == list(range(500))
    first = lines(stream)[0]
    assert (first["event"], first["level"], first["logger"]) == ("said", "info", "jaxroute.test")
    assert first["time"] == pytest.approx(time.time(), abs=60)


def test_an_error_names_its_kind_and_place_and_not_its_text() -> None:
    stream = io.StringIO()
    with set_up_logs("info", stream):
        try:
            raise ValueError("PRIVATE")
        except ValueError:
            LOG.exception("failed")
    [line] = lines(stream)
    assert line["error"] == "ValueError"
    assert line["at"].startswith("test_an_error_names_its_kind")
    assert "PRIVATE" not in stream.getvalue()


def test_whoever_logs_does_not_wait_for_whoever_reads() -> None:
    stream = Slow()
    logs = set_up_logs("info", stream)
    start = time.monotonic()
    for number in range(100):
        LOG.info("said", extra={"number": number})
    assert time.monotonic() - start < 1
    assert stream.getvalue() == ""
    stream.open.set()
    logs.close()
    assert len(lines(stream)) == 100


def test_lines_beyond_the_most_are_lost_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "MOST_WAITING", 10)
    stream = Slow()
    logs = set_up_logs("info", stream)
    for number in range(50):
        LOG.info("said", extra={"number": number})
    stream.open.set()
    while logs._records.unfinished_tasks:
        time.sleep(0.001)
    LOG.info("after", extra={"number": 50})
    logs.close()
    *written, last = lines(stream)
    assert 10 <= len(written) <= 11
    assert last["lost_before"] == 50 - len(written)


def test_a_reader_that_hangs_does_not_keep_the_router_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "LONGEST_CLOSE_S", 0.1)
    stream = Slow()
    logs = set_up_logs("info", stream)
    LOG.info("said")
    start = time.monotonic()
    logs.close()
    assert time.monotonic() - start < 5
    stream.open.set()


def test_what_was_said_before_the_process_ends_is_written() -> None:
    code = """if True:
        import logging
        from jaxroute.serve.log import set_up_logs
        set_up_logs("info")
        for number in range(200):
            logging.getLogger("x").info("said")
        raise SystemExit(3)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 200


def test_what_is_said_after_the_end_is_written_at_once() -> None:
    stream = io.StringIO()
    with set_up_logs("info", stream):
        pass
    LOG.info("late")
    assert [line["event"] for line in lines(stream)] == ["late"]
