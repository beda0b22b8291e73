"""The task hint: the paper's sentence behind a prompt that says what kind of request it is."""

from __future__ import annotations

from collections.abc import Sequence


def hint_of(task: str | None) -> str:
    """What is appended to a prompt: ` This is a qa open task.` for `qa_open`, nothing where there is no task."""
    return "" if task is None else f" This is a {task.replace('_', ' ')} task."


def known_task(name: object, tasks: Sequence[str]) -> str | None:
    """The task that a client's header or field names, whatever its case, blanks and hyphens.

    Args:
      name: what the client gave, if anything.
      tasks: those that the predictor was trained on.

    Returns:
      One of `tasks`; None where the client named none of them, which is treated like no task at all.
    """
    if not isinstance(name, str):
        return None
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    return next((task for task in tasks if task.lower() == plain), None)
