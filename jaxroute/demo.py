"""`make demo`: trains the paper's three variants, compares them with the heuristics, and shows where the files are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rich.console import Console

from jaxroute.cli import main

OUT = Path("runs") / "demo"
AZURE = Path(__file__).parents[2] / "shared" / "data" / "traces" / "azure2023_conv.csv"

VARIANTS = {"guided": "decaying", "aware": "constant", "baseline": "none"}
"""The paper's names of its variants, and how the mixing penalty is weighted in each."""

STEPS = "ppo.total_steps=1_000_000"
"""Enough to see them apart; the configuration's own number takes them further."""

FLEET = ("--profile", "v100-32gb-llama2-7b", "--scheduler", "prefill-first", "--kv-tokens", "3800")
RIVALS = "round-robin,join-shortest-queue,min-min,least-kv,gated-central-queue"


def demo() -> None:
    """Runs the demo from the current folder; results go to `runs/demo`, whose earlier ones are removed."""
    console = Console()
    shutil.rmtree(OUT, ignore_errors=True)
    for variant, guidance in VARIANTS.items():
        console.rule(f"training the {variant} variant: five-task on 4 x V100, starved of KV cache")
        choices = [f"name={variant}", f"reward.guidance={guidance}", STEPS]
        main(["train", "--config", "five-task", "--set", *choices, "--out", str(OUT / variant)])
    _draw_curves(OUT / "learning_curves.png")
    console.rule("the export of the guided variant")
    main(["export", str(OUT / "guided"), "--out", str(OUT / "policy")])
    console.rule("all of them against the heuristics, on requests that none was trained on")
    policies = ",".join([RIVALS, "default", *(str(OUT / variant) for variant in VARIANTS)])
    cells = ["--workloads", "five-task", "--loads", "1.0,1.7", "--seeds", "20", "--prediction", "0.8"]
    main(["evaluate", *FLEET, "--policies", policies, *cells, "--out", str(OUT / "evaluation")])
    if AZURE.is_file():
        console.rule("the default policy on a trace that it never saw: Azure 2023 conversations, 4 x A100, chunked")
        fleet = ["--profile", "a100-80gb-llama2-7b", "--scheduler", "chunked", "--overlong", "clip"]
        cells = ["--workloads", str(AZURE), "--loads", "1.0", "--seeds", "4", "--prediction", "0.8"]
        azure = ["evaluate", *fleet, *cells, "--policies", f"{RIVALS},default", "--out", str(OUT / "azure")]
        main(azure)
    console.print(f"learning curves, tables, pictures and the exported policy: {OUT}{os.sep}")


def _draw_curves(path: Path) -> None:
    from jaxroute.plots import save
    from jaxroute.training_plots import learning_curve

    save(learning_curve([(variant, OUT / variant / "metrics.csv") for variant in VARIANTS]), path)


if __name__ == "__main__":
    demo()
