"""Asking on the page: answers, labels, times, errors, slow answers, and the same request from a program."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import threading

import pytest

from tests.browser.conftest import SCENE, answered, choose_task, with_scene
from tests.browser.driver import CONTROL
from tests.serve.running import until
from tvp import sdk
from tvp.sdk.serve.jobs import Job

HOSTILE = '<img src=x onerror="window.hit = 1"><script>window.hit = 1</script>\'"&amp;\n'


class Slow:
    """Holds an answer behind its first tokens.

    Attributes:
        job: that is held.
    """

    def __init__(self) -> None:
        self.go, self.job = threading.Event(), None


@pytest.fixture
def slow(monkeypatch):
    held, tell = Slow(), Job.tell

    def telling(job, answering):
        tell(job, answering)
        if job.streams and len(answering.tokens) == 8:
            held.job = job
            assert held.go.wait(60)

    monkeypatch.setattr(Job, "tell", telling)
    yield held
    held.go.set()


def begin_long(page, n):
    """Ask for a slow answer of n tokens, and wait for its first letters."""
    choose_task(page, "llava")
    with_scene(page)
    page.click("#more summary")
    page.fill("#length", str(n))
    page.click("#ask")
    page.until("document.querySelector('#answer').textContent.length > 3")


def test_an_answer_is_the_sdks_with_labels_times_and_unlikeness(page, bundles):
    with_scene(page)
    page.fill("#question", "How many objects are there?")
    page.click("#more summary")
    page.fill("#labels", "2\n3\n\n 4 \n")
    page.click("#ask")
    with sdk.load(bundles["camera"]) as task:
        view = task.see(SCENE)
        assert answered(page) == view.ask("How many objects are there?").text == "3"
        ranked = view.rank("How many objects are there?", labels=["2", "3", "4"])
        unlikeness = view.unlikeness
    rows = page.js("[...document.querySelectorAll('#bars li')].map((row) => row.innerText.split('\\n'))")
    assert [label for label, _ in rows] == [row.label for row in ranked]
    shares = [float(share.removesuffix(" %")) for _, share in rows]
    assert sum(shares) == pytest.approx(100, abs=1)
    widths = page.js("[...document.querySelectorAll('#bars .bar')].map((bar) => bar.offsetWidth)")
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 100 > 20 > widths[-1]
    for name in ("Waited", "Picture", "First token", "In all", "Round trip"):
        assert re.search(rf"^{name}\n[\d.]+ m?s$", page.text("#times"), re.MULTILINE), page.text("#times")
    assert f"Unlikeness {unlikeness:.2f}" in page.text("#unlike")
    assert not page.seen("#stop")
    assert not page.seen("#error")


def test_the_tasks_own_question_and_labels_stand_in(page):
    choose_task(page, "llava")
    assert page.js("document.querySelector('#question').value") == "How many objects are there?"
    assert page.js("document.querySelector('#labels').value") == "1\n2\n3\n4"
    assert "causal" in page.text("#task-about")
    with_scene(page)
    page.click("#ask")
    answered(page)
    assert len(page.js("[...document.querySelectorAll('#bars li')]")) == 4


def test_another_task_has_another_preview_and_no_earlier_answer(page):
    with_scene(page)
    page.fill("#question", "How many objects are there?")
    page.click("#ask")
    answered(page)
    assert "through the lens" in page.text("#shown-about")
    choose_task(page, "llava")
    page.until("!document.querySelector('#shown-note').hidden")
    assert "Export it again" in page.text("#shown-note")
    assert not page.seen("#result")


def test_a_contrastive_task_chooses_among_its_labels_or_yours(page, bundles):
    choose_task(page, "guide")
    with_scene(page)
    page.click("#ask")
    with sdk.load(bundles["guide"]) as task:
        assert answered(page) == task.ask(SCENE).text
        page.click("#more summary")
        page.fill("#labels", "a dog\na picture of shapes")
        page.click("#ask")
        page.until("document.querySelectorAll('#bars li').length === 2")
        assert answered(page) == task.rank(SCENE, labels=["a dog", "a picture of shapes"])[0].label


def test_many_labels_are_shown_when_one_wants_them(page):
    with_scene(page)
    page.fill("#question", "How many objects are there?")
    page.click("#more summary")
    page.fill("#labels", "\n".join(map(str, range(12))))
    page.click("#ask")
    answered(page)
    count = "document.querySelectorAll('#bars li').length"
    assert (page.js(count), page.text("#all-labels")) == (8, "Show all 12 labels")
    page.click("#all-labels")
    assert page.js(count) == 12
    assert not page.seen("#all-labels")
    assert page.js("document.activeElement.matches('#bars li:nth-child(9)')")


def test_a_longer_answer_and_one_that_was_cut_off(page, bundles):
    choose_task(page, "llava")
    with_scene(page)
    page.click("#more summary")
    assert page.js("document.querySelector('#length').placeholder") == "16"
    page.fill("#length", "5")
    page.click("#ask")
    with sdk.load(bundles["llava"]) as task:
        assert answered(page).split() == task.ask(SCENE, max_new_tokens=5).text.split()
    assert page.text("#finish") == "The answer was cut off at its longest length."


def test_an_answer_is_shown_while_it_is_written(page, slow, bundles):
    begin_long(page, 60)
    part = page.js("document.querySelector('#answer').textContent")
    assert page.js("document.querySelector('#answer').ariaBusy") == "true"
    assert page.seen("#stop")
    assert page.js("document.querySelector('#status').textContent") == "Asking."
    page.until("/^\\d+\\.\\d s$/.test(document.querySelector('#progress').textContent)")
    slow.go.set()
    answered(page)
    with sdk.load(bundles["llava"]) as task:
        whole = task.ask(SCENE, max_new_tokens=60).text
    assert page.js("document.querySelector('#answer').textContent") == whole
    assert whole.startswith(part)
    assert len(part) < len(whole)
    assert page.js("document.querySelector('#answer').className") == "long"


@pytest.mark.parametrize("by", ["button", "Escape"])
def test_a_slow_answer_can_be_stopped(page, slow, by):
    """Nothing more is computed for it, and what was written stays."""
    begin_long(page, 1000)
    if by == "button":
        page.click("#stop")
    else:
        page.press("Escape")
    page.until("document.querySelector('#finish').textContent === 'You stopped it.'")
    assert len(page.js("document.querySelector('#answer').textContent")) > 3
    assert page.js("document.querySelector('#answer').ariaBusy") == "false"
    assert page.js("document.querySelector('#status').textContent") == "Stopped."
    assert not page.seen("#stop")
    assert not page.seen("#error")
    assert page.js("document.activeElement.id") == "ask"  # Stop is gone, and the keyboard is not lost
    until(slow.job.cancel.is_set)
    slow.go.set()
    page.fill("#length", "3")
    page.click("#ask")
    answered(page)


def test_a_second_question_stops_the_first(page, slow):
    begin_long(page, 1000)
    first = slow.job
    choose_task(page, "camera")
    assert not page.seen("#stop")
    until(first.cancel.is_set)
    slow.go.set()
    page.fill("#question", "How many objects are there?")
    page.click("#ask")
    assert answered(page) == "3"
    assert not page.seen("#finish")


# Errors.


def test_without_a_picture_it_says_so(page):
    page.fill("#question", "What?")
    page.click("#ask")
    assert page.text("#error") == "Choose a picture first."
    assert page.js("document.activeElement.id") == "choose"


def test_an_error_is_the_services_own(page, service):
    with_scene(page)
    page.click("#ask")
    page.until("!document.querySelector('#error').hidden")
    told = service.ask(task="camera").json()["error"]["message"]
    assert page.text("#error") == told
    assert page.js("document.querySelector('#error').getAttribute('role')") == "alert"
    assert not page.seen("#result")
    page.fill("#question", "How many objects are there?")
    page.click("#ask")
    assert answered(page) == "3"
    assert not page.seen("#error")


def test_an_error_in_the_middle_of_an_answer(page, slow, service):
    begin_long(page, 50)
    slow.job.until = 0.0  # its time is over
    service.in_loop(lambda: [one.transport.abort() for one in [*service.server.server_state.connections]])
    page.until("!document.querySelector('#error').hidden")
    assert page.text("#error") == "The connection broke before the answer was whole. Ask again."
    assert len(page.js("document.querySelector('#answer').textContent")) > 3


def test_a_full_queue_says_when_to_come_again(page, service, monkeypatch, tmp_path):
    """Also where the service refuses before it has read the picture, which is a large one."""
    with_scene(page)
    page.fill("#question", "What?")
    large = tmp_path / "large.png"
    large.write_bytes(SCENE.read_bytes() + bytes(8_000_000))
    for file in (SCENE, large):
        with_scene(page, file)
        with monkeypatch.context() as patch:
            patch.setattr(service.service.engine.waiting, "n_most", 0)
            page.click("#ask")
            page.until("!document.querySelector('#error').hidden")
            assert page.text("#error") == "0 questions wait already. Try again in 1 s."


def test_a_service_that_is_gone_is_told_in_plain_words(page):
    with_scene(page)
    page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.fill("#question", "What?")
    page.click("#ask")
    page.until("!document.querySelector('#error').hidden")
    assert page.text("#error").startswith("The service cannot be reached.")


def test_a_task_that_was_dropped_goes_from_the_list(page, service, bundles):
    server = service.service.tasks
    with_scene(page)
    extra = server.open("zebra", bundles["llava"])
    service.in_loop(lambda: server.add(extra))
    page.js("location.reload()")
    page.until("document.querySelector('#task')?.options.length === 4")
    choose_task(page, "zebra")
    with_scene(page)
    service.in_loop(lambda: server.drop("zebra"))
    page.click("#ask")
    page.until("document.querySelector('#task').options.length === 3")
    page.until("document.querySelector('#error').textContent.startsWith(\"There is no task 'zebra'\")")


# Texts of strangers.


def test_labels_names_and_answers_are_text_and_never_html(visit, service, monkeypatch):
    served = service.service.tasks.find("llava")
    about = {
        **served.about(), "question": HOSTILE, "labels": [HOSTILE, "a"], "model": HOSTILE, "kind": HOSTILE,
        "precision": HOSTILE, "prompt": [HOSTILE],
    }  # fmt: skip
    monkeypatch.setattr(type(served), "about", lambda self: {**about, "name": HOSTILE if self is served else self.name})
    monkeypatch.setattr("tvp.sdk.serve.own._piece", lambda piece: {"text": HOSTILE})
    last = {"tokens": [], "log_probabilities": [], "timing": {}, "finish": HOSTILE, "unlikeness": None}
    monkeypatch.setattr("tvp.sdk.serve.own._last", lambda answer: iter([{"answer": {"text": HOSTILE, **last}}]))
    monkeypatch.setattr("tvp.sdk.serve.own._json", lambda value: _ranked())
    monkeypatch.setattr(type(service.service.tasks), "find", lambda self, name: served)
    page = visit(service)
    page.until("document.querySelector('#task').options.length")
    count = "document.querySelectorAll('img, script, [onerror]').length"
    n_elements = page.js(count)
    page.js("document.querySelector('#task').selectedIndex = 2")
    page.js("document.querySelector('#task').dispatchEvent(new Event('change'))")
    with_scene(page)
    page.click("#same summary")
    page.click("#ask")
    page.until("document.querySelectorAll('#bars li').length === 2")
    assert page.js("document.querySelector('#answer').textContent") == HOSTILE
    assert page.js("document.querySelector('#bars .label').textContent") == HOSTILE
    assert page.js("document.querySelector('#task').selectedOptions[0].textContent") == HOSTILE
    assert HOSTILE.strip() in page.js("document.querySelector('#task-about').textContent")
    assert page.js(count) == n_elements
    assert page.js("window.hit") is None


def _ranked():
    from tvp.sdk.serve.own import Response
    from tvp.sdk.serve.own import strict_json as text

    rows = [{"label": HOSTILE, "score": -0.1}, {"label": "a", "score": -2.0}]
    return Response(text.dumps({"ranked": rows}), media_type="application/json")


def test_the_policy_would_stop_a_script_all_the_same(page):
    """Were the page to put a text in as HTML, the browser would refuse to."""
    blocked = page.js("""(async () => {
        const said = [];
        addEventListener('securitypolicyviolation', (event) => said.push(event.effectiveDirective));
        const tries = [
            () => (document.body.innerHTML = '<b>a</b>'),
            () => document.body.setAttribute('style', 'color: red'),
            () => document.body.append(Object.assign(document.createElement('img'), {src: 'https://example.com/x'})),
            () => fetch('https://example.com/').catch(() => {}),
            () => (document.createElement('script').src = '/web/page.js'),
        ];
        for (const one of tries) { try { await one(); } catch {} }
        await new Promise((done) => setTimeout(done, 100));
        return said;
    })()""")
    html, *others, script = blocked
    assert html == script == "require-trusted-types-for"
    assert others == ["style-src-attr", "img-src", "connect-src"]
    page.problems.clear()
    page.requests[:] = [url for url in page.requests if "example.com" not in url]


# The same request from a program.


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_copied_programs_ask_the_same(page, service, tmp_path):
    """Whatever a question and a file's name hold; both are pasted into a shell, and answer as the page did."""
    question = '@It\'s "red" & $HOME; `a` \\ é\u2028 <b>'
    file = tmp_path / 'it\'s "a" pho\\to;type=x, 1.png'
    file.write_bytes(SCENE.read_bytes())
    choose_task(page, "llava")
    with_scene(page, file)
    page.fill("#question", question)
    page.click("#more summary")
    page.fill("#length", "6")
    page.click("#same summary")
    page.click("#ask")
    answered(page)
    shown = page.js("document.querySelector('#answer').textContent")
    expected = service.ask(task="llava", question=question, max_new_tokens=6).json()["text"]
    assert shown == expected
    copied = {}
    for what, named in (("curl", "Copy curl"), ("python", "Copy Python")):
        page.click(f"#copy-{what}")
        page.until(f"document.querySelector('#copy-{what}').textContent === 'Copied'")
        copied[what] = page.js("navigator.clipboard.readText()")
        assert copied[what] == page.js(f"document.querySelector('#{what}').textContent")
        page.until(f"document.querySelector('#copy-{what}').textContent === '{named}'")
    said = subprocess.run(["sh", "-c", copied["curl"]], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert f'"text": {_json_text(expected)}' in said
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", copied["python"]], cwd=tmp_path, capture_output=True, text=True,
        check=True, env={**os.environ, "no_proxy": "*", "PYTHONIOENCODING": "utf-8"}, encoding="utf-8",
    ).stdout  # fmt: skip
    assert said == expected + "\n"
    assert shlex.split(copied["curl"])[0] == "curl"


def _json_text(text):
    from tvp.sdk.formats import strict_json

    return strict_json.dumps(text)


def test_the_programs_follow_the_fields(page):
    page.click("#same summary")
    page.js("document.querySelector('#question').focus()")
    page.write("Is it red?")
    assert "question=Is it red?" in page.text("#curl")
    assert '"question": "Is it red?"' in page.text("#python")
    page.press("a", CONTROL, commands=("selectAll",))
    page.press_delete()
    assert "question" not in page.text("#curl")
