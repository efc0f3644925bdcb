"""`doctor`: what this installation can run, on machines and in containers of several kinds."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
from click.testing import CliRunner

from tests.sdk.fake_onnxruntime import CPU, CUDA, TENSORRT, install
from tvp import sdk
from tvp.sdk import _doctor
from tvp.sdk._runtime import machine as _machine
from tvp.sdk._runtime.sessions import open_session
from tvp.sdk.cli import cli
from tvp.sdk.errors import ProviderError, RequestError

GIB = 2**30
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\nHugePages_Total:  0\n"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Writes the files by which a system tells its limits, of a machine with 8 cores and 16 GiB, 8 of them free."""
    monkeypatch.setattr(_machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(_machine, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)

    def write(files):
        for name, text in {"proc/meminfo": MEMINFO, **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    return write


def test_versions_providers_and_where_each_part_runs(monkeypatch, tmp_path, one_bundle):
    monkeypatch.setenv("TVP_HOME", str(tmp_path))
    (tmp_path / "cache" / "deep").mkdir(parents=True)
    (tmp_path / "cache" / "deep" / "engine").write_bytes(bytes(2_500_000))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "count").symlink_to(one_bundle)
    facts = sdk.doctor()
    for name in ("numpy", "pillow", "tokenizers", "tvp-edge"):
        assert facts[name] == version(name)
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["onnxruntime"] == version("onnxruntime")
    assert CPU in facts["providers"]
    assert f"preprocess, vision_encoder, connector, encoder, decoder, text_encoder on {CPU}" in facts["auto"]
    assert facts["cache"] == f"2.5 MB in {tmp_path / 'cache'}"
    assert facts["tasks"] == "count"
    assert "GiB total" in facts["memory"]
    assert "usable of" in facts["cores"]


def test_what_auto_would_choose_is_started(monkeypatch, tmp_path):
    fake = install(monkeypatch, TENSORRT, CUDA, CPU)
    facts = sdk.doctor()
    assert facts["auto"] == f"preprocess on {CPU}; vision_encoder, connector, encoder, decoder, text_encoder on {CUDA}"
    assert facts["devices"] == f"NVIDIA GPU ({CUDA})"
    assert [[name for name, _ in providers] for _, providers, _ in fake.opened] == [[CUDA, CPU]]  # once


def test_what_is_available_and_does_not_start_is_told(monkeypatch):
    fake = install(monkeypatch, CUDA, CPU)
    fake.starts = lambda file, provider: provider == CPU
    auto = sdk.doctor()["auto"]
    assert auto.startswith(
        f"preprocess, vision_encoder, connector, encoder, decoder, text_encoder on {CPU}; {CUDA} did not start"
    )


def test_the_model_that_is_tried_adds(tmp_path):
    (tmp_path / "add.onnx").write_bytes(_doctor.MODEL)
    session = open_session(tmp_path / "add.onnx", [(CPU, {})])
    assert session.run(None, {"x": np.array([21], np.float32)})[0].tolist() == [42]


def test_an_onnxruntime_that_knows_no_devices(monkeypatch):
    fake = install(monkeypatch, CPU)

    def absent():
        raise AttributeError("get_ep_devices")

    fake.get_ep_devices = absent
    assert sdk.doctor()["devices"] == "not reported"


def test_without_onnxruntime_the_rest_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # importing it fails
    facts = sdk.doctor()
    assert "pip install onnxruntime." in facts["onnxruntime"]
    assert "providers" not in facts
    assert facts["numpy"] == version("numpy")
    done = CliRunner().invoke(cli, ["doctor"])
    assert done.exit_code == 0
    assert "pip install onnxruntime." in done.output


def test_the_machine_without_limits(machine):
    machine({})
    assert _machine.usable_cores() == 8
    assert _machine.memory() == {"total": 16 * GIB, "available": 8 * GIB}


@pytest.mark.parametrize(
    ("files", "cores", "total", "available"),
    [
        (  # the newer control groups, in a container that sees its own as the root
            {
                "proc/self/cgroup": "0::/\n",
                "cgroup/cpu.max": "150000 100000\n",
                "cgroup/memory.max": f"{4 * GIB}\n",
                "cgroup/memory.current": f"{3 * GIB}\n",
                "cgroup/memory.stat": f"anon {GIB}\ninactive_file {2 * GIB}\n",
            },
            2,
            4,
            3,
        ),
        (  # a limit of the group above, and none of its own
            {
                "proc/self/cgroup": "0::/system/tvp.service\n",
                "cgroup/system/tvp.service/cpu.max": "max 100000\n",
                "cgroup/system/tvp.service/memory.max": "max\n",
                "cgroup/system/tvp.service/memory.current": f"{GIB}\n",
                "cgroup/system/cpu.max": "300000 100000\n",
                "cgroup/system/memory.max": f"{2 * GIB}\n",
                "cgroup/system/memory.current": f"{2 * GIB}\n",
            },
            3,
            2,
            0,
        ),
        (  # the older ones
            {
                "proc/self/cgroup": "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n1:name=systemd:/\n",
                "cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "cgroup/memory/docker/1/memory.limit_in_bytes": f"{8 * GIB}\n",
                "cgroup/memory/docker/1/memory.usage_in_bytes": f"{7 * GIB}\n",
                "cgroup/memory/docker/1/memory.stat": f"total_inactive_file {GIB}\n",
            },
            1,
            8,
            2,
        ),
        (  # the older ones, unlimited
            {
                "proc/self/cgroup": "4:memory:/\n3:cpu:/\n",
                "cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
            },
            8,
            16,
            8,
        ),
        ({"proc/self/cgroup": "nonsense\n0:\n"}, 8, 16, 8),
    ],
)
def test_the_limits_of_a_container_count(machine, files, cores, total, available):
    machine(files)
    assert _machine.usable_cores() == cores
    assert _machine.memory() == {"total": total * GIB, "available": available * GIB}


def test_affinity_counts(machine, monkeypatch):
    machine({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "600000 100000\n"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5})
    assert _machine.usable_cores() == 2
    assert sdk.doctor()["cores"] == "2 usable of 8"


def test_systems_that_say_less(machine, monkeypatch):
    machine({"proc/meminfo": ""})
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**20, "SC_AVPHYS_PAGES": 2**18}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__, raising=False)
    assert _machine.memory() == {"total": 4 * GIB, "available": GIB}

    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", unknown, raising=False)
    assert _machine.memory() == {}
    assert sdk.doctor()["memory"] == "unknown"
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert _machine.usable_cores() == 8


