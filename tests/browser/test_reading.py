"""The page for those who use a keyboard, a screen reader, a phone, or the dark."""

from __future__ import annotations

import itertools
import json

import pytest

from tests.browser.conftest import SCENE, answered, choose_task, with_scene
from tests.browser.driver import SHIFT

ORDER = ["choose", "camera", "task", "question", "SUMMARY", "ask", "SUMMARY"]
FOCUSED = "document.activeElement.id || document.activeElement.tagName"
# Every text that is seen, with its contrast to what lies behind it (WCAG 2's formula).
CONTRASTS = """(() => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => {
        const [r, g, b] = numbers(colour).slice(0, 3).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (node) => {
        for (; node; node = node.parentElement) {
            const colour = getComputedStyle(node).backgroundColor;
            if ((numbers(colour)[3] ?? 1) === 1) return colour;
        }
        return 'rgb(255, 255, 255)';
    };
    const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const said = [];
    for (const node of document.querySelectorAll('body *')) {
        const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
        if (!node.checkVisibility() || !(own || node.matches('input, textarea, select'))) continue;
        said.push([node.id || node.tagName, contrast(light(getComputedStyle(node).color), light(behind(node)))]);
    }
    return said;
})()"""  # noqa: E501


def test_a_keyboard_is_enough(page):
    """From the first tab to the answer, without a mouse; and each stop is seen."""
    page.press("Tab")
    page.give(SCENE, lambda: page.press("Enter"))
    page.until("document.querySelector('#shown').naturalWidth")
    page.press("Tab", times=2)
    assert page.js(FOCUSED) == "task"
    before = page.js("document.querySelector('#task').value")
    page.press("ArrowDown")
    assert page.js("document.querySelector('#task').value") != before
    page.press("ArrowUp")
    page.press("Tab")
    page.write("How many objects are there?")
    page.press("Enter")
    assert answered(page) == "3"
    assert page.js(FOCUSED) == "question"
    page.press("Enter", SHIFT)
    assert page.js("document.querySelector('#question').value").endswith("?\n")
    page.press("Tab")
    page.press("Enter")  # opens the details
    page.press("Tab")
    assert page.js(FOCUSED) == "labels"
    page.write("2\n3")
    page.press("Tab")
    page.write("4")
    page.press("Tab")
    assert page.js(FOCUSED) == "ask"
    page.press(" ")
    page.until("document.querySelectorAll('#bars li').length === 2")
    page.press("Tab", SHIFT)
    assert page.js(FOCUSED) == "length"


def test_the_order_of_the_keyboard_is_that_of_the_page_and_each_stop_is_seen(page):
    found = []
    for _ in ORDER:
        page.press("Tab")
        found.append(page.js(FOCUSED))
        style, width = page.js("[getComputedStyle(document.activeElement).outlineStyle, "
                               "getComputedStyle(document.activeElement).outlineWidth]")  # fmt: skip
        assert (style, width) == ("solid", "3px"), found
    assert found == ORDER
    assert page.js("[...document.querySelectorAll('[tabindex]')].every((node) => node.tabIndex === 0)")


def test_enter_ends_a_word_in_other_scripts_and_does_not_ask(page):
    page.js("document.querySelector('#question').focus()")
    page.js("document.querySelector('#question').dispatchEvent("
            "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true}))")  # fmt: skip
    assert not page.seen("#error")


def test_each_control_has_a_name_and_each_picture_a_text(page):
    with_scene(page)
    page.fill("#question", "How many objects are there?")
    for summary in ("#more summary", "#same summary"):
        page.click(summary)
    page.click("#ask")
    answered(page)
    page.js("document.querySelector('#key-form').hidden = false")
    page.js("document.querySelector('#change-key').hidden = false")
    named = _tree(page)
    wanted = {
        ("button", "Choose a file"), ("button", "Take a picture"), ("combobox", "Task"), ("textbox", "Question"),
        ("textbox", "Labels to compare, one a line"), ("spinbutton", "Longest answer, in tokens"), ("button", "Ask"),
        ("button", "Copy curl"), ("button", "Copy Python"), ("image", "Your picture"), ("textbox", "Key"),
        ("image", "The picture as the model is shown it"), ("button", "Use this key"), ("button", "Change key"),
        ("region", "Picture"), ("region", "Question"), ("region", "In a shell, with curl"),
    }  # fmt: skip
    assert wanted <= set(named), wanted - set(named)
    roles = {"button", "combobox", "textbox", "spinbutton", "image", "link", "checkbox", "DisclosureTriangle", "region"}
    assert [(role, name) for role, name in named if role in roles and not name.strip()] == []
    page.click("#camera")
    page.until("document.querySelector('#viewfinder').open")
    assert {("dialog", "Camera"), ("button", "Take the picture"), ("button", "Close")} <= set(_tree(page))


