"""Structured logs: one JSON object a line, of facts that the router chose; never of what a client wrote."""

from __future__ import annotations

import atexit
import json
import logging
import queue
import sys
import time
from logging.handlers import QueueHandler, QueueListener
from typing import TextIO

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

MOST_WAITING = 100_000
"""Lines that may wait to be written; those beyond are lost, and the next line that is written says how many."""

LONGEST_CLOSE_S = 5.0
"""Seconds that the writing of those may take at the end."""


class JsonFormatter(logging.Formatter):
    """The record's time, level, logger and message, and whatever came in `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update({name: value for name, value in vars(record).items() if name not in _STANDARD})
        if record.exc_info and record.exc_info[0] is not None:
            # The kind and the place, not the text: that may quote what a client sent.
            trace = record.exc_info[2]
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            line["error"] = record.exc_info[0].__name__
            if trace is not None:
                line["at"] = f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}"
        return json.dumps(line, default=str)


class _Waiting(QueueHandler):
    """Puts records in a queue as they are; whoever reads a log slowly must not make the event loop wait."""

    def __init__(self, records: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(records)
        self.lost = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """The record itself: the formatter wants its exception, which the standard library would make a text."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Adds it, or counts it as lost."""
        if self.lost:
            record.lost_before = self.lost
        try:
            self.queue.put_nowait(record)
            self.lost = 0
        except queue.Full:
            self.lost += 1


class Logs:
    """What writes the logs, from a thread of its own, until it is closed."""

    def __init__(self, level: str, stream: TextIO | None = None) -> None:
        """Has all logs written to a stream, standard error by default."""
        writer = logging.StreamHandler(stream or sys.stderr)
        writer.setFormatter(JsonFormatter())
        self._records: queue.Queue[logging.LogRecord] = queue.Queue(MOST_WAITING)
        self._waiting, self._writer = _Waiting(self._records), writer
        self._listener = QueueListener(self._records, writer)
        self._listener.start()
        root = logging.getLogger()
        root.handlers[:] = [self._waiting]
        root.setLevel(level.upper())
        # Whatever ends the process, what was said before is written.
        atexit.register(self.close)

    def close(self) -> None:
        """Writes what still waits, unless nobody reads it; whatever is logged from now on is written at once."""
        atexit.unregister(self.close)
        root = logging.getLogger()
        root.handlers[:] = [self._writer if each is self._waiting else each for each in root.handlers]
        until = time.monotonic() + LONGEST_CLOSE_S
        while self._records.unfinished_tasks:
            if time.monotonic() > until:
                return
            time.sleep(0.001)
        self._listener.stop()

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def set_up_logs(level: str, stream: TextIO | None = None) -> Logs:
    """Has all logs written to a stream, standard error by default; to be closed, or used in a `with`."""
    return Logs(level, stream)
