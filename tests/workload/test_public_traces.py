from __future__ import annotations

import dataclasses
import hashlib
import http.client
import io
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from jaxroute.errors import InputError
from jaxroute.workload import registry, trace_csv
from jaxroute.workload.registry import PUBLIC_TRACES, download

NAME = "azure2023-conv"
FILE = "AzureLLMInferenceTrace_conv.csv"
CONTENT = b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
CHECKSUM = hashlib.sha256(CONTENT).hexdigest()


class Answer(io.BytesIO):
    """A fake HTTP answer that may announce a length and may break off."""

    def __init__(self, content: bytes, headers: dict[str, str] | None = None, breaks: Exception | None = None) -> None:
        super().__init__(content)
        self.headers = headers or {}
        self.breaks = breaks

    def read(self, size: int | None = -1) -> bytes:
        chunk = super().read(size)
        if not chunk and self.breaks is not None:
            raise self.breaks
        return chunk


@pytest.fixture
def expect(monkeypatch: pytest.MonkeyPatch):
    """Sets the checksum that the registry expects."""

    def set_checksum(sha256: str | None) -> None:
        monkeypatch.setitem(registry.PUBLIC_TRACES, NAME, dataclasses.replace(PUBLIC_TRACES[NAME], sha256=sha256))

    return set_checksum


def test_download_verifies_and_keeps_the_file(tmp_path: Path, expect) -> None:
    expect(CHECKSUM)
    asked = []
    result = download(NAME, tmp_path / "new", lambda address: asked.append(address) or Answer(CONTENT))
    assert asked == [PUBLIC_TRACES[NAME].address]
    assert result.path == tmp_path / "new" / FILE
    assert result.path.read_bytes() == CONTENT
    assert list(result.path.parent.iterdir()) == [result.path]
    assert "fetched and verified" in result.text


def test_download_without_a_known_checksum_says_so_and_gives_it(tmp_path: Path, expect) -> None:
    expect(None)
    result = download(NAME, tmp_path, lambda _: Answer(CONTENT, {"Content-Length": str(len(CONTENT))}))
    assert "unverified" in result.text
    assert CHECKSUM in result.text


def test_download_through_urllib_from_a_file_address(tmp_path: Path, expect) -> None:
    expect(CHECKSUM)
    (tmp_path / "source").write_bytes(CONTENT)
    address = (tmp_path / "source").as_uri()
    result = download(NAME, tmp_path / "out", lambda _: urllib.request.urlopen(address))
    assert result.path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(CONTENT + b"x"), r"sha256 [0-9a-f]{64}, expected [0-9a-f]{64}; nothing was kept"),
        (Answer(CONTENT, {"Content-Length": "999"}), r"only \d+ of 999 bytes"),
        (Answer(CONTENT, breaks=ConnectionResetError("reset")), r"cannot be fetched \(reset\)"),
        (Answer(CONTENT, breaks=http.client.IncompleteRead(b"")), r"cannot be fetched \(IncompleteRead"),
        (urllib.error.URLError("Name or service not known"), r"cannot be fetched .*not known.*check the network"),
        (TimeoutError("timed out"), r"cannot be fetched \(timed out\)"),
    ],
)
def test_a_failed_download_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path, expect, answer, expected) -> None:
    expect(CHECKSUM)
    (tmp_path / FILE).write_text("old")

    def opener(address: str):
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(InputError, match=expected):
        download(NAME, tmp_path, opener)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(FILE, "old")]


def test_an_interrupted_download_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        download(NAME, tmp_path, lambda _: Answer(CONTENT, breaks=KeyboardInterrupt()))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/.*cannot be written .*choose another folder"):
        download(NAME, tmp_path / "file", lambda _: Answer(CONTENT))


def test_unknown_trace_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown public trace 'azure'; known: azure2023-conv, azure2023-code"):
        download("azure", tmp_path)


def test_registered_traces_are_pinned_and_of_a_format_that_we_read() -> None:
    formats = {f"{form.name} CSV" for form in trace_csv.CSV_FORMATS} | {"Mooncake JSON lines"}
    for name, trace in PUBLIC_TRACES.items():
        assert trace.name == name
        assert re.fullmatch(r"https://\S+/([0-9a-f]{40}|releases/download/v[\d.]+)/\S+", trace.address)
        assert trace.format in formats
        assert trace.rows > 0
        assert trace.sha256 is None or re.fullmatch("[0-9a-f]{64}", trace.sha256)
        assert trace.licence
        assert trace.citation
