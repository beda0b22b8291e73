"""`make demo`: the five-task workload through every heuristic, and a real trace where one lies beside the checkout."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from jaxroute.cli import main

OUT = Path("runs") / "demo"
AZURE = Path(__file__).parents[2] / "shared" / "data" / "traces" / "azure2023_conv.csv"


def demo() -> None:
    """Runs the demo from the current folder; results go to `runs/demo`."""
    console = Console()
    console.rule("five-task: 2,000 requests at 20/s on 4 x V100, Llama-2-7B, prefill-first")
    fleet = ["simulate", "--instances", "4", "--scheduler", "prefill-first", "--profile", "v100-32gb-llama2-7b"]
    main([*fleet, "--workload", "five-task", "--out", str(OUT / "five-task")])
    console.rule("the same, starved of KV cache (3,800 tokens a server)")
    main([*fleet, "--workload", "five-task", "--kv-tokens", "3800", "--out", str(OUT / "five-task-starved")])
    if AZURE.is_file():
        console.rule("Azure 2023 conversation trace, first 4,000 requests, on 4 x A100, Llama-2-7B, chunked")
        fleet = ["simulate", "--instances", "4", "--scheduler", "chunked", "--profile", "a100-80gb-llama2-7b"]
        trace = ["--workload", str(AZURE), "--requests", "4000", "--rate", "9", "--overlong", "clip"]
        main([*fleet, *trace, "--out", str(OUT / "azure-conversation")])
    console.print(f"pictures and per-request files: {OUT}/*/")


if __name__ == "__main__":
    demo()
