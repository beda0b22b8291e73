"""Settings shared by all tests: two CPU devices, strict dtype and rank promotion, a persistent compile cache."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A shell that starts the tests in the background has them, and the commands that they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).parents[2] / "shared"

MOST_MAPPINGS = 20_000
"""Memory mappings beyond which compiled programs are dropped. Each takes some, and a process that has 65,530, which is
Linux's limit, is aborted."""


@pytest.fixture(scope="module", autouse=True)
def bounded_mappings() -> Iterator[None]:
    """Drops the compiled programs of earlier test files when they have become many; the cache on disk keeps them."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def shared_data() -> Path:
    """The real traces and prompts, which only a development checkout has beside it."""
    if not (SHARED / "data").is_dir():
        pytest.skip("../shared/data is not here: real traces are not shipped with the repository")
    return SHARED / "data"
