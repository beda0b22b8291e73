"""`jaxroute predictor ...`: the group of its subcommands."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from jaxroute.commands.predictor_evaluate import Evaluate
from jaxroute.commands.predictor_predict import Predict
from jaxroute.commands.predictor_show import Show
from jaxroute.commands.predictor_train import Train


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Predict the output length of requests from their prompts."""

    command: tyro.conf.OmitArgPrefixes[
        Annotated[Train, tyro.conf.subcommand("train", prefix_name=False)]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate", prefix_name=False)]
        | Annotated[Predict, tyro.conf.subcommand("predict", prefix_name=False)]
        | Annotated[Show, tyro.conf.subcommand("show", prefix_name=False)]
    ]

    def run(self) -> None:
        """Runs the subcommand."""
        self.command.run()
