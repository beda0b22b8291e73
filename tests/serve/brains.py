"""Fleets and requests for the tests of the proxy's brain."""

from __future__ import annotations

from jaxroute.profiles import load_profile
from jaxroute.serve.decide import Brain, BrainSettings
from jaxroute.serve.types import Incoming, Metrics, Placement, Refused, Server

PROFILE = load_profile("a100-80gb-llama2-7b")
IDLE = Metrics(running=0, waiting=0, kv_usage=0.0)


def servers(count: int = 3, max_in_flight: int | None = None) -> list[Server]:
    return [Server(name, PROFILE, max_in_flight) for name in "abcdefghijklmnop"[:count]]


def brain(policy: str = "fewest-outstanding-tokens", count: int = 3, **settings) -> Brain:
    """A brain whose servers have just been scraped, at time 0."""
    made = Brain(servers(count), BrainSettings(policy=policy, **settings))
    scrape(made, 0.0)
    return made


def scrape(made: Brain, now: float, metrics: Metrics = IDLE) -> None:
    for load in made.tracker.loads:
        made.scraped(load.server.name, metrics, now)


def request(id: str = "r", prompt_tokens: int = 100, predicted_tokens: int = 50, **fields) -> Incoming:
    return Incoming(id, prompt_tokens, predicted_tokens, predicted_upper=2 * predicted_tokens, **fields)


def place(made: Brain, asked: Incoming, now: float, exclude: frozenset[str] = frozenset()) -> Placement:
    """The placement of the only request that waits."""
    made.arrive(asked, now, exclude)
    [(id, outcome)] = made.decide(now)
    assert id == asked.id
    assert isinstance(outcome, Placement)
    return outcome


def only(outcomes: list[tuple[str, Placement | Refused]]) -> Placement | Refused:
    [(_, outcome)] = outcomes
    return outcome
