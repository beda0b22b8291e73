"""The picker's protocol, spoken by a gRPC client in Envoy's place."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue, Metadata
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    HttpTrailers,
    ProcessingRequest,
    ProtocolConfiguration,
)
from envoy.service.ext_proc.v3.external_processor_pb2_grpc import ExternalProcessorStub
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from epp.gateway import picking
from fake_vllm import FakeVllm, chunk, event_of
from jaxroute.epp import protocol
from jaxroute.epp.picker import HEALTH_S, Picker
from jaxroute.serve.config import Limits
from serve.harness import completion, until

PATH = "/v1/completions"


@dataclasses.dataclass
class Talk:
    """One stream: says what Envoy says, and hears the answers."""

    call: Any

    async def say(self, **message: Any) -> None:
        await self.call.write(ProcessingRequest(**message))

    async def hear(self) -> Any:
        async with asyncio.timeout(5):
            return await self.call.read()

    async def ask(self, **message: Any) -> Any:
        await self.say(**message)
        return await self.hear()

    async def end(self) -> None:
        await self.call.done_writing()
        assert await self.hear() is grpc.aio.EOF


@asynccontextmanager
async def talking(servers: Any = 2, **changes: Any) -> AsyncIterator[tuple[Picker, list[FakeVllm], Any]]:
    """A picker, its servers, and what opens a stream."""
    async with (
        picking(servers, **changes) as (picker, fleet),
        grpc.aio.insecure_channel(f"127.0.0.1:{picker.port}") as channel,
    ):
        yield picker, fleet, lambda: Talk(ExternalProcessorStub(channel).Process())


def headers(end: bool = False, path: str = PATH, **more: str) -> HttpHeaders:
    values = {":method": "POST", ":path": path, "content-type": "application/json", **more}
    pairs = [HeaderValue(key=key.replace("_", "-"), raw_value=value.encode()) for key, value in values.items()]
    return HttpHeaders(headers=HeaderMap(headers=pairs), end_of_stream=end)


def answer_headers(status: int = 200, kind: str = "text/event-stream", *, end: bool = False) -> HttpHeaders:
    pairs = [(":status", str(status)), ("content-type", kind)]
    return HttpHeaders(
        headers=HeaderMap(headers=[HeaderValue(key=key, raw_value=value.encode()) for key, value in pairs]),
        end_of_stream=end,
    )


def modes(request: int, response: int = protocol.STREAMED, *, early: bool = False) -> ProtocolConfiguration:
    return ProtocolConfiguration(
        request_body_mode=request, response_body_mode=response, send_body_without_waiting_for_header_response=early
    )


def subset(*endpoints: str, as_text: bool = False) -> Metadata:
    values = ListValue(values=[Value(string_value=each) for each in endpoints])
    value = Value(string_value=",".join(endpoints)) if as_text else Value(list_value=values)
    return Metadata(filter_metadata={protocol.SUBSET_NAMESPACE: Struct(fields={protocol.SUBSET: value})})


def body(tokens: int = 4, **fields: Any) -> bytes:
    return json.dumps(completion(tokens, **fields)).encode()


def token(text: str = "w") -> bytes:
    return event_of(chunk("m", text, False, False, None, with_usage=False))


def destination(answer: Any) -> list[str]:
    """Where an answer sends the request: header and metadata must agree."""
    common = getattr(answer, answer.WhichOneof("response")).response
    found = {each.header.key: each.header.raw_value.decode() for each in common.header_mutation.set_headers}
    assert dict(answer.dynamic_metadata["envoy.lb"].items()) == {protocol.DESTINATION: found[protocol.DESTINATION]}
    return found[protocol.DESTINATION].split(",")


def ends(fleet: list[FakeVllm]) -> list[str]:
    return [f"127.0.0.1:{server.port}" for server in fleet]


def in_flight(picker: Picker) -> int:
    return sum(each.in_flight for each in picker.core.dispatcher.status())


async def start(talk: Talk, metadata: Metadata | None = None, **fields: Any) -> Any:
    """A request with a buffered body, up to its destination."""
    first = {"request_headers": headers(), "protocol_config": modes(protocol.BUFFERED), "metadata_context": metadata}
    assert (await talk.ask(**first)).WhichOneof("response") == "request_headers"
    return await talk.ask(request_body=HttpBody(body=body(**fields), end_of_stream=True))


async def test_a_buffered_body_is_answered_with_the_destination_and_further_choices() -> None:
    async with talking(4) as (picker, fleet, open_):
        talk = open_()
        answer = await start(talk)
        assert answer.WhichOneof("response") == "request_body"
        # Two tries beside the first, by default.
        assert destination(answer)[0] == ends(fleet)[0]
        assert len(set(destination(answer))) == 3
        assert in_flight(picker) == 1
        await talk.end()
        assert in_flight(picker) == 0


async def test_a_request_without_a_body_is_placed_by_its_headers() -> None:
    async with talking() as (_, fleet, open_):
        answer = await open_().ask(request_headers=headers(True, "/v1/models", **{":method": "GET"}))
        assert destination(answer) == ends(fleet)


async def test_a_body_that_is_not_shown_is_estimated_by_its_length() -> None:
    async with talking() as (picker, fleet, open_):
        first = headers(content_length="4000")
        answer = await open_().ask(request_headers=first, protocol_config=modes(protocol.NONE, protocol.NONE))
        assert destination(answer) == ends(fleet)
        assert picker.core.dispatcher.status()[0].in_flight_tokens == 1000


@pytest.mark.parametrize("trailers", [False, True])
async def test_in_full_duplex_the_body_follows_the_destination_unchanged(trailers: bool) -> None:
    async with talking() as (_, fleet, open_):
        talk, data = open_(), body(prompt="x" * 200_000)
        await talk.say(request_headers=headers(), protocol_config=modes(protocol.FULL_DUPLEX, protocol.FULL_DUPLEX))
        half = len(data) // 2
        await talk.say(request_body=HttpBody(body=data[:half]))
        await talk.say(request_body=HttpBody(body=data[half:], end_of_stream=not trailers))
        if trailers:
            await talk.say(request_trailers=HttpTrailers())
        answer = await talk.hear()
        assert answer.WhichOneof("response") == "request_headers"
        assert destination(answer) == ends(fleet)
        pieces = []
        while sum(len(piece.body) for piece in pieces) < len(data):
            pieces.append((await talk.hear()).request_body.response.body_mutation.streamed_response)
        assert b"".join(piece.body for piece in pieces) == data
        assert max(len(piece.body) for piece in pieces) < 2**16
        assert [piece.end_of_stream for piece in pieces] == [False] * (len(pieces) - 1) + [not trailers]
        if trailers:
            assert (await talk.hear()).WhichOneof("response") == "request_trailers"


async def test_a_streamed_body_that_comes_early_is_read_before_the_decision() -> None:
    async with talking() as (picker, fleet, open_):
        talk, data = open_(), body(prompt="x" * 4000)
        await talk.say(request_headers=headers(), protocol_config=modes(protocol.STREAMED, early=True))
        await talk.say(request_body=HttpBody(body=data[:2000]))
        await talk.say(request_body=HttpBody(body=data[2000:], end_of_stream=True))
        assert destination(await talk.hear()) == ends(fleet)
        assert [(await talk.hear()).WhichOneof("response") for _ in range(2)] == ["request_body"] * 2
        assert picker.core.dispatcher.status()[0].in_flight_tokens == 1000


@pytest.mark.parametrize("as_text", [False, True])
async def test_only_endpoints_of_the_subset_are_chosen(as_text: bool) -> None:
    async with talking(4) as (_, fleet, open_):
        allowed = [ends(fleet)[3], ends(fleet)[1]]
        for _ in range(4):
            answer = await start(open_(), subset(*allowed, "10.9.9.9:1", as_text=as_text))
            assert set(destination(answer)) == set(allowed)


async def test_a_subset_by_address_alone_allows_all_its_ports() -> None:
    async with talking(2) as (_, fleet, open_):
        assert destination(await start(open_(), subset("127.0.0.1"))) == ends(fleet)


async def test_a_subset_without_a_backend_is_a_503() -> None:
    async with talking() as (picker, _, open_):
        answer = (await start(open_(), subset("10.9.9.9:8000"))).immediate_response
        assert (answer.status.code, json.loads(answer.body)["error"]["code"]) == (503, "no-backend")
        assert answer.details == "jaxroute_no-backend"
        assert picker.core.dispatcher.brain.counts["refused no-backend"] == 1


async def test_a_request_that_waits_too_long_is_a_429_that_says_when_to_come_again() -> None:
    async with talking(1, max_in_flight=1, limits=Limits(wait_s=0.3)) as (_, _, open_):
        await start(first := open_())
        talk = open_()
        held = await start(talk)
        # Held: Envoy is asked for more time first.
        assert held.override_message_timeout.seconds == 2
        answer = (await talk.hear()).immediate_response
        assert answer.status.code == 429
        set_headers = {each.header.key: each.header.raw_value for each in answer.headers.set_headers}
        assert int(set_headers["retry-after"]) >= 1
        assert json.loads(answer.body)["error"]["code"] == "wait-limit"
        await first.end()


@pytest.mark.parametrize("how", ["half-close", "cancel"])
async def test_a_held_request_whose_stream_ends_leaves_the_queue(how: str) -> None:
    async with talking(1, max_in_flight=1) as (picker, _, open_):
        first, second = open_(), open_()
        await start(first)
        assert (await start(second)).HasField("override_message_timeout")
        assert picker.core.dispatcher.queue_length == 1
        if how == "cancel":
            second.call.cancel()
        else:
            await second.call.done_writing()
        await until(lambda: picker.core.dispatcher.queue_length == 0)
        assert in_flight(picker) == 1
        await first.end()
        assert in_flight(picker) == 0
        assert picker.core.dispatcher.brain.counts["ended aborted"] == 1


async def test_a_held_request_goes_once_there_is_room() -> None:
    async with talking(1, max_in_flight=1) as (_, fleet, open_):
        first, second = open_(), open_()
        await start(first)
        assert (await start(second)).HasField("override_message_timeout")
        await first.end()
        assert destination(await second.hear()) == ends(fleet)
        answer = await second.ask(response_headers=answer_headers(end=True))
        assert answer.WhichOneof("response") == "response_headers"
        await second.end()


async def test_first_token_tokens_and_end_are_seen_in_a_stream() -> None:
    async with talking(1) as (picker, _, open_):
        talk, brain = open_(), picker.core.dispatcher.brain
        await start(talk, stream=True)
        load = brain.tracker.loads[0]
        assert load.awaiting_first == 1
        await talk.ask(response_headers=answer_headers())
        before = load.in_flight_tokens
        answer = await talk.ask(response_body=HttpBody(body=token()))
        assert answer.WhichOneof("response") == "response_body"
        await until(lambda: load.awaiting_first == 0)
        # One and a half events.
        await talk.ask(response_body=HttpBody(body=token() + token()[:20]))
        assert load.in_flight_tokens == before + 2
        await talk.ask(response_body=HttpBody(body=token()[20:] + b"data: [DONE]\n\n", end_of_stream=True))
        assert in_flight(picker) == 0
        assert brain.counts["ended finished"] == 1
        await talk.end()
        assert brain.counts["ended aborted"] == 0


async def test_in_full_duplex_the_answer_is_sent_back_as_it_came() -> None:
    async with talking(1) as (_, _, open_):
        talk = open_()
        await talk.say(request_headers=headers(), protocol_config=modes(protocol.FULL_DUPLEX, protocol.FULL_DUPLEX))
        await talk.ask(request_body=HttpBody(body=body(stream=True), end_of_stream=True))
        await talk.hear()
        await talk.ask(response_headers=answer_headers())
        half = token()[:15]
        piece = (await talk.ask(response_body=HttpBody(body=half))).response_body.response.body_mutation
        assert (piece.streamed_response.body, piece.streamed_response.end_of_stream) == (half, False)
        last = (await talk.ask(response_body=HttpBody(end_of_stream=True))).response_body.response.body_mutation
        assert (last.streamed_response.body, last.streamed_response.end_of_stream) == (b"", True)


async def test_an_answer_whose_body_is_not_shown_ends_with_the_stream() -> None:
    async with talking(1) as (picker, _, open_):
        talk = open_()
        await talk.ask(request_headers=headers(), protocol_config=modes(protocol.BUFFERED, protocol.NONE))
        await talk.ask(request_body=HttpBody(body=body(stream=True), end_of_stream=True))
        await talk.ask(response_headers=answer_headers())
        assert in_flight(picker) == 1
        await talk.end()
        assert picker.core.dispatcher.brain.counts["ended finished"] == 1


@pytest.mark.parametrize("by", ["metadata", "attribute"])
async def test_an_answer_from_another_endpoint_moves_the_request_there(by: str) -> None:
    async with talking(2) as (picker, fleet, open_):
        talk, served = open_(), ends(fleet)[1]
        assert destination(await start(talk))[0] == ends(fleet)[0]
        fields = {"upstream.address": Value(string_value=served)}
        said: dict[str, Any] = {"attributes": {"envoy.filters.http.ext_proc": Struct(fields=fields)}}
        if by == "metadata":
            named = Struct(fields={protocol.SERVED: Value(string_value=served)})
            said = {"metadata_context": Metadata(filter_metadata={"envoy.lb": named})}
        answer = await talk.ask(response_headers=answer_headers(), **said)
        named_header = answer.response_headers.response.header_mutation.set_headers[0].header
        assert (named_header.key, named_header.raw_value) == ("x-jaxroute-backend", b"server-1")
        assert [each.in_flight for each in picker.core.dispatcher.status()] == [0, 1]
        await talk.end()


@pytest.mark.parametrize(("data", "status"), [(b"{", 400), (b"[]", 400), (b"x" * 5000, 413)])
async def test_a_bad_body_is_refused_in_openai_words(data: bytes, status: int) -> None:
    async with talking(1, limits=Limits(body_bytes=4096)) as (picker, _, open_):
        talk = open_()
        await talk.ask(request_headers=headers(), protocol_config=modes(protocol.BUFFERED))
        answer = (await talk.ask(request_body=HttpBody(body=data, end_of_stream=True))).immediate_response
        assert answer.status.code == status
        assert "x" * 10 not in answer.body.decode()
        assert picker.core.dispatcher.brain.counts["dispatched"] == 0


async def test_bodies_under_way_are_bounded_together_and_forgotten_once_placed() -> None:
    limits = Limits(held_bytes=6000)
    async with talking(1, limits=limits) as (picker, _, open_):
        large = HttpBody(body=body(prompt="x" * 4000), end_of_stream=False)
        first, second = open_(), open_()
        for talk in (first, second):
            await talk.say(request_headers=headers(), protocol_config=modes(protocol.FULL_DUPLEX))
            await talk.say(request_body=large)
            # Streams overtake each other.
            await until(lambda: picker.desk.held.bytes > 0)
        answer = await second.hear()
        assert json.loads(answer.immediate_response.body)["error"]["code"] == "bodies"
        await first.say(request_body=HttpBody(end_of_stream=True))
        assert (await first.hear()).WhichOneof("response") == "request_headers"
        await start(open_(), prompt="x" * 4000)


async def test_a_key_is_asked_for_and_the_backend_gets_its_own(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("client-key\n")
    async with talking(1, keys_file=tmp_path / "keys") as (picker, _, open_):
        next(iter(picker.core.backends)).key = "backend-key"
        first = {"request_headers": headers(True), "protocol_config": modes(protocol.BUFFERED)}
        assert (await open_().ask(**first)).immediate_response.status.code == 401
        asked = headers(True, "/v1/models", **{":method": "GET"}, authorization="Bearer client-key")
        answer = await open_().ask(request_headers=asked)
        assert answer.WhichOneof("response") == "request_headers", answer
        mutation = answer.request_headers.response.header_mutation
        found = {each.header.key: each.header.raw_value for each in mutation.set_headers}
        assert found["authorization"] == b"Bearer backend-key"


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/llm/v1/unload_lora_adapter?x=1"])
async def test_what_changes_one_server_alone_is_not_passed(path: str) -> None:
    async with talking() as (_, _, open_):
        answer = await open_().ask(request_headers=headers(path=path), protocol_config=modes(protocol.BUFFERED))
        assert answer.immediate_response.status.code == 404


async def test_health_says_whether_there_is_a_backend() -> None:
    async with (
        picking(1) as (picker, fleet),
        grpc.aio.insecure_channel(f"127.0.0.1:{picker.port}") as channel,
    ):
        stub = HealthStub(channel)

        async def states() -> list[int]:
            names = ("", "liveness", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor")
            return [(await stub.Check(HealthCheckRequest(service=name))).status for name in names]

        up, down = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
        assert await states() == [up] * 4
        fleet[0].healthy = False
        await until(lambda: not picker.core.backends.any_open)
        await asyncio.sleep(2 * HEALTH_S)
        assert await states() == [down, up, down, down]


async def test_a_drain_lets_requests_finish_and_takes_no_more() -> None:
    async with talking(1) as (picker, _, open_):
        talk = open_()
        await start(talk, stream=True)
        draining = asyncio.create_task(picker.drain())
        await asyncio.sleep(0.1)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await start(open_())
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert not draining.done()
        await talk.ask(response_headers=answer_headers(end=True))
        await talk.end()
        assert await draining


async def test_a_named_host_is_looked_up() -> None:
    async with picking(1) as (picker, fleet):
        port = fleet[0].port
        backend = next(iter(picker.core.backends))
        backend.config = dataclasses.replace(backend.config, url=f"http://localhost:{port}")
        await picker.desk.endpoints.refresh()
        assert picker.desk.endpoints.of("server-0") == f"127.0.0.1:{port}"
        assert picker.desk.endpoints.name_of(f"127.0.0.1:{port}") == "server-0"
