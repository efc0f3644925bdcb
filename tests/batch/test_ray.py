"""The same on Ray Data: of two nodes one is killed in mid-run; nothing is lost, and nothing comes twice.

A process of its own runs the cluster, since Ray changes signals, warnings and logs of the process that it is in.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.batch.test_batch import QUESTION, TASK, lines, picture
from tvp import sdk

for _name in ("ray", "pandas"):  # without which Ray Data cannot be imported
    if importlib.util.find_spec(_name) is None:
        pytest.skip(f"{_name} is not installed: pip install '.[ray]'", allow_module_level=True)

N = 60
SCRIPT = """
import json, os, sys, time
from pathlib import Path
work, address = Path(sys.argv[1]), ""
import ray
from ray.cluster_utils import Cluster
small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
doomed = cluster.add_node(**small)

from tvp.sdk.batch import on_ray
from tvp.sdk.batch.journal import Journal
from tvp.sdk.cli import cli
Real = on_ray.RemoteAsker

class Noted(Real):  # takes a while, and writes down which node answered what
    def _answer(self, rows):
        import ray, time
        time.sleep(0.1)
        with open(work / "asked", "a") as file:
            file.writelines(f"{ray.get_runtime_context().get_node_id()} {row.number}\\n" for row in rows)
        return super()._answer(rows)
on_ray.RemoteAsker = Noted

add, kept = Journal.add, []
def note(self, results):
    nodes = {line.split()[0] for line in (work / "asked").read_text().splitlines()}
    kept.append(add(self, results))
    if cluster.head_node.node_id in nodes and doomed.node_id in nodes and doomed in cluster.worker_nodes:
        (work / "killed").write_text(f"{sum(kept)} {doomed.node_id}")
        cluster.remove_node(doomed, allow_graceful=False)
    return kept[-1]
Journal.add = note
try:
    cli(["batch", *json.loads(sys.argv[2]), "--ray", cluster.address], prog_name="tvp", standalone_mode=False)
finally:
    cluster.shutdown()
"""


def test_a_node_that_is_killed_loses_nothing_and_doubles_nothing(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out.jsonl"
    photos.mkdir()
    for number in range(N):
        data = picture(number) if number != 7 else b"no picture"
        (photos / f"{number:02}.png").write_bytes(data)
    arguments = [TASK, str(photos), str(out), "-q", QUESTION, "--max-new-tokens", "3", "--batch", "2"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "TVP_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), json.dumps(arguments)],
        env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert out.exists(), done.stderr[-4000:]
    assert f"{N} rows, 1 with an error" in done.stdout
    n_before, killed = (tmp_path / "killed").read_text().split()
    assert 0 < int(n_before) < N
    asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    assert {node for node, _ in asked} > {killed}
    rows = lines(out)
    assert [row["row"] for row in rows] == [*range(N)]
    assert [row["row"] for row in rows if "error" in row] == [7]
    with sdk.load(TASK) as task:
        for row in rows[:5]:
            assert row["text"] == task.ask(photos / row["image"], QUESTION, max_new_tokens=3).text
