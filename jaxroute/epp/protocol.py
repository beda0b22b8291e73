"""Messages of `envoy.service.ext_proc.v3`, read and built; names by the Gateway API Inference Extension."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    BodyMutation,
    BodyResponse,
    CommonResponse,
    HeaderMutation,
    HeadersResponse,
    ImmediateResponse,
    ProcessingResponse,
    StreamedBodyResponse,
    TrailersResponse,
)
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct, Value

from jaxroute.serve.answers import error_body

DESTINATION = "x-gateway-destination-endpoint"
"""Header, and key of the metadata, that names where the request goes: `IP:PORT`, with commas for further choices."""

LOAD_BALANCING = "envoy.lb"
SERVED = "x-gateway-destination-endpoint-served"
"""Key within `envoy.lb`, by which a gateway says who has answered."""

SUBSET_NAMESPACE, SUBSET = "envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset"

NONE = ProcessingMode.NONE
STREAMED = ProcessingMode.STREAMED
BUFFERED = ProcessingMode.BUFFERED
BUFFERED_PARTIAL = ProcessingMode.BUFFERED_PARTIAL
FULL_DUPLEX = ProcessingMode.FULL_DUPLEX_STREAMED

PIECE_BYTES = 62_000
"""Of a body in one message of full duplex, below the 64 KiB that Envoy takes."""

CONTINUE = {
    "request_headers": ProcessingResponse(request_headers=HeadersResponse()),
    "request_body": ProcessingResponse(request_body=BodyResponse()),
    "request_trailers": ProcessingResponse(request_trailers=TrailersResponse()),
    "response_headers": ProcessingResponse(response_headers=HeadersResponse()),
    "response_body": ProcessingResponse(response_body=BodyResponse()),
    "response_trailers": ProcessingResponse(response_trailers=TrailersResponse()),
}
"""What lets each kind of message pass as it is."""


def headers_of(message: Any) -> dict[str, str]:
    """The headers of a message, by their names in lower case; the last one, where there are several of one name."""
    pairs = message.headers.headers
    return {each.key: each.raw_value.decode("utf-8", "surrogateescape") or each.value for each in pairs}


def subset_of(request: Any) -> frozenset[str] | None:
    """The endpoints that alone may be chosen, `IP:PORT` or `IP`; None where all may."""
    value = _metadata(request, SUBSET_NAMESPACE, SUBSET)
    if value is None:
        return None
    if value.HasField("list_value"):
        texts = [each.string_value for each in value.list_value.values]
    else:
        texts = value.string_value.split(",")
    return frozenset(text.strip() for text in texts if text.strip())


def served_of(request: Any) -> str | None:
    """The endpoint that has answered, by the gateway's metadata or Envoy's attribute `upstream.address`, if either."""
    value = _metadata(request, LOAD_BALANCING, SERVED)
    if value is not None and value.string_value:
        return str(value.string_value)
    for attributes in request.attributes.values():
        if "upstream.address" in attributes.fields:
            return attributes.fields["upstream.address"].string_value or None
    return None


def destined(
    kind: str, endpoints: Sequence[str], headers: Iterable[tuple[str, str]] = (), remove: Iterable[str] = ()
) -> Any:
    """Sends the request to an endpoint.

    Args:
      kind: the message that is answered, `request_headers` or `request_body`.
      endpoints: `IP:PORT`, the first choice first.
      headers: further ones to set.
      remove: those to take away.
    """
    text = ",".join(endpoints)
    mutation = HeaderMutation(
        set_headers=[_header(DESTINATION, text), *(_header(name, value) for name, value in headers)],
        remove_headers=remove,
    )
    common = CommonResponse(header_mutation=mutation)
    response = HeadersResponse if kind == "request_headers" else BodyResponse
    inner = Struct(fields={DESTINATION: Value(string_value=text)})
    metadata = Struct(fields={LOAD_BALANCING: Value(struct_value=inner)})
    return ProcessingResponse(**{kind: response(response=common)}, dynamic_metadata=metadata)


def with_header(name: str, value: str) -> Any:
    """Lets the headers of an answer pass, with one more."""
    common = CommonResponse(header_mutation=HeaderMutation(set_headers=[_header(name, value)]))
    return ProcessingResponse(response_headers=HeadersResponse(response=common))


def passed_on(kind: str, data: bytes, *, end: bool) -> Iterator[Any]:
    """A body in full duplex, where it goes on only if it is sent back."""
    for start in range(0, max(len(data), 1), PIECE_BYTES):
        last = start + PIECE_BYTES >= len(data)
        piece = StreamedBodyResponse(body=data[start : start + PIECE_BYTES], end_of_stream=end and last)
        common = CommonResponse(body_mutation=BodyMutation(streamed_response=piece))
        yield ProcessingResponse(**{kind: BodyResponse(response=common)})


def refused(status: int, text: str, code: str, retry_after_s: float | None = None) -> Any:
    """Ends the request with an error in OpenAI's words."""
    set_headers = [_header("content-type", "application/json")]
    if retry_after_s is not None:
        set_headers.append(_header("retry-after", str(max(1, math.ceil(retry_after_s)))))
    return ProcessingResponse(
        immediate_response=ImmediateResponse(
            status=HttpStatus(code=status),
            headers=HeaderMutation(set_headers=set_headers),
            body=error_body(status, text, code),
            details=f"jaxroute_{code}",
        )
    )


def more_time(seconds: float) -> Any:
    """Asks Envoy to wait longer for the answer to the present message."""
    return ProcessingResponse(override_message_timeout=Duration(seconds=math.ceil(seconds)))


def _header(name: str, value: str) -> Any:
    return HeaderValueOption(
        header=HeaderValue(key=name, raw_value=value.encode()),
        append_action=HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )


def _metadata(request: Any, namespace: str, key: str) -> Any:
    spaces = request.metadata_context.filter_metadata
    if namespace not in spaces or key not in spaces[namespace].fields:
        return None
    return spaces[namespace].fields[key]
