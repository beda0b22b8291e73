"""Stands in for vllm-router: takes the options that matter of it and passes everything to its workers by turns."""

from __future__ import annotations

import argparse
import itertools

import aiohttp
from aiohttp import web


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker-urls", nargs="+", required=True)
    parser.add_argument("--policy", choices=("round_robin", "power_of_two", "cache_aware"), required=True)
    parser.add_argument("--port", type=int, required=True)
    asked, _ = parser.parse_known_args()
    turns = itertools.cycle(asked.worker_urls)

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.headers.get("X-Jaxroute-Predicted-Tokens"):
            return web.Response(status=400, text="predictions are not for this router")
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method, next(turns) + request.path, data=await request.read()) as answer,
        ):
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    web.run_app(app, host="127.0.0.1", port=asked.port, print=None)


if __name__ == "__main__":
    main()
