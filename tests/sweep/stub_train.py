"""Stands for `jaxroute train`: eight validations in a second, with figures that follow from `ppo.clip`.

`ppo.clip=0.9` fails after two validations. A run goes on where it was, and SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

VALIDATIONS = 8
HEADER = (
    "stage,update,env_steps,seed,seconds,valid_e2e_mean,valid_e2e_p99,valid_ttft_p99,valid_makespan,valid_incomplete"
)


def main() -> None:
    """See the module's docstring."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["train"])
    parser.add_argument("--config")
    parser.add_argument("--set", nargs="*")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", type=Path)
    given = parser.parse_args()
    run = given.resume or given.out
    config, metrics = run / "config.toml", run / "metrics.csv"
    if given.resume is None:
        assert not config.exists()
        config.write_text("\n".join(given.set))
        metrics.write_text(HEADER + "\n")
    values = dict(line.split("=") for line in config.read_text().split("\n"))
    clip = float(values["ppo.clip"])
    done = metrics.read_text().count("\n") - 1
    for update in range(done + 1, VALIDATIONS + 1):
        time.sleep(0.15)
        if clip == 0.9 and update == 3:
            print("working")
            sys.exit("jaxroute: training diverged")
        mean = -clip * update / VALIDATIONS
        with metrics.open("a") as file:
            file.write(f"ppo,{update},{100 * update},{values['seed']},{update},{mean},0,0,0,0\n")


if __name__ == "__main__":
    main()
