"""A live testbed: real vLLM engines on this machine's CPU, their steps held to a profile's times."""

from jaxroute.testbed.config import TestbedConfig
from jaxroute.testbed.testbed import Testbed
from jaxroute.testbed.trace import StepTrace, read_trace

__all__ = ["StepTrace", "Testbed", "TestbedConfig", "read_trace"]
