"""docs/scale.md and its program: the tree that is counted is the one that Dask runs."""

from __future__ import annotations

import importlib.util
import re
import sys

import dask.array as da
import pytest
from dask.core import get_dependencies

import bncore.dask
import tolerances
from checkout import ROOT

pytestmark = pytest.mark.needs_scale


@pytest.fixture(scope="module")
def merge_tree():
    path = ROOT / "benchmarks" / "merge_tree.py"
    spec = importlib.util.spec_from_file_location("merge_tree", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["merge_tree"] = module  # for its dataclasses
    spec.loader.exec_module(module)
    yield module
    del sys.modules["merge_tree"]


@pytest.mark.parametrize("chunks", [1, 2, 8, 9, 65, 477])
@pytest.mark.parametrize("split_every", [2, 8])
def test_the_tree_is_that_of_dask(merge_tree, chunks, split_every):
    plan = merge_tree.Plan(chunks * 2**24, 1, split_every=split_every)
    assert plan.chunks == chunks or plan.chunk < 2**24
    counted = merge_tree.tree_of(plan)
    x = da.zeros((plan.chunks, 1), chunks=1)
    graph = dict(bncore.dask.moments(x, split_every=split_every).__dask_graph__())
    merging = [key for key in graph if re.search("partial|aggregate", str(key))]
    names = {key[0] for key in merging}
    assert (len(names), len(merging)) == (counted.levels, counted.tasks)
    inputs = sum(len(get_dependencies(graph, key)) for key in merging)
    assert inputs - len(merging) == counted.merges == plan.chunks - 1
    assert counted.messages == 0


def test_messages_are_inputs_that_lie_elsewhere(merge_tree):
    """Two chunks on each of eight workers: seven of eight states travel to the last task."""
    plan = merge_tree.Plan(16 * 2**24, 8, split_every=2)
    tree = merge_tree.tree_of(merge_tree.Plan(32 * 2**20, 8, split_every=2))
    assert plan.chunks >= 16
    assert (tree.levels, tree.messages, tree.received) == (5, 7, 3)


def test_merging_keeps_the_digits(merge_tree):
    found = merge_tree.errors(merge_tree.Plan(10**8, 64))
    assert found["tree"] <= tolerances.MERGED < found["textbook"]
    assert found["mean"] <= 1e4 * tolerances.EPS64 * 2


def test_the_page_has_the_counts_of_the_program(merge_tree):
    text = (ROOT / "docs" / "scale.md").read_text()
    table = re.search("plan:begin -->\n(.*?)<!-- plan:end", text, re.DOTALL)[1]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in table.splitlines()
        if "|" in line
    ]
    columns = {row[0]: row[1:] for row in rows}
    assert len(columns["values"]) == 4
    for i, (values, workers) in enumerate(zip(columns["values"], columns["workers"], strict=True)):
        plan = merge_tree.Plan(int(float(values)), int(workers.replace(",", "")))
        tree = merge_tree.tree_of(plan)
        for name, count in (
            ("chunks", plan.chunks), ("levels of the tree", tree.levels),
            ("tasks that merge", tree.tasks), ("merges of two states", tree.merges),
            ("messages", tree.messages),
        ):  # fmt: skip
            assert columns[name][i] == f"{count:,}"