def _tree(page):
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored")]


def test_its_outline_makes_sense(page):
    assert page.js("document.documentElement.lang") == "en"
    assert page.js("document.title") == "Ask about a picture"
    levels = page.js("[...document.querySelectorAll('h1, h2, h3')].map((node) => Number(node.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
    ids = page.js("[...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(ids) == len(set(ids))
    for attribute in ("for", "aria-labelledby", "aria-describedby"):
        for value in page.js(
            f"[...document.querySelectorAll('[{attribute}]')].map((n) => n.getAttribute({attribute!r}))"
        ):
            assert set(value.split()) <= set(ids), value


def test_what_happens_is_read_aloud_once(page):
    """The status says it; the text that grows does not."""
    page.js("""window.said = []; new MutationObserver(() => said.push(document.querySelector('#status').textContent))
        .observe(document.querySelector('#status'), {childList: true}), 0""")
    choose_task(page, "llava")
    with_scene(page)
    page.click("#ask")
    answered(page)
    said = page.js("window.said")
    assert said[:2] == ["The picture is here.", "Asking."]
    assert len(said) == 3
    assert page.js("document.querySelector('#answer').ariaLive") == "off"
    assert page.js("document.querySelector('#status').role") == "status"


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_stands_out(visit, service, dark):
    page = visit(service, dark=dark)
    page.until("document.querySelector('#task').options.length")
    assert (page.js("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 27)") is dark
    choose_task(page, "llava")
    with_scene(page)
    for summary in ("#more summary", "#same summary"):
        page.click(summary)
    page.click("#ask")
    answered(page)
    page.js("document.querySelectorAll('#error, #key-form, #change-key, #stop, #finish, #unlike')"
            ".forEach((node) => { node.hidden = false; node.textContent ||= 'text'; })")  # fmt: skip
    page.press("Tab")  # no colour of a mouse that lies over a button
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    found = page.js(CONTRASTS)
    assert len(found) > 40
    assert [(name, round(ratio, 2)) for name, ratio in found if ratio < 4.5] == []


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_it_fits_every_window(visit, service, width):
    page = visit(service, size=(width, 700), touch=width < 700)
    page.until("document.querySelector('#task').options.length")
    choose_task(page, "llava")
    with_scene(page)
    page.fill("#question", "a" * 80)
    for summary in ("#more summary", "#same summary"):
        page.click(summary)
    page.fill("#labels", f"{'b' * 60}\nc")
    page.click("#ask")
    answered(page)
    assert page.js("document.documentElement.scrollWidth") == width
    columns = page.js("document.querySelector('#ask').getBoundingClientRect().left > innerWidth / 2")
    assert columns is (width == 1280)
    sizes = page.js("[...document.querySelectorAll('button, input, select, summary')].filter("
                    "(node) => node.checkVisibility()).map((node) => node.getBoundingClientRect().height)")  # fmt: skip
    assert min(sizes) >= 32


def test_a_phone_is_told_what_a_finger_can_do(visit, service):
    page = visit(service, size=(390, 844), touch=True)
    assert page.text("#empty") == "Take a picture, or choose one."
    assert not page.seen("#question-hint")


def test_the_answer_comes_into_sight(visit, service):
    page = visit(service, size=(390, 640), touch=True)
    page.until("document.querySelector('#task').options.length")
    with_scene(page)
    page.fill("#question", "How many objects are there?")
    page.press("Enter")
    answered(page)
    page.until("document.querySelector('#answer').getBoundingClientRect().bottom <= innerHeight")


def test_without_scripts_it_says_so(visit, service):
    page = visit(service)
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    page.go(f"http://127.0.0.1:{service.port}/")
    assert any(name.startswith("This page needs JavaScript.") for _, name in _tree(page))


def test_motion_is_spared_where_it_is_unwanted(page):
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    page.js("document.querySelector('#shown-frame').classList.add('busy')")
    page.js("document.querySelector('#pictures').hidden = false")
    assert json.loads(page.js("JSON.stringify(document.getAnimations().length)")) == 0
