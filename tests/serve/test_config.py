"""The configuration: of a file, of flags, and what is said where it is wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from jaxroute.commands.serve import Serve
from jaxroute.errors import InputError
from jaxroute.serve.config import BackendConfig, Listener
from jaxroute.serve.config_file import read_config
from jaxroute.serve.secrets import backend_key, client_keys, listener_tls

WHOLE = """
backends:
  - http://10.0.0.1:8000/
  - {url: "https://b.example", name: b, profile: v100-32gb-llama2-7b, key_env: B_KEY, max_in_flight: 8}
profile: h100-80gb-llama31-8b
policy: fewest-outstanding-tokens
predictor: none
listen: {host: 0.0.0.0, port: 9000}
limits: {body_bytes: 1000, wait_s: 5}
watching: {scrape_s: 0.1}
keys_file: keys.txt
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    return path


def test_a_file_says_everything(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, WHOLE))
    first, second = config.backends
    assert (first.url, first.name) == ("http://10.0.0.1:8000", "10.0.0.1:8000")
    assert (second.name, second.max_in_flight, second.key_env) == ("b", 8, "B_KEY")
    assert [config.profile_of(each) for each in config.backends] == ["h100-80gb-llama31-8b", "v100-32gb-llama2-7b"]
    assert config.listen == Listener("0.0.0.0", 9000)
    assert config.admin == Listener("127.0.0.1", 8081)
    assert (config.limits.body_bytes, config.limits.wait_s, config.limits.queue) == (1000, 5.0, 1000)
    assert config.keys_file == Path("keys.txt")


def test_flags_stand_for_what_the_file_says(tmp_path: Path) -> None:
    flags = Serve(config=written(tmp_path, WHOLE), backend=("http://c:1", "http://d:1"), port=7, scrape_s=0.5)
    config = flags.read()
    assert [each.name for each in config.backends] == ["c:1", "d:1"]
    assert config.listen == Listener("0.0.0.0", 7)
    assert (config.watching.scrape_s, config.policy) == (0.5, "fewest-outstanding-tokens")


def test_flags_alone_are_enough() -> None:
    config = Serve(backend=("http://c:1",)).read()
    assert (config.policy, config.predictor, config.listen) == ("default", "default", Listener("127.0.0.1", 8080))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("backends: [http://a:1\n", "line 2"),
        ("- a", "must hold keys"),
        ("", "must hold keys"),
        ("backends: http://a:1", "backends: must be a list"),
        ("policy: default", "no backend"),
        ("backends: []", "no backend"),
        ("backends: [3]", "backends[0]: must be"),
        ("backends: [{name: a}]", "backends[0].url: is missing"),
        ("backends: [{url: http://a:1, colour: red}]", "backends[0].colour: no such key"),
        ("backends: [ftp://a:1]", "is no address"),
        ("backends: ['http://a:x']", "give http://HOST:PORT"),
        ("backends: [http://a:1/v1]", "leave out /v1"),
        ("backends: [http://a:1, http://a:1]", "there twice"),
        ("backends: [{url: http://a:1, name: 'a b'}]", "letters, digits"),
        ("backends: [{url: http://a:1, max_in_flight: 0}]", "at least 1"),
        ("backends: [http://a:1]\ncolour: red", "colour: no such key"),
        ("backends: [http://a:1]\nlimits: 3", "limits: must hold keys"),
        ("backends: [http://a:1]\nlimits: {queue: many}", "limits.queue: is 'many', must be a whole number"),
        ("backends: [http://a:1]\nlimits: {queue: true}", "limits.queue: is True"),
        ("backends: [http://a:1]\nlimits: {wait_s: -1}", "limits.wait_s is -1"),
        ("backends: [http://a:1]\nlimits: {wait_s: .nan}", "limits.wait_s is nan"),
        ("backends: [http://a:1]\ntimeouts: {body_s: .inf}", "timeouts.body_s is inf"),
        ("backends: [http://a:1]\nwatching: {scrape_s: 5}", "0.05 to 1"),
        ("backends: [http://a:1]\nlisten: {port: 70000}", "listen.port is 70000"),
        ("backends: [http://a:1]\nlisten: {cert_file: c}", "both cert_file and key_file"),
        ("backends: [http://a:1]\nlog_level: loud", "must be debug"),
    ],
)
def test_what_is_wrong_is_said_with_file_key_and_remedy(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError) as bad:
        read_config(path)
    assert str(path) in str(bad.value)
    assert said in str(bad.value)
    assert "\n" not in str(bad.value)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError) as bad:
        BackendConfig("http://user:secret@a:1")
    assert "secret" not in str(bad.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_config(tmp_path / "none.yaml")


def test_keys_come_from_file_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_KEYS", "one, two")
    (tmp_path / "keys").write_text("# mine\nthree # of Ada\n\n")
    config = read_config(
        None, backends=(BackendConfig("http://a:1"),), keys_file=tmp_path / "keys", keys_env="ROUTER_KEYS"
    )
    keys = client_keys(config)
    assert all(keys.allow(f"Bearer {key}") for key in ("one", "two", "three"))
    assert not any(keys.allow(text) for text in (None, "", "Bearer", "Bearer ", "Bearer four", "one", "Basic one"))
    assert "one" not in repr(vars(keys))


def test_keys_that_are_not_there_are_one_line_each(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# none\n")
    config = read_config(None, backends=(BackendConfig("http://a:1", key_env="NO_SUCH_KEY"),))
    for changes in ({"keys_file": tmp_path / "empty"}, {"keys_file": tmp_path / "no"}, {"keys_env": "NO_SUCH_KEYS"}):
        with pytest.raises(InputError, match="keys_"):
            client_keys(dataclasses.replace(config, **changes))
    with pytest.raises(InputError, match="NO_SUCH_KEY"):
        backend_key(config.backends[0])


def test_a_certificate_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cert").write_text("no")
    with pytest.raises(InputError, match="cannot be used"):
        listener_tls(Listener("127.0.0.1", 0, tmp_path / "cert", tmp_path / "cert"))
