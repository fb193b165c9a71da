from __future__ import annotations

import logging
import operator
import os
import socket
import time
import types

import pytest
from distributed import LocalCluster

from kdlib.data import cluster as module
from kdlib.data.cluster import cluster_cores, run_tasks, worker_count
from kdlib.errors import ConfigError, DataError


def _by_value(function):
    """Workers cannot import this file; what is of ``__main__`` travels as code."""
    copy = types.FunctionType(function.__code__, {"os": os, "time": time, "DataError": DataError})
    copy.__module__ = "__main__"
    return copy


@pytest.fixture
def cluster():
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
    ) as cluster:
        yield cluster.scheduler_address


def _fail(number):
    if number == 1:
        raise DataError("file 1 is damaged")
    time.sleep(1)
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_comes_back_and_nothing_is_said_of_the_workings(workers, capfd):
    results = dict(run_tasks(operator.neg, [1, 2, 3, 4, 5], workers))
    assert results == {1: -1, 2: -2, 3: -3, 4: -4, 5: -5}
    assert capfd.readouterr() == ("", "")


def test_the_environment_is_as_before():
    before = dict(os.environ)
    assert dict(run_tasks(operator.neg, [1, 2], 2)) == {1: -1, 2: -2}
    assert dict(os.environ) == before


def test_a_running_cluster_is_used(cluster):
    assert cluster_cores(cluster) == 2
    assert sorted(run_tasks(operator.neg, [1, 2, 3], 1, cluster)) == [(1, -1), (2, -2), (3, -3)]


def test_no_more_tasks_are_started_after_an_error_and_those_under_way_are_finished(cluster):
    done = []
    with pytest.raises(DataError, match="file 1 is damaged"):
        for task, _ in run_tasks(_by_value(_fail), [1, 2, 3, 4, 5, 6], 1, cluster):
            done.append(task)
    assert done == [2]


def test_a_process_that_dies_is_one_sentence():
    def die(number):
        os.kill(os.getpid(), 9)

    with pytest.raises(
        DataError,
        match="a preparing process died, most likely out of memory; run again with fewer workers",
    ):
        list(run_tasks(_by_value(die), [1, 2], 2))


def test_a_process_that_dies_once_is_replaced(tmp_path):
    def once(path):
        if path and not os.path.exists(path):
            open(path, "w").close()
            os.kill(os.getpid(), 9)
        return path

    mark = str(tmp_path / "mark")
    assert dict(run_tasks(_by_value(once), [mark, ""], 2)) == {mark: mark, "": ""}


def test_a_lost_scheduler_is_one_sentence(monkeypatch):
    monkeypatch.setitem(module._SETTINGS, "distributed.comm.timeouts.connect", "1s")
    monkeypatch.setattr(module, "_CONNECT", 1)
    cluster = LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        dashboard_address=":0",
        silence_logs=logging.CRITICAL,
    )
    try:
        with pytest.raises(
            DataError,
            match=(r"the Dask scheduler was lost; start one and run the " r"same command again"),
        ):
            for _ in run_tasks(operator.neg, [1, 2, 3], 1, cluster.scheduler_address):
                cluster.close()
    finally:
        cluster.close()


def test_an_address_without_scheduler_is_one_sentence():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
    for wrong in (address, "nonsense"):
        with pytest.raises(DataError, match=f"no Dask scheduler answers at {wrong}"):
            cluster_cores(wrong)


def test_how_many_workers():
    assert worker_count(3, 10) == 3 and worker_count(3, 2) == 2 and worker_count(1, 0) == 1
    assert 1 <= worker_count(0, 1000) <= (os.cpu_count() or 1)
    with pytest.raises(ConfigError, match="workers is -1"):
        worker_count(-1, 1)


def test_no_more_workers_than_the_memory_can_feed(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: types.SimpleNamespace(available=1 << 20))
    assert worker_count(0, 1000) == 1
