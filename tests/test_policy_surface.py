"""What policies decide over load and prompt length."""

from __future__ import annotations

import numpy as np
import pytest

from jaxroute.candidates import candidate
from jaxroute.cli import main
from jaxroute.errors import InputError
from jaxroute.plots_surface import COLOURS, surface_picture
from jaxroute.policy_surface import ANOTHER, HOLD, VARIED, Scene, policy_surface
from jaxroute.profiles import load_profile
from jaxroute.simulate import Fleet

V100 = load_profile("v100-32gb-llama2-7b").with_kv_tokens(3800)
TWO = Fleet((V100,) * 2, ("chunked",) * 2)


def test_the_emptier_server_is_chosen_by_a_rule_that_looks_at_the_cache():
    surface = policy_surface(candidate("least-kv"), TWO, Scene(others=0.5))
    assert (surface.action[:, surface.filling < 0.49] == VARIED).all()
    assert (surface.action[:, surface.filling > 0.51] == ANOTHER).all()


def test_a_gate_holds_what_fits_nowhere_and_sends_it_where_it_fits():
    surface = policy_surface(candidate("gated-central-queue"), TWO, Scene(others=0.7))
    filling, prompts = np.meshgrid(surface.filling, surface.prompt_tokens)
    kv_tokens = V100.kv_tokens
    room = prompts <= 0.8 * kv_tokens - np.round(filling * kv_tokens) - 1
    tight = prompts >= 0.8 * kv_tokens - np.round(filling * kv_tokens) + 1
    elsewhere = prompts <= 0.1 * kv_tokens - 1
    nowhere = (prompts >= 0.1 * kv_tokens + 1) & tight & (filling > 0)
    assert (surface.action[nowhere] == HOLD).all()
    assert (surface.action[elsewhere & (filling > 0.71)] == ANOTHER).all()
    assert (surface.action[room & (filling < 0.69)] == VARIED).all()
    assert {VARIED, ANOTHER, HOLD} == set(np.unique(surface.action))


def test_a_policy_that_ignores_load_has_one_colour():
    surface = policy_surface(candidate("round-robin"), TWO, Scene(others=0.3))
    assert np.unique(surface.action).tolist() == [VARIED]


def test_the_shipped_policy_prefers_the_empty_server_and_not_the_full_one():
    surface = policy_surface(candidate("default"), TWO, Scene(others=0.5))
    assert (surface.action[: len(surface.prompt_tokens) // 2, 0] == VARIED).all()
    assert (surface.action[:, -1] != VARIED).all()


@pytest.mark.parametrize(
    ("fleet", "scene", "message"),
    [
        (Fleet((V100,), ("chunked",)), Scene(0.5), "two or more servers"),
        (TWO, Scene(1.5), "others is 1.5"),
        (TWO, Scene(0.5, output_tokens=3795), "do not fit"),
    ],
    ids=["one server", "share", "output"],
)
def test_what_cannot_be_asked_is_refused(fleet, scene, message):
    with pytest.raises(InputError, match=message):
        policy_surface(candidate("least-kv"), fleet, scene)


def test_the_picture_has_a_row_for_each_policy_and_a_column_for_each_scene():
    found = [
        [policy_surface(candidate(name), TWO, Scene(share)) for share in (0.3, 0.6)]
        for name in ("least-kv", "gated-central-queue")
    ]
    figure = surface_picture(found)
    assert len(figure.axes) == 4
    assert [axes.get_title() for axes in figure.axes[:2]] == ["the others 30 % full", "the others 60 % full"]
    assert "gated-central-queue" in figure.axes[2].get_ylabel()
    assert len(figure.legends[0].get_texts()) == len(COLOURS)


def test_the_command_writes_a_picture_and_refuses_bad_shares(tmp_path, capsys):
    out = tmp_path / "surface.png"
    options = ["surface", "--out", str(out), "--policies", "least-kv", "--others", "0.4", "--kv-tokens", "3800"]
    main(options)
    assert out.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit) as stop:
        main([*options, "--others", "0.4,2"])
    assert stop.value.code == 2
    assert "--others 0.4,2: give shares from 0 to 1" in capsys.readouterr().err
