"""Live engines, shared by the tests of a run: a start takes half a minute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jaxroute.testbed import Testbed, TestbedConfig
from live_vllm import needs_vllm, small_profile


@pytest.fixture(scope="session")
def live() -> Iterator[Testbed]:
    """Two engines of `small_profile`, chunked, each with a KV cache of 1,024 tokens."""
    needs_vllm()
    with Testbed(TestbedConfig(profile=small_profile(), instances=2, kv_tokens=1024)) as testbed:
        yield testbed
