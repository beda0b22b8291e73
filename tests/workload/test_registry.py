"""What `jaxroute data` says of the registry, and how it fetches from it."""

from __future__ import annotations

import dataclasses
import functools
import io
import urllib.error
from pathlib import Path

import pytest

from jaxroute.commands.data import Data
from jaxroute.errors import InputError
from jaxroute.workload import registry, workload_names
from jaxroute.workload.registry import PUBLIC_TRACES

NAME = "azure2023-conv"
CONTENT = b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch):
    """Answers every download with CONTENT, and expects the given checksum of it."""

    def serve(sha256: str | None) -> None:
        fake = functools.partial(registry.download, opener=lambda address: io.BytesIO(CONTENT))
        monkeypatch.setattr(registry, "download", fake)
        monkeypatch.setitem(registry.PUBLIC_TRACES, NAME, dataclasses.replace(PUBLIC_TRACES[NAME], sha256=sha256))

    return serve


def test_the_listing_names_every_workload_and_keeps_addresses_and_checksums_whole(capsys) -> None:
    Data().run()
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for name in workload_names():
        assert any(line.startswith(f"│ {name} ") for line in lines)
    for trace in PUBLIC_TRACES.values():
        assert trace.address in lines
        assert f"sha256 {trace.sha256}" in lines
        row = next(line for line in lines if line.startswith(f"│ {trace.name} "))
        assert f" {trace.rows:,} " in row


def test_the_listing_marks_a_trace_without_a_known_checksum(served, capsys) -> None:
    served(None)
    Data().run()
    assert capsys.readouterr().out.count("sha256 unverified") == 1


def test_download_says_where_the_file_is_and_that_it_is_unverified(served, tmp_path: Path, capsys) -> None:
    served(None)
    Data(download=NAME, to=tmp_path / "new").run()
    path = tmp_path / "new" / "AzureLLMInferenceTrace_conv.csv"
    assert path.read_bytes() == CONTENT
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{path}: fetched, unverified")
    assert said[1].startswith("licence CC BY 4.0; please cite Patel et al., Splitwise")


def test_download_goes_to_the_present_folder_unless_told(served, tmp_path: Path, monkeypatch) -> None:
    served(None)
    monkeypatch.chdir(tmp_path)
    Data(download=NAME).run()
    assert [path.name for path in tmp_path.iterdir()] == ["AzureLLMInferenceTrace_conv.csv"]


def test_a_wrong_checksum_leaves_nothing(served, tmp_path: Path) -> None:
    served("0" * 64)
    with pytest.raises(InputError, match="nothing was kept"):
        Data(download=NAME, to=tmp_path).run()
    assert list(tmp_path.iterdir()) == []


def test_an_http_error_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    def missing(address: str) -> io.BytesIO:
        raise urllib.error.HTTPError(address, 404, "Not Found", {}, io.BytesIO())  # type: ignore[arg-type]

    with pytest.raises(InputError, match=r"trace azure2023-conv: https://\S+ cannot be fetched \(HTTP Error 404"):
        registry.download(NAME, tmp_path, missing)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="say which trace with --download NAME"):
        Data(to=tmp_path).run()


def test_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown public trace 'azure'; known: azure2023-conv"):
        Data(download="azure", to=tmp_path).run()
