import csv

import numpy as np
import pytest
import uvloop

from fake_results import small_result
from fake_vllm import MODEL
from jaxroute import metrics
from jaxroute.live.client import LiveError, open_session
from jaxroute.live.replay import Chooser, FewestOutstanding, Given, LiveRun, TakingTurns, make_load, replay
from jaxroute.output import write_requests_csv
from jaxroute.workload.table import RequestTable


def table_of(count: int = 8, gap_s: float = 0.03) -> RequestTable:
    index = np.arange(count)
    return RequestTable.create(index * gap_s, 20 + index, 4 + index % 3, name="small")


def run(urls: list[str], table: RequestTable, chooser: Chooser, due_s: np.ndarray | None = None) -> LiveRun:
    async def all_of_it() -> LiveRun:
        load = make_load(table, MODEL, table.arrival_s if due_s is None else due_s)
        async with open_session() as session:
            return await replay(session, urls, load, chooser, name="some")

    return uvloop.run(all_of_it())


def test_requests_go_where_and_when_they_were_decided_to(serving):
    servers = serving(2)
    table = table_of()
    instance = np.array([0, 1, 1, 0, 1, 0, 0, 1])
    due_s = table.arrival_s + np.array([0.0, 0.2, 0.0, 0.0, 0.1, 0.0, 0.0, 0.0])
    made = run([server.url for server in servers], table, Given(instance), due_s)
    records = made.result.records
    assert (records.instance == instance).all()
    assert [len(server.seen) for server in servers] == [4, 4]
    assert (made.late_s >= 0).all() and np.median(made.late_s) < 0.1
    assert records.dispatch_s == pytest.approx(due_s + made.late_s)
    assert (records.first_token_s > records.dispatch_s).all() and (records.finish_s > records.first_token_s).all()
    assert metrics.router_wait_s(made.result)[1] >= 0.2
    assert (metrics.e2e_s(made.result) >= metrics.router_wait_s(made.result)).all()


def test_live_requests_are_written_in_the_columns_of_simulated_ones(serving, tmp_path):
    [server] = serving()
    write_requests_csv(run([server.url], table_of(3), TakingTurns(1)).result, tmp_path / "live.csv")
    write_requests_csv(small_result(), tmp_path / "simulated.csv")
    live, simulated = (
        list(csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines())) for name in ("live", "simulated")
    )
    assert list(live[0]) == list(simulated[0])
    assert live[0]["preemptions"] == "" and float(live[0]["ttft_s"]) > 0


def test_taking_turns_and_fewest_outstanding():
    turns = TakingTurns(3)
    assert [turns.pick(row) for row in range(5)] == [0, 1, 2, 0, 1]
    fewest = FewestOutstanding(3)
    assert [fewest.pick(row) for row in range(4)] == [0, 1, 2, 0]
    fewest.ended(1)
    assert fewest.pick(4) == 1
    fewest.ended(2)
    assert fewest.pick(5) == 2


def test_one_request_that_fails_ends_the_run(serving):
    servers = serving(2)
    servers[1].break_with("500")
    with pytest.raises(LiveError, match=f"{servers[1].url}: answers 500"):
        run([server.url for server in servers], table_of(), TakingTurns(2))
