"""The same bits on every scheduler, and after a worker died."""

from __future__ import annotations

import os
import signal
import time

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster

import bncore
import bncore.dask
from arrays import same_bits

pytestmark = pytest.mark.needs_scale

PATIENCE = 300  # seconds, for machines that do much else


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A cluster of two processes, with two threads each."""
    settings = {
        "temporary-directory": str(tmp_path_factory.mktemp("spill")),
        "distributed.comm.timeouts.connect": f"{PATIENCE}s",
        "distributed.admin.tick.limit": f"{PATIENCE}s",  # no warning of a slow event loop
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=2, threads_per_worker=2, dashboard_address=":0", memory_limit=0
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def virtual(pause=0.0, blocks=40, rows=2000, columns=3):
    """An array whose chunks are made when they are needed, of sizes that differ."""

    def make(block_id):
        time.sleep(pause)
        size = rows + 17 * block_id[0]
        return np.random.default_rng(block_id[0]).normal(1e4, 1.0, (size, columns)).astype("f4")

    sizes = tuple(rows + 17 * i for i in range(blocks))
    meta = np.empty((0, 0), np.float32)
    return da.map_blocks(
        lambda block_id=None: make(block_id), chunks=(sizes, (columns,)), dtype=meta.dtype,
        meta=meta, name=f"virtual-{pause}-{blocks}-{rows}",
    )  # fmt: skip


def results(x, **scheduler):
    """The moments with what they do not show, and the results of a whole training step."""
    y, moments = bncore.dask.batch_norm_train(x)
    gradients = bncore.dask.batch_norm_train_backward(y, x, moments)
    mean, var = bncore.dask.mean_var(x, axis=0, dtype=np.float64)
    merged, *arrays = dask.compute(moments, y, *gradients, mean, var, **scheduler)
    return [merged.count, merged.mean, merged.m2, merged._low, *arrays]


@pytest.mark.parametrize("scheduler", [
    {"scheduler": "threads", "num_workers": 1},
    {"scheduler": "threads", "num_workers": 4},
    {"scheduler": "processes", "num_workers": 2},
    {"scheduler": "distributed"},
    {"scheduler": "synchronous", "optimize_graph": False},
], ids=lambda s: "-".join(map(str, s.values())))  # fmt: skip
def test_the_same_chunks_have_the_same_bits_on_every_scheduler(request, scheduler):
    if scheduler["scheduler"] == "distributed":
        scheduler = {"scheduler": request.getfixturevalue("client")}
    x = virtual()
    here = results(x, scheduler="synchronous")
    for a, b in zip(here, results(x, **scheduler), strict=True):
        assert same_bits(a, b)


def test_a_worker_that_dies_is_replaced_and_nothing_is_counted_twice(client):
    x = virtual(pause=0.02, blocks=60)
    here = bncore.dask.moments(x).compute(scheduler="synchronous")
    before = set(client.run(os.getpid).values())
    future = client.compute(bncore.dask.moments(x))
    end = time.monotonic() + PATIENCE
    while "memory" not in client.run_on_scheduler(_states):  # until some chunks are done
        assert time.monotonic() < end
        time.sleep(0.01)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    found = future.result(timeout=PATIENCE)
    assert victim not in client.run(os.getpid).values()
    assert found.count[0] == x.shape[0]
    assert found == here
    assert same_bits(found._low, here._low)


def _states(dask_scheduler):
    return [task.state for task in dask_scheduler.tasks.values()]
