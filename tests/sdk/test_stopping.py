"""A graph that runs is stopped by an event, by a time limit and by a signal, and another thread's goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest

from tvp import sdk
from tvp.sdk._runtime.stopping import Stoppable, StoppedError, stoppable, stopped

LONG = 60  # seconds; what is stopped ends far earlier
PICTURE = np.zeros((64, 64, 3), np.uint8)
WAIT = "What is it, and where is it, and how many are there?"


def slow_graph(n_nodes: int, side: int) -> bytes:
    """A graph of n_nodes products of matrices, one after the other: powers of x0.

    It has no weights, which onnxruntime would prepare anew for each node.
    """
    nodes = [onnx.helper.make_node("MatMul", [f"x{i}", "x0"], [f"x{i + 1}"]) for i in range(n_nodes)]
    named = [onnx.helper.make_tensor_value_info(name, 1, (side, side)) for name in ("x0", f"x{n_nodes}")]
    graph = onnx.helper.make_graph(nodes, "g", named[:1], named[1:])
    opset = [onnx.helper.make_opsetid("", 18)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


@pytest.fixture(scope="module")
def slow():
    """A run of some minutes."""
    session = onnxruntime.InferenceSession(slow_graph(2500, 1024))
    one = np.eye(1024, dtype=np.float32)
    return lambda: stopped(lambda options: session.run(None, {"x0": one}, options))


def test_an_event_stops_a_run(slow):
    cancel, began = threading.Event(), time.perf_counter()
    threading.Timer(0.2, cancel.set).start()
    with pytest.raises(StoppedError, match="cancelled"), stoppable(cancel, None):
        slow()
    assert time.perf_counter() - began < LONG


def test_a_time_limit_stops_a_run_and_the_next_is_not_begun(slow):
    until = time.perf_counter() + 0.2
    with Stoppable(None, until):
        for _ in range(2):
            with pytest.raises(StoppedError, match="time"):
                slow()
    assert time.perf_counter() - until < LONG


def test_other_threads_and_later_runs_go_on(slow):
    session = onnxruntime.InferenceSession(slow_graph(300, 256))
    one = np.eye(256, dtype=np.float32)
    done = []

    def other():
        with stoppable(threading.Event(), None):
            done.append(stopped(lambda options: session.run(None, {"x0": one}, options)))

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(StoppedError), stoppable(None, time.perf_counter() + 0.1):
        slow()
    thread.join()
    done.append(stopped(lambda options: session.run(None, {"x0": one}, options)))
    assert all(np.array_equal(outputs[0], one) for outputs in done)


def test_an_error_of_the_graph_stays_one():
    with pytest.raises(ZeroDivisionError), stoppable(threading.Event(), None):
        stopped(lambda options: 1 / 0)


class Endless:
    """A session whose runs end only when they are stopped."""

    def __init__(self, session):
        self._session = session

    def run(self, outputs, inputs, options=None):
        began = time.perf_counter()
        while not options.terminate and time.perf_counter() - began < LONG:
            time.sleep(0.005)
        raise RuntimeError("Exiting due to terminate flag being set to true.")

    def run_with_iobinding(self, binding, options=None):
        self.run(None, None, options)

    def __getattr__(self, name):
        return getattr(self._session, name)


def stops():
    """Options that end an answer, one by its time and one by its event."""
    cancel = threading.Event()
    threading.Timer(0.3, cancel.set).start()
    return {"time": {"time_limit": 0.3}, "cancelled": {"cancel": cancel}}


@pytest.mark.parametrize("part", ["preprocess", "vision_encoder", "decoder"])
def test_an_answer_ends_whatever_runs(bundle, part, monkeypatch):
    """Of a task whose preprocessing, vision encoder or decoder never ends; then the task is as before."""
    with sdk.load(bundle) as task:
        expected = task.ask(PICTURE, WAIT, max_new_tokens=4).tokens
        for finish in ("time", "cancelled"):
            with monkeypatch.context() as patch:
                if part == "preprocess":
                    patch.setattr(task, "_own", replace(task._own, preprocess=Endless(task._own.preprocess)))
                elif part == "vision_encoder":
                    patch.setattr(task.model, "vision_encoder", Endless(task.model.vision_encoder))
                else:
                    decoder = task.model.decoder
                    patch.setattr(decoder, "session", Endless(decoder.session))
                began = time.perf_counter()
                answer = task.ask(PICTURE, WAIT, max_new_tokens=4, **stops()[finish])
                assert (answer.text, answer.tokens, answer.finish) == ("", (), finish)
                assert answer.timing["total"] >= 0.2
                assert "".join(task.stream(PICTURE, WAIT, max_new_tokens=4, **stops()[finish])) == ""
                asked = [(PICTURE, WAIT)] * 3
                if finish == "cancelled":
                    answers = task.ask_many(asked, **stops()[finish])
                    assert [a.tokens for a in answers] == [()] * (3 if part == "decoder" else 0)
                assert time.perf_counter() - began < LONG
        assert task.ask(PICTURE, WAIT, max_new_tokens=4).tokens == expected


def test_an_answer_keeps_the_tokens_that_it_has(one_bundle, monkeypatch):
    with sdk.load(one_bundle) as task:
        expected = task.ask(PICTURE, WAIT, max_new_tokens=4).tokens
        view = task.see(PICTURE)  # which has not read the question yet
        run, calls = type(view._seen.cache).run, []

        def third_never_ends(self, embeddings, n_logits):
            calls.append(1)
            if len(calls) == 3:
                monkeypatch.setattr(self._decoder, "session", Endless(self._decoder.session))
            return run(self, embeddings, n_logits)

        monkeypatch.setattr(type(view._seen.cache), "run", third_never_ends)
        answer = view.ask(WAIT, max_new_tokens=4, time_limit=1.0)
        assert (answer.tokens, answer.finish) == (expected[:2], "time")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 1)])
def test_a_signal_ends_a_command_while_a_graph_runs(tmp_path, number, code):
    (tmp_path / "slow.onnx").write_bytes(slow_graph(2500, 1024))
    program = """
import sys, numpy, onnxruntime
from tvp.sdk import cli
from tvp.sdk._runtime.stopping import stop_on_signals, stopped
def command(*_, **__):
    stop_on_signals()
    session = onnxruntime.InferenceSession("slow.onnx")
    print("runs", flush=True)
    stopped(lambda options: session.run(None, {"x0": numpy.eye(1024, dtype=numpy.float32)}, options))
cli._run(cli.click.command()(command), [])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "runs\n"
    time.sleep(0.5)
    process.send_signal(number)
    began = time.perf_counter()
    _, said = process.communicate(timeout=LONG)
    assert time.perf_counter() - began < LONG / 2
    assert process.returncode == code, said
    assert "Traceback" not in said
