from __future__ import annotations

import subprocess
import sys

CODE = """
import asyncio, sys
from jaxroute.profiles import load_profile
from jaxroute.serve.decide import Brain
from jaxroute.serve.decision_log import read_log
from jaxroute.serve.dispatcher import Dispatcher
from jaxroute.serve.scrape import parse_metrics
from jaxroute.serve.types import Incoming, Metrics, Server

async def main():
    made = Dispatcher(Brain([Server("a", load_profile("a100-80gb-llama2-7b"))]))
    made.scraped("a", Metrics(0, 0, 0.0))
    print((await made.place(Incoming("1", 10, 20))).decision.decided_by)

asyncio.run(main())
print([name for name in ("jax", "flax", "aiohttp") if name in sys.modules])
"""


def test_the_brain_decides_by_the_shipped_policy_without_jax_and_without_sockets() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["policy", "[]"]
