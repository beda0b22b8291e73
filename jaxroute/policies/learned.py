"""A trained policy in the simulator: the network of a policy file as a `Policy` in jax."""

from __future__ import annotations

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from jaxroute.observation import Observed, count_columns, observe
from jaxroute.policies.choose import first_of_highest
from jaxroute.policies.folder import digest
from jaxroute.policies.network import SCORERS, FeatureScales
from jaxroute.policies.policy_file import PolicyFile
from jaxroute.policies.protocol import Stateless
from jaxroute.types import RouterView


@dataclasses.dataclass(frozen=True)
class LearnedPolicy(Stateless):
    """Takes the action with the highest logit; the weights are constants of the compiled program.

    Two are equal where their names and the contents of their files are. Make one by `LearnedPolicy.of`.

    Attributes:
      name: what it is called.
      digest: of the file's content.
      file: the trained policy.
    """

    name: str
    digest: str
    file: PolicyFile = dataclasses.field(repr=False, compare=False)

    @classmethod
    def of(cls, file: PolicyFile, name: str | None = None) -> LearnedPolicy:
        """The policy of a file, by default under the file's own name."""
        return cls(file.name if name is None else name, digest(file), file)

    @property
    def router_order(self) -> str:
        """Order of the router queue that it was trained with, as `Fleet` names it."""
        return self.file.router_order

    @property
    def ageing(self) -> float:
        """Predicted tokens that a second of waiting is worth in that order."""
        return self.file.ageing

    @property
    def spf_edges(self) -> tuple[int, ...]:
        """To which that order rounds predicted tokens down; empty where they count as they are."""
        return self.file.spf_edges

    @property
    def buckets(self) -> int:
        """B, the length buckets by which its view must count requests; 0 for none."""
        return len(self.file.bucket_edges)

    @property
    def instances(self) -> int:
        """I of the fleets that it serves; 0 for fleets of any size."""
        return self.file.network.instances

    def choose(self, view: RouterView, key: jax.Array) -> jax.Array:
        """See `Stateless.choose`."""
        del key
        return first_of_highest(self.logits(observe(view, self.file.observation, jnp)))

    def logits(self, observed: Observed) -> jax.Array:
        """[..., I + 1] float32, those of masked actions the least finite float32."""
        file = self.file
        scales = FeatureScales(
            global_mean=jnp.asarray(file.scales.router_mean),
            global_std=jnp.asarray(file.scales.router_std),
            instance_mean=jnp.asarray(file.scales.instance_mean),
            instance_std=jnp.asarray(file.scales.instance_std),
        )
        scorer = SCORERS[file.network.form](
            hidden=file.network.hidden,
            holds=file.network.holds,
            count_columns=count_columns(file.observation, len(file.bucket_edges)),
        )
        weights = unflatten_dict({name: jnp.asarray(array) for name, array in file.weights.items()}, sep="/")
        return cast(jax.Array, scorer.apply({"params": weights}, observed, scales))
