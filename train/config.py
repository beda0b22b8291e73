"""What a training run is made of: frozen dataclasses, one for each table of the TOML file."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class FleetsConfig:
    """One group of fleets: lanes of one fleet size and one order of the router queue, a random fleet in each.

    Attributes:
      instances: I.
      lanes: E, fleets of this kind that are simulated side by side.
      router_order: `fcfs` or `shortest-predicted`.
      profiles: names or files, one of which each fleet draws.
      schedulers: one of which each fleet draws.
      mixed: share of the fleets whose every instance draws a profile and a scheduler of its own.
      kv_tokens: KV cache sizes, one of which each fleet draws; 0 is the profile's own.
      workloads: what these fleets draw instead of `WorkloadsConfig.names`; without any, those.
      ageing: predicted tokens that a second of waiting is worth in the shortest-predicted order.
      spf_edges: predicted tokens to which those of a request are rounded down in that order; without any they count
        as they are.
      dt: router interval, seconds; of several routers one acts in each.
      routers: R, replicas of the router that share no state and run the same policy, see `jaxroute.simulate.Fleet`.
    """

    instances: int = 4
    lanes: int = 32
    router_order: str = "fcfs"
    profiles: tuple[str, ...] = ("v100-32gb-llama2-7b",)
    schedulers: tuple[str, ...] = ("chunked",)
    mixed: float = 0.0
    kv_tokens: tuple[int, ...] = (0,)
    workloads: tuple[str, ...] = ()
    ageing: float = 5.0
    spf_edges: tuple[int, ...] = ()
    dt: float = 0.02
    routers: int = 1

    @property
    def turn_s(self) -> float:
        """Seconds from one action of a router to its next."""
        return self.dt * self.routers


@dataclasses.dataclass(frozen=True)
class WorkloadsConfig:
    """The requests of each fleet.

    Attributes:
      names: workloads or trace files, one of which each fleet draws.
      requests: N of each table; 0 is the workload's own number.
      tables: M, tables of each fleet; every episode picks one.
      loads: least and most multiple of the fleet's capacity, of which each fleet draws its load.
      rate: requests per second instead of loads; 0 for loads.
      predictions: error models of the output lengths, one of which each fleet draws (see `predict`).
      scrape_s: least and most seconds between two scrapes of the metrics, drawn at every episode.
    """

    names: tuple[str, ...] = ("five-task",)
    requests: int = 1000
    tables: int = 4
    loads: tuple[float, float] = (0.5, 1.5)
    rate: float = 0.0
    predictions: tuple[str, ...] = ("0.8",)
    scrape_s: tuple[float, float] = (0.1, 0.1)


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """The policy and the critic.

    Attributes:
      observation: `rich` or `paper`.
      form: `scorer`, one network for every instance, for fleets of any size; or `state`, one over the whole state, the
        paper's, which only `dqn` trains.
      hidden: hidden layers of the policy.
      critic_hidden: hidden layers of the critic.
      holds: whether holding is an action while a request can be sent.
      prior: where the policy's linear path starts, a name in `prior.PRIORS` such as `none` or `marginal-gate`.
      prior_weight: how sharply it prefers.
    """

    observation: Literal["rich", "paper"] = "rich"
    form: Literal["scorer", "state"] = "scorer"
    hidden: tuple[int, ...] = (32, 32)
    critic_hidden: tuple[int, ...] = (64, 64)
    holds: bool = True
    prior: str = "least-tokens"
    prior_weight: float = 8.0


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """What the policy is rewarded for.

    Attributes:
      kind: `latency`, `paper`, or `mixing`, the paper's mixing penalty alone.
      guidance: how that penalty is weighted: `none` (its baseline RL), `constant` (workload-aware) or `decaying`
        (workload-guided).
      guidance_episodes: the paper's episodes that the whole run stands for, k at its end in exp(-0.5 k).
      horizon_s: seconds over which a reward is discounted to 1/e.
    """

    kind: Literal["latency", "paper", "mixing"] = "latency"
    guidance: Literal["none", "constant", "decaying"] = "none"
    guidance_episodes: float = 20.0
    horizon_s: float = 30.0


@dataclasses.dataclass(frozen=True)
class PpoConfig:
    """Proximal policy optimisation.

    Attributes:
      total_steps: router intervals of all lanes together after which it ends (its twins not counted); 0 for none.
      rollout: T, intervals of each lane between two updates.
      epochs: passes over a rollout.
      minibatches: of one epoch; T is a multiple of it.
      learning_rate: at the start; it falls linearly to `final_learning_rate`.
      final_learning_rate: at the end.
      critic_learning_rate: of the critic, which has an optimiser of its own.
      clip: of the probability ratio.
      entropy: weight of the entropy bonus at the start; it falls linearly to `final_entropy`.
      final_entropy: at the end.
      gae_s: seconds over which the advantage estimator forgets, its lambda in time.
      max_grad_norm: clip of the policy's and of the critic's gradient, apart.
      twin: heuristic that routes the same requests beside every lane, whose advantage is subtracted; `none` for none.
      teacher: heuristic that is imitated at first; `none` for none.
      teacher_weight: of the imitation loss at the start.
      teacher_share: share of the run over which it falls linearly to 0.
    """

    total_steps: int = 10_000_000
    rollout: int = 512
    epochs: int = 2
    minibatches: int = 4
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-4
    critic_learning_rate: float = 1e-3
    clip: float = 0.2
    entropy: float = 0.01
    final_entropy: float = 0.0
    gae_s: float = 5.0
    max_grad_norm: float = 0.5
    twin: str = "round-robin"
    teacher: str = "none"
    teacher_weight: float = 1.0
    teacher_share: float = 0.1


@dataclasses.dataclass(frozen=True)
class GradientConfig:
    """Gradients through the relaxed fleet, after PPO or instead of it (see `gradient`).

    Attributes:
      total_steps: router intervals of all lanes together after which it ends; 0 for none.
      window: T, intervals of each lane that a gradient goes through.
      rows: M, requests that a lane can have in flight and finish in a window; the router holds while there is no more
        room.
      learning_rate: at the start; it falls linearly to `final_learning_rate`.
      final_learning_rate: at the end.
      critic_learning_rate: of the critic, which has an optimiser of its own.
      critic_passes: steps of the critic in each update, over the whole window.
      td_s: seconds over which the critic's targets forget, lambda in time.
      estimator: what stands for the derivative of a choice: that of a softmax with the noise of the draw (`gumbel`),
        or of the probabilities (`expected`).
      temperature: of that softmax.
      through_observations: whether the gradient also goes through what later choices see of earlier ones.
      entropy: weight of the entropy bonus at the start, per decision; it falls linearly to `final_entropy`.
      final_entropy: at the end.
      max_grad_norm: clip of the policy's and of the critic's gradient, apart.
    """

    total_steps: int = 0
    window: int = 512
    rows: int = 128
    learning_rate: float = 3e-3
    final_learning_rate: float = 3e-4
    critic_learning_rate: float = 3e-3
    critic_passes: int = 16
    td_s: float = 5.0
    estimator: Literal["gumbel", "expected"] = "gumbel"
    temperature: float = 1.0
    through_observations: bool = False
    entropy: float = 0.003
    final_entropy: float = 0.0
    max_grad_norm: float = 0.5


@dataclasses.dataclass(frozen=True)
class DqnConfig:
    """Double deep Q-learning, the paper's algorithm, in place of the others (see `dqn`).

    The discount factor of an interval is exp(-dt / reward.horizon_s).

    Attributes:
      total_steps: router intervals of all lanes together after which it ends; 0 for none.
      rollout: T, intervals of each lane between two spells of learning.
      passes: batches, each a gradient step, of one spell.
      batch: transitions of a batch; a multiple of the lanes, which have equal shares in it.
      replay: transitions of all lanes that are remembered.
      steps: n, rewards in a row that a target sums before it asks the network; 1 is the paper's.
      learning_rate: at the start; it falls linearly to `final_learning_rate`.
      final_learning_rate: at the end.
      target_every: gradient steps between two copies of the network to the target network.
      max_grad_norm: clip of the gradient.
      reward_unit: what a reward is divided by.
      exploration: chance of a random action at the start of each of the first `exploration_episodes` episodes.
      exploration_decay: what it is multiplied by in every `exploration_decay_s` of such an episode.
      exploration_decay_s: see above.
      exploration_episodes: of all lanes together, the first of a lane being the one that it begins with.
      final_exploration: chance of a random action afterwards, and the least chance before.
      myopic_start: whether decaying guidance also shortens the horizon at first: the discount factor is that above
        times 1 - exp(-0.5 k), as in the paper.
    """

    total_steps: int = 0
    rollout: int = 128
    passes: int = 128
    batch: int = 512
    replay: int = 131_072
    steps: int = 1
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-4
    target_every: int = 200
    max_grad_norm: float = 10.0
    reward_unit: float = 600.0
    exploration: float = 0.99
    exploration_decay: float = 0.5
    exploration_decay_s: float = 10.0
    exploration_episodes: int = 30
    final_exploration: float = 0.0
    myopic_start: bool = True


@dataclasses.dataclass(frozen=True)
class EvolutionConfig:
    """Evolution strategies on whole episodes, after the others or instead of them.

    Attributes:
      generations: of the whole run; 0 for none.
      pairs: mirrored pairs of perturbed policies in a generation.
      sigma: standard deviation of a perturbation.
      learning_rate: of Adam on the estimated gradient; it falls linearly to a tenth.
      tail_weight: what a second beyond the reference's 99th percentile costs, in seconds of latency.
      path: what is perturbed: the `whole` network, or its `linear` path alone, in units of the prior's effect, which a
        few members can judge.
    """

    generations: int = 0
    pairs: int = 16
    sigma: float = 0.15
    learning_rate: float = 0.05
    tail_weight: float = 10.0
    path: Literal["whole", "linear"] = "whole"


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
      name: of the policy.
      seed: of everything random; below 1,000,000, where evaluation begins.
      seeds: runs that are trained side by side, from `seed` on.
      fleets: groups of fleets.
      workloads: the requests.
      network: policy and critic.
      reward: the reward.
      ppo: the first algorithm.
      gradient: the second.
      evolution: the third.
      dqn: the paper's, instead of these.
    """

    name: str = "policy"
    seed: int = 0
    seeds: int = 1
    fleets: tuple[FleetsConfig, ...] = (FleetsConfig(),)
    workloads: WorkloadsConfig = WorkloadsConfig()
    network: NetworkConfig = NetworkConfig()
    reward: RewardConfig = RewardConfig()
    ppo: PpoConfig = PpoConfig()
    gradient: GradientConfig = GradientConfig()
    evolution: EvolutionConfig = EvolutionConfig()
    dqn: DqnConfig = DqnConfig()

    @property
    def steps_of_an_update(self) -> int:
        """Router intervals that one run simulates between two updates of PPO, its twins not counted."""
        return sum(fleets.lanes for fleets in self.fleets) * self.ppo.rollout
