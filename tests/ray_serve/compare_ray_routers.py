"""Routers of `ray.serve.llm` on the same requests, in front of real vLLM engines: a program, no test.

    .venv-vllm/bin/pip install "ray[serve]==2.60.0" jsonref jsonschema pandas pyarrow
    .venv/bin/python tests/ray_serve/compare_ray_routers.py --python .venv-vllm/bin/python --rounds 5 --rate 9.5

Four engines of the testbed's kind within replicas; requests go out through a handle at their own times, however long
others take. Every round has requests of its own, the same for every router; the engines start anew for each router,
which then plays all rounds. Answers come whole, since Ray's own cost of a stream is too much for two cores that run
four engines as well.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from jaxroute.live.prompts import random_prompts
from jaxroute.paired import mean_interval, relative_difference
from jaxroute.profiles import StepProfile, load_profile
from jaxroute.testbed.config import TestbedConfig, emulated_profile
from jaxroute.testbed.model import model_folder
from jaxroute.testbed.trace import read_trace
from jaxroute.testbed.vllm_command import ENGINE_FILES, engine_environment
from jaxroute.workload import five_task
from jaxroute.workload.prediction import predict

HERE = Path(__file__).parent
ROUTERS = ("ray:power-of-two", "ray:prefix-affinity", "jaxroute:default", "jaxroute:round-robin")


def round_of(count: int, rate: float, seed: int, longest: int) -> dict[str, Any]:
    """The requests of a round; those that no engine could hold are left out."""
    table = five_task(count, rate=rate, seed=seed)
    told = predict(table, "0.8", seed=seed)
    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    due_s, asked = [], []
    columns = (table.arrival_s, random_prompts(table.prompt_tokens, seed), table.output_tokens, told.tokens, told.upper)
    for due, ids, output, tokens, upper in zip(*columns, strict=True):
        # As a text, which the prefix router looks at; it has about as many tokens.
        prompt = tokenizer.decode(ids)
        length = len(tokenizer.encode(prompt).ids)
        if length + output <= longest:
            due_s.append(float(due))
            user = f"{length} {int(tokens)},{int(upper)}"
            asked.append({"prompt": prompt, "max_tokens": int(output), "min_tokens": int(output), "user": user})
    return {"due_s": due_s, "asked": asked}


def environment(profile: StepProfile, folder: Path) -> dict[str, str]:
    """Of Ray's processes: that of the testbed's engines, each of which writes a trace of its own."""
    own = engine_environment(profile, folder / "steps-{pid}.csv")
    places = [str(ENGINE_FILES), str(HERE), str(HERE.parents[1])]
    return own | {"PYTHONPATH": os.pathsep.join(places), "RAY_USAGE_STATS_ENABLED": "0"}


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=".venv-vllm/bin/python")
    parser.add_argument("--profile", default="v100-32gb-llama2-7b")
    parser.add_argument("--instances", type=int, default=4)
    parser.add_argument("--kv-tokens", type=int, default=3072)
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--rate", type=float, default=9.5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--routers", default=",".join(ROUTERS))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    routers = given.routers.split(",")
    config = TestbedConfig(profile=load_profile(given.profile), instances=given.instances, kv_tokens=given.kv_tokens)
    profile = emulated_profile(config)
    given.out.mkdir(parents=True, exist_ok=True)
    out = given.out.absolute()
    (out / "profile.json").write_text(json.dumps(dataclasses.asdict(profile), indent=2) + "\n", encoding="utf-8")
    numbers = range(given.rounds)
    rounds = [round_of(given.requests, given.rate, seed, profile.max_model_len) for seed in numbers]
    content = {"profile": dataclasses.asdict(profile), "model": str(model_folder()), "instances": given.instances}
    (out / "turns.json").write_text(json.dumps(content | {"rounds": rounds, "routers": routers}), encoding="utf-8")
    command = [given.python, str(HERE / "ray_engines.py"), str(out / "turns.json")]
    subprocess.run(command, env=environment(profile, out), check=True)
    report(out, routers)


def report(out: Path, routers: list[str]) -> None:
    """Says what came of it."""
    took = json.loads((out / "took.json").read_text(encoding="utf-8"))
    for each in took:
        parts = [read_trace(path).between(each["begin"], each["end"]) for path in sorted(out.glob("steps-*.csv"))]
        over = np.concatenate([part.overran for part in parts]) if parts else np.asarray([])
        print(f"round {each['round']} {each['router']}: {100 * over.mean():.2f} % of {len(over)} steps overran")
    e2e = {name: [np.asarray(each["e2e_s"]) for each in took if each["router"] == name] for name in routers}
    whole = min(len(own) for own in e2e.values())
    e2e = {name: own[:whole] for name, own in e2e.items()}
    means = {name: np.asarray([each.mean() for each in own]) for name, own in e2e.items()}
    for name in routers:
        own, other = mean_interval(means[name]), relative_difference(means[name], means[routers[0]])
        p99 = np.mean([np.percentile(each, 99) for each in e2e[name]])
        print(
            f"{name}: mean E2E {own.value:.3f} s [{own.low:.3f}, {own.high:.3f}], against {routers[0]} "
            f"{other.value:+.1f} % [{other.low:+.1f}, {other.high:+.1f}], p99 {p99:.2f} s"
        )


if __name__ == "__main__":
    main()
