from __future__ import annotations

import pytest

from jaxroute.errors import InputError
from jaxroute.train.load_config import load_config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("network.prior=gatee", "--set network.prior is 'gatee', which is unknown; known: none, least-tokens, gate"),
        ("evolution.generations=-1", "--set evolution.generations is -1, must be at least 0"),
        ("evolution.pairs=0", "--set evolution.pairs is 0, must be at least 1"),
        ("evolution.sigma=0", "--set evolution.sigma is 0.0, must be above 0"),
        ("evolution.learning_rate=0", "--set evolution.learning_rate is 0.0, must be above 0"),
        ("evolution.tail_weight=-1", "--set evolution.tail_weight is -1.0, must be at least 0"),
        ("fleets.0.spf_edges=[256, 64]", "--set fleets.0.spf_edges is (256, 64), must be ascending whole numbers"),
        ("fleets.0.spf_edges=[0, 64]", "--set fleets.0.spf_edges is (0, 64), must be ascending whole numbers"),
        ("ppo.total_steps=-1", "--set ppo.total_steps is -1, must be at least 0"),
    ],
)
def test_values_out_of_range_are_named_with_what_they_must_be(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config("smoke", [override])
    assert str(caught.value).startswith(message)


def test_there_must_be_something_to_train() -> None:
    with pytest.raises(InputError, match=r"ppo.total_steps is 0, must be above 0, or gradient.total_steps or evo"):
        load_config("smoke", ["ppo.total_steps=0", "evolution.generations=0"])
    assert load_config("smoke", ["ppo.total_steps=0"]).evolution.generations == 3
    assert load_config("smoke", ["evolution.generations=0", "fleets.0.spf_edges=[64, 256]"]).ppo.total_steps == 768


def test_several_routers_act_by_turns_and_are_refused_where_an_action_needs_the_next_view() -> None:
    [fleets] = load_config("smoke", ["fleets.0.routers=4", "fleets.0.dt=0.005"]).fleets
    assert fleets.turn_s == pytest.approx(0.02)
    with pytest.raises(InputError, match=r"fleets.0.routers is 2, must be 1 with dqn.total_steps"):
        load_config("dqn", ["fleets.0.routers=2"])
    with pytest.raises(InputError, match=r"fleets.0.routers is 2, must be 1 with gradient.total_steps"):
        load_config("gradient", ["fleets.0.routers=2"])


def test_the_mixing_penalty_alone_must_weigh_something_and_be_met() -> None:
    alone = ["reward.kind=mixing", "reward.guidance=constant", "network.holds=false"]
    assert load_config("dqn", alone).reward.kind == "mixing"
    with pytest.raises(InputError, match=r"reward.guidance is 'none', must be constant or decaying"):
        load_config("dqn", [*alone, "reward.guidance=none"])
    with pytest.raises(InputError, match=r"network.holds is True, must be false with reward.kind = mixing"):
        load_config("dqn", [*alone, "network.holds=true"])
