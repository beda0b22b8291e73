"""A whole configuration of Envoy: one listener, the backends as a cluster, and the picker beside them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from jaxroute.epp.protocol import DESTINATION, LOAD_BALANCING, SUBSET_NAMESPACE
from jaxroute.errors import InputError
from jaxroute.serve.config import BackendConfig, Listener, ServeConfig

MOST_REQUESTS = 100_000
"""In place of Envoy's limits of 1,024 for each cluster: the picker and the engines bound the load."""

ANSWER_TIMEOUT = "1s"
"""That the picker has to say anything; one that holds a request asks for more."""


def envoy_config(
    config: ServeConfig,
    listen: Listener,
    *,
    fail_open: bool = True,
    full_duplex: bool = False,
    token_events: bool = True,
) -> dict[str, Any]:
    """The configuration, as YAML or JSON has it.

    The picker's choice goes by metadata, which no client can write, and only a backend of the cluster can be chosen.

    Args:
      config: the picker's; its backends become the cluster.
      listen: where Envoy listens.
      fail_open: whether requests go to whichever backend has fewest when the picker does not answer; otherwise they are
        a 503. Not with full duplex: Envoy has given the body away by then.
      full_duplex: as the Gateway API Inference Extension has it: bodies go through the picker instead of beside it.

      token_events: whether the picker sees every piece of an answer; without, it estimates how far answers are.

    Raises:
      InputError: a backend that this cannot be written for.
    """
    if full_duplex and fail_open:
        raise InputError("full duplex: Envoy cannot go on without a picker that has the body; fail closed")
    if full_duplex and not token_events:
        raise InputError("full duplex: both bodies pass the picker; leave out --no-token-events")
    processor = _processor(config, fail_open, full_duplex, token_events)
    picker = config.listen
    clusters = [_servers(config), _cluster("jaxroute", "STRICT_DNS", [(picker.host, picker.port)], http2=True)]
    return {"static_resources": {"listeners": [_listener(listen, config, processor)], "clusters": clusters}}


def _listener(listen: Listener, config: ServeConfig, processor: dict[str, Any]) -> dict[str, Any]:
    manager = {
        "@type": _type("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "inference",
        "codec_type": "AUTO",
        "normalize_path": True,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [_route(config)]}]},
        "http_filters": [
            {"name": "envoy.filters.http.ext_proc", "typed_config": processor},
            {"name": "envoy.filters.http.router", "typed_config": {"@type": _type("filters.http.router.v3.Router")}},
        ],
    }
    network = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    return {
        "name": "inference",
        "address": _address(listen.host, listen.port),
        "per_connection_buffer_limit_bytes": config.limits.body_bytes,
        "filter_chains": [{"filters": [network]}],
    }


def _route(config: ServeConfig) -> dict[str, Any]:
    retries = {
        "retry_on": "5xx,retriable-status-codes",
        "retriable_status_codes": [429],
        "num_retries": config.limits.retries,
    }
    # A stream may take as long as it wants to; one that is silent may not.
    action = {"cluster": "servers", "timeout": "0s", "idle_timeout": _seconds(config.timeouts.answer_s)}
    return {"match": {"prefix": "/v1/"}, "route": {**action, "retry_policy": retries}}


def _processor(config: ServeConfig, fail_open: bool, full_duplex: bool, token_events: bool) -> dict[str, Any]:
    mode = {"request_header_mode": "SEND", "response_header_mode": "SEND"}
    if full_duplex:
        bodies = dict.fromkeys(("request_body_mode", "response_body_mode"), "FULL_DUPLEX_STREAMED")
        mode |= {**bodies, "request_trailer_mode": "SEND", "response_trailer_mode": "SEND"}
    else:
        # Buffered, so that servers get the body with its length, not in chunks; and where answers are not shown, Envoy
        # tells of their end by that of the exchange, which it would not after a streamed body.
        mode |= {"request_body_mode": "BUFFERED", "response_body_mode": "STREAMED" if token_events else "NONE"}
    return {
        "@type": _type("filters.http.ext_proc.v3.ExternalProcessor"),
        "grpc_service": {"envoy_grpc": {"cluster_name": "jaxroute"}},
        "failure_mode_allow": fail_open,
        "status_on_error": {"code": "ServiceUnavailable"},
        "processing_mode": mode,
        "message_timeout": ANSWER_TIMEOUT,
        "max_message_timeout": _seconds(config.limits.wait_s + 5),
        "response_attributes": ["upstream.address"],
        "metadata_options": {
            "forwarding_namespaces": {"untyped": [SUBSET_NAMESPACE, LOAD_BALANCING]},
            "receiving_namespaces": {"untyped": [LOAD_BALANCING]},
        },
    }


def _servers(config: ServeConfig) -> dict[str, Any]:
    if tls := next((each.name for each in config.backends if each.url.startswith("https")), None):
        raise InputError(f"backend {tls}: is reached by TLS; write its cluster yourself, with a transport_socket")
    addresses = [_of(backend) for backend in config.backends]
    numeric = all(host.replace(".", "").isdigit() or ":" in host for host, _ in addresses)
    override = {
        "@type": _type("load_balancing_policies.override_host.v3.OverrideHost"),
        "override_host_sources": [{"metadata": {"key": LOAD_BALANCING, "path": [{"key": DESTINATION}]}}],
        "fallback_policy": {
            "policies": [
                {
                    "typed_extension_config": {
                        "name": "envoy.load_balancing_policies.least_request",
                        "typed_config": {"@type": _type("load_balancing_policies.least_request.v3.LeastRequest")},
                    }
                }
            ]
        },
    }
    name = "envoy.load_balancing_policies.override_host"
    policy = {"policies": [{"typed_extension_config": {"name": name, "typed_config": override}}]}
    kind = "STATIC" if numeric else "STRICT_DNS"
    return {**_cluster("servers", kind, addresses, http2=False), "load_balancing_policy": policy}


def _cluster(name: str, kind: str, addresses: list[tuple[str, int]], *, http2: bool) -> dict[str, Any]:
    endpoints = [{"endpoint": {"address": _address(host, port)}} for host, port in addresses]
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), MOST_REQUESTS)
    options: dict[str, Any] = {"http2_protocol_options": {}} if http2 else {"http_protocol_options": {}}
    return {
        "name": name,
        "type": kind,
        "connect_timeout": "2s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        "circuit_breakers": {"thresholds": [limits]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": options,
            }
        },
    }


def _of(backend: BackendConfig) -> tuple[str, int]:
    parts = urlsplit(backend.url)
    return parts.hostname or "", parts.port or 80


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}s"


def _type(name: str) -> str:
    return f"type.googleapis.com/envoy.extensions.{name}"
