"""Runs coroutine tests as those of the proxy are run."""

from serve.conftest import _logs_are_left_as_they_were, pytest_pyfunc_call

__all__ = ["_logs_are_left_as_they_were", "pytest_pyfunc_call"]
