"""Public request traces: where they are, what is in them, and how to fetch one."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import http.client
import os
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from jaxroute.errors import InputError

CHUNK_BYTES = 1 << 20
OPEN = functools.partial(urllib.request.urlopen, timeout=60)

AZURE = "https://raw.githubusercontent.com/Azure/AzurePublicDataset/790921015d50dd6aae7f7e47f39ba0e235ad6b08/data/"
MOONCAKE = "https://raw.githubusercontent.com/kvcache-ai/Mooncake/3cca71daccf2a7afb8fe3f0295358f70e3a69fdb/FAST25-release/traces/"
BURSTGPT = "https://github.com/HPMLL/BurstGPT/releases/download/v2.0/"
SPLITWISE = "Patel et al., Splitwise: Efficient generative LLM inference using phase splitting, ISCA 2024"
MOONCAKE_PAPER = "Qin et al., Mooncake: A KVCache-centric architecture for serving LLM chatbots, FAST 2025"
BURSTGPT_PAPER = (
    "Wang et al., BurstGPT: A real-world workload dataset to optimize LLM serving systems, arXiv 2401.17644"
)


@dataclasses.dataclass(frozen=True)
class PublicTrace:
    """A trace that anyone can fetch.

    Attributes:
      name: what we call it.
      what: what it recorded.
      address: https address of the file, at a fixed commit or release.
      licence: as its owner states it.
      citation: what its owner asks to cite.
      format: as `read_trace` recognises it.
      rows: requests in it, failed ones included.
      sha256: checksum of the file, hexadecimal; None: nobody has verified one.
    """

    name: str
    what: str
    address: str
    licence: str
    citation: str
    format: str
    rows: int
    sha256: str | None

    @property
    def file_name(self) -> str:
        """The last part of the address."""
        return self.address.rsplit("/", 1)[1]


@dataclasses.dataclass(frozen=True)
class Download:
    """A fetched trace.

    Attributes:
      trace: which one.
      path: where it lies now.
      sha256: the checksum of what came.
    """

    trace: PublicTrace
    path: Path
    sha256: str

    @property
    def text(self) -> str:
        """What was fetched, and whether its checksum was verified, in one line."""
        if self.trace.sha256 is None:
            return f"{self.path}: fetched, unverified (no checksum is known for it); its sha256 is {self.sha256}"
        return f"{self.path}: fetched and verified (sha256 {self.sha256})"


# The checksums are those that at least two other public projects each pin for the same file; that of BurstGPT is also
# in the pointer file of its own repository.
PUBLIC_TRACES = {
    trace.name: trace
    for trace in (
        PublicTrace(
            name="azure2023-conv",
            what="an hour of a production chat service in Azure, November 2023",
            address=AZURE + "AzureLLMInferenceTrace_conv.csv",
            licence="CC BY 4.0",
            citation=SPLITWISE,
            format="Azure LLM CSV",
            rows=19366,
            sha256="2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
        ),
        PublicTrace(
            name="azure2023-code",
            what="an hour of a production code completion service in Azure, November 2023",
            address=AZURE + "AzureLLMInferenceTrace_code.csv",
            licence="CC BY 4.0",
            citation=SPLITWISE,
            format="Azure LLM CSV",
            rows=8819,
            sha256="54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
        ),
        PublicTrace(
            name="burstgpt-1",
            what="two months of ChatGPT and GPT-4 requests through Azure OpenAI, by the second, failures included",
            address=BURSTGPT + "BurstGPT_1.csv",
            licence="CC BY 4.0",
            citation=BURSTGPT_PAPER,
            format="BurstGPT CSV",
            rows=1429737,
            sha256="4bb3783693d0a435686fbfc885615d2349bd067239079fa4b749f2e679e12122",
        ),
        PublicTrace(
            name="mooncake-conversation",
            what="an hour of a production chat service with long contexts (Kimi), arrivals to 3 seconds",
            address=MOONCAKE + "conversation_trace.jsonl",
            licence="Apache-2.0",
            citation=MOONCAKE_PAPER,
            format="Mooncake JSON lines",
            rows=12031,
            sha256="b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df",
        ),
        PublicTrace(
            name="mooncake-synthetic",
            what="long-context public data sets with Poisson arrivals",
            address=MOONCAKE + "synthetic_trace.jsonl",
            licence="Apache-2.0",
            citation=MOONCAKE_PAPER,
            format="Mooncake JSON lines",
            rows=3993,
            sha256="bd070915a98fc0ed264d7cfef2ce746002eb3076a695ec31ba2674c0111ec131",
        ),
        PublicTrace(
            name="mooncake-toolagent",
            what="an hour of production tool and agent calls with long shared prompts (Kimi)",
            address=MOONCAKE + "toolagent_trace.jsonl",
            licence="Apache-2.0",
            citation=MOONCAKE_PAPER,
            format="Mooncake JSON lines",
            rows=23608,
            sha256="48a2db1a13d3bc05e6330140c64f604ba366df20d3c9e128b5c35a01c1fa5f71",
        ),
    )
}


def download(name: str, folder: str | Path, opener: Callable[[str], Any] = OPEN) -> Download:
    """Fetches a public trace into a folder; a file of that name there is replaced once the new one is complete.

    Args:
      name: one of `PUBLIC_TRACES`.
      folder: where to put it; made if it is not there.
      opener: opens an address: a context manager that reads bytes and may have `headers`.

    Raises:
      InputError: unknown trace, no network, an incomplete answer, a wrong checksum, or a folder that cannot be
        written; no partial file is left.
    """
    if name not in PUBLIC_TRACES:
        raise InputError(f"unknown public trace {name!r}; known: {', '.join(PUBLIC_TRACES)}")
    trace = PUBLIC_TRACES[name]
    target = Path(folder) / trace.file_name
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _removed_at_the_end(partial), partial.open("wb") as file:
            checksum = _fetch(trace, file, opener)
            file.flush()
            os.replace(partial, target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error}); choose another folder or free space") from error
    return Download(trace, target, checksum)


@contextlib.contextmanager
def _removed_at_the_end(path: Path) -> Iterator[None]:
    """Removes a file at the end, unless it was renamed."""
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _fetch(trace: PublicTrace, file: IO[bytes], opener: Callable[[str], Any]) -> str:
    """Copies the trace into a file and verifies it; returns its sha256."""
    digest = hashlib.sha256()
    for chunk in _chunks(trace, opener):
        digest.update(chunk)
        file.write(chunk)
    checksum = digest.hexdigest()
    if trace.sha256 not in (None, checksum):
        raise InputError(
            f"trace {trace.name}: what {trace.address} sent has sha256 {checksum}, expected {trace.sha256}; "
            "nothing was kept: try again, and if it stays so the file has changed at its source"
        )
    return checksum


def _chunks(trace: PublicTrace, opener: Callable[[str], Any]) -> Iterator[bytes]:
    """What the address sends, checked against the length that it announces."""
    received = 0
    try:
        with opener(trace.address) as answer:
            announced = getattr(answer, "headers", {}).get("Content-Length")
            while chunk := answer.read(CHUNK_BYTES):
                received += len(chunk)
                yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"trace {trace.name}: {trace.address} cannot be fetched ({error}); check the network, or fetch the file "
            "with another machine and give its path as the workload"
        ) from error
    if announced is not None and received != int(announced):
        raise InputError(
            f"trace {trace.name}: only {received} of {announced} bytes came from {trace.address}; "
            "nothing was kept: try again"
        )
