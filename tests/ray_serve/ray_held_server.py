"""The server of the comparison: its engine's steps go to a trace of its own."""

from __future__ import annotations

import os
from typing import Any

from jaxroute.serve.ray_llm import JaxrouteLLMServer


class HeldServer(JaxrouteLLMServer):
    """A server of `ray.serve.llm` whose engine is one of the testbed's."""

    async def __init__(self, *args: Any, **options: Any) -> None:
        os.environ["JAXROUTE_TRACE"] = os.environ["JAXROUTE_TRACE"].replace("{pid}", str(os.getpid()))
        await super().__init__(*args, **options)
