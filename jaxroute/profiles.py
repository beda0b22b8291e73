"""Step-time profiles: how long one engine step takes on a given machine, and what fits into it.

A profile is one JSON file (`profiles/NAME.json`). The step time of a set of prefills and decodes is

    T = max(W, h + g*(p + n)) + d*C + e*n + f*sum_i(p_i^2) + x*sum_i(p_i*k_i) + u*[p > 0] + v*[n > 0]

in milliseconds, with p_i the new prompt tokens of prefill i, k_i its tokens already in the KV cache, p = sum p_i,
n the decoding sequences and C the sum of the contexts they attend to.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

from jaxroute.errors import InputError

COEFFICIENTS = ("W", "h", "g", "d", "e", "f", "x", "u", "v")
LIMITS = ("kv_blocks", "block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len")
STATUSES = ("measured", "derived", "fitted")


@dataclasses.dataclass(frozen=True)
class StepProfile:
    """One server's step time and limits.

    Attributes:
      name, hardware, model, engine: what it describes.
      coefficients_ms: the nine coefficients, milliseconds, by name.
      frontend_ms: constant added to the TTFT and E2E that a client sees, milliseconds.
      kv_blocks: usable KV cache blocks (vLLM's `num_gpu_blocks` less the one it keeps for itself).
      block_size: tokens in a KV block.
      max_num_seqs: most sequences that run at once.
      max_num_batched_tokens: token budget of one step.
      max_model_len: longest prompt + output, tokens.
      grad1, grad2: the paper's prompt and decode impact gradients, seconds per token.
      provenance: status (measured, derived or fitted), source, date, error.
    """

    name: str
    hardware: str
    model: str
    engine: str
    coefficients_ms: dict[str, float]
    frontend_ms: float
    kv_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    grad1: float
    grad2: float
    provenance: dict[str, str]

    def __post_init__(self) -> None:
        _check_coefficients(self)
        _check_limits(self)
        status = self.provenance.get("status")
        if status not in STATUSES:
            raise InputError(f"profile {self.name}: provenance.status is {status!r}, must be one of {STATUSES}")

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.kv_blocks * self.block_size

    @property
    def shortest_step_ms(self) -> float:
        """A lower bound, reached or nearly so, of the time of any engine step that computes something."""
        c = self.coefficients_ms
        linear = max(c["W"], c["h"] + c["g"])
        return linear + min(c["f"] + c["u"], c["e"] + c["v"] + 2 * c["d"])

    def step_ms(self, prefills: list[tuple[int, int]], decode_contexts: list[int]) -> float:
        """Time of one step, milliseconds.

        Args:
          prefills: (new tokens, tokens already in the KV cache) of each prefill.
          decode_contexts: context length of each decoding sequence, its new token included.
        """
        c = self.coefficients_ms
        p, n = sum(new for new, _ in prefills), len(decode_contexts)
        time = max(c["W"], c["h"] + c["g"] * (p + n)) + c["d"] * sum(decode_contexts) + c["e"] * n
        time += c["f"] * sum(new**2 for new, _ in prefills) + c["x"] * sum(new * kept for new, kept in prefills)
        return time + c["u"] * (p > 0) + c["v"] * (n > 0)

    def with_kv_tokens(self, tokens: int) -> StepProfile:
        """The same server with a KV cache of `tokens` tokens, rounded down to whole blocks."""
        if tokens < self.block_size:
            raise InputError(f"profile {self.name}: {tokens} KV tokens are less than one block of {self.block_size}")
        return dataclasses.replace(self, kv_blocks=tokens // self.block_size)


def available_profiles() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(file.stem for file in _shipped().glob("*.json"))


def load_profile(name_or_file: str) -> StepProfile:
    """Loads a shipped profile by name, or any profile from a JSON file.

    Raises:
      InputError: no such profile, not JSON, or a field that is missing, unknown or out of its range.
    """
    if name_or_file in available_profiles():
        return parse_profile((_shipped() / f"{name_or_file}.json").read_text(), name_or_file)
    path = Path(name_or_file)
    if not path.is_file():
        known = ", ".join(available_profiles())
        raise InputError(f"profile {name_or_file!r}: no such shipped profile and no such file; shipped: {known}")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"profile {path}: cannot be read ({error}); give a readable JSON file") from error
    return parse_profile(text, str(path))


def parse_profile(text: str, place: str) -> StepProfile:
    """Reads a profile from JSON text; `place` names it in errors."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"profile {place}: line {error.lineno}: not JSON ({error.msg})") from error
    if not isinstance(data, dict):
        raise InputError(f"profile {place}: must be a JSON object")
    names = {field.name for field in dataclasses.fields(StepProfile)}
    if missing := sorted(names - set(data)):
        raise InputError(f"profile {place}: missing field {', '.join(missing)}; see profiles/README.md")
    if unknown := sorted(set(data) - names):
        raise InputError(f"profile {place}: unknown field {', '.join(unknown)}; see profiles/README.md")
    for field in ("coefficients_ms", "provenance"):
        if not isinstance(data[field], dict):
            raise InputError(f"profile {place}: {field} must be a JSON object")
    return StepProfile(**data)


def _shipped() -> Path:
    """`profiles/` beside this file in an installed wheel, at the top of the tree in a checkout."""
    here = Path(__file__).parent
    return here / "profiles" if (here / "profiles").is_dir() else here.parent / "profiles"


def _check_coefficients(profile: StepProfile) -> None:
    given = profile.coefficients_ms
    if missing := [name for name in COEFFICIENTS if name not in given]:
        raise InputError(f"profile {profile.name}: coefficients_ms lacks {', '.join(missing)}; 0 is allowed")
    if unknown := sorted(set(given) - set(COEFFICIENTS)):
        raise InputError(f"profile {profile.name}: coefficients_ms has unknown {', '.join(unknown)}")
    times = {f"coefficients_ms.{name}": value for name, value in given.items()}
    for field, value in {
        **times,
        "frontend_ms": profile.frontend_ms,
        "grad1": profile.grad1,
        "grad2": profile.grad2,
    }.items():
        if not _is_number(value) or not math.isfinite(value) or value < 0:
            raise InputError(f"profile {profile.name}: {field} is {value!r}, must be a finite number >= 0")
    if not profile.shortest_step_ms > 0:
        raise InputError(f"profile {profile.name}: allows an engine step of no duration; raise W, h or g above 0")


def _check_limits(profile: StepProfile) -> None:
    for field in LIMITS:
        value = getattr(profile, field)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"profile {profile.name}: {field} is {value!r}, must be a whole number >= 1")
    if profile.max_num_batched_tokens < profile.max_num_seqs:
        raise InputError(
            f"profile {profile.name}: max_num_batched_tokens ({profile.max_num_batched_tokens}) is below "
            f"max_num_seqs ({profile.max_num_seqs}), which vLLM refuses; raise it or lower max_num_seqs"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