# Threads.


def test_threads_are_as_many_as_the_process_may_use(machine, monkeypatch):
    monkeypatch.delenv("TVP_THREADS", raising=False)
    machine({})
    assert _machine.threads() == 0  # onnxruntime knows the cores of a whole machine
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5}, raising=False)
    assert _machine.threads() == 2
    monkeypatch.setenv("TVP_THREADS", "3")
    assert _machine.threads() == 3
    assert _machine.threads(1) == 1


@pytest.mark.parametrize("wanted", [0, -1, 1025, True, 1.0, "x"])
def test_a_number_of_threads_that_is_none_is_refused(wanted, monkeypatch, tmp_path):
    with pytest.raises(RequestError, match=r"threads is .* whole number from 1 to 1024"):
        sdk.load(tmp_path, threads=wanted)
    monkeypatch.setenv("TVP_THREADS", str(wanted))
    with pytest.raises(RequestError, match="TVP_THREADS is"):
        sdk.load(tmp_path)


THREADS = """
import os, sys
from tvp import sdk
if sys.argv[3] != "all":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
before = len(os.listdir("/proc/self/task"))
task = sdk.load(sys.argv[1], threads=int(sys.argv[2]) or None)
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="this system does not list a process's threads")
@pytest.mark.parametrize(
    ("threads", "cores", "more"), [("1", "all", 0), ("4", "all", 9), ("0", "one", 0), ("4", "one", 9)]
)
def test_a_task_has_the_threads_that_it_was_given(one_bundle, threads, cores, more):
    """Each of its three graphs has that many, with the one that calls."""
    environment = {key: value for key, value in os.environ.items() if key != "TVP_THREADS"} | {
        "OPENBLAS_NUM_THREADS": "1"
    }
    call = [sys.executable, "-c", THREADS, str(one_bundle), threads, cores]
    assert int(subprocess.check_output(call, env=environment)) == more


def test_tasks_of_other_threads_have_other_graphs(one_bundle):
    with sdk.load(one_bundle, threads=1) as one, sdk.load(one_bundle, threads=1) as same:
        assert one.model is same.model
        with sdk.load(one_bundle, threads=2) as two:
            assert two.model is not one.model


def test_options_that_the_cpu_would_ignore_are_refused(one_bundle):
    with pytest.raises(ProviderError, match=r"no option 'intra_op_num_threads'.*load\(threads="):
        sdk.load(one_bundle, providers=("cpu", {"intra_op_num_threads": "1"}))
