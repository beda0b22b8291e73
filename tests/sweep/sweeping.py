"""A sweep over runs of `stub_train`: `python sweeping.py start|asha|resume FOLDER` prints its standings as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from jaxroute.sweep.plan import Asha, Plan
from jaxroute.sweep.space import Choices
from jaxroute.sweep.tuning import resume, start

AXES = [Choices("ppo.clip", ("0.1", "0.2", "0.9")), Choices("seed", ("0", "1"))]


def main(what: str, folder: Path) -> None:
    """See the module's docstring."""
    command = (sys.executable, str(Path(__file__).with_name("stub_train.py")))
    if what == "start":
        standings = start(AXES, Plan(parallel=2, command=command), folder)
    elif what == "asha":
        clips = Choices("ppo.clip", ("0.4", "0.1", "0.3", "0.2"))
        plan = Plan(parallel=2, command=command, asha=Asha(grace=2, reduction=2))
        standings = start([clips, Choices("seed", ("0",))], plan, folder)
    else:
        standings = resume(folder, retry_failed=False)
    print(json.dumps([{**dataclasses.asdict(each), "score": each.score} for each in standings]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
