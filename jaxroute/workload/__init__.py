"""Workloads: generated or read from traces, as tables of requests on the host."""

from jaxroute.workload.arrivals import arrival_times, retime
from jaxroute.workload.factory import make_workload, workload_names
from jaxroute.workload.five_task import five_task
from jaxroute.workload.limits import LimitReport, fit_to_context
from jaxroute.workload.synthetic import synthetic
from jaxroute.workload.table import RequestTable
from jaxroute.workload.traces import read_trace

__all__ = [
    "LimitReport",
    "RequestTable",
    "arrival_times",
    "fit_to_context",
    "five_task",
    "make_workload",
    "read_trace",
    "retime",
    "synthetic",
    "workload_names",
]
