"""Every way in which a picture comes to the page: a file, a drop, the clipboard, the camera."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from tests.browser.conftest import ROOT, SCENE, answered, with_scene
from tests.browser.driver import CONTROL
from tvp import sdk

READY = "document.querySelector('#original').naturalWidth && document.querySelector('#shown').naturalWidth"
# The picture's values as the browser holds them: text that is the same for the same picture.
PIXELS = """(() => {
    const image = document.querySelector('%s'), canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    canvas.getContext('2d').drawImage(image, 0, 0);
    return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data];
})()"""


def pixels(page, selector, size=64):
    return np.array(page.js(PIXELS % selector), np.uint8).reshape(size, size, 4)[..., :3]


def test_a_file_is_shown_beside_what_the_model_is_shown(page, bundles):
    with_scene(page)
    assert (pixels(page, "#original") == sdk.read_image(SCENE)).all()
    with sdk.load(bundles["camera"]) as task:
        assert (pixels(page, "#shown") == task.prompted(SCENE)).all()
    assert page.text("#original-about") == "64 × 64, 10 kB"
    assert page.text("#shown-about") == "64 × 64, through the lens"
    assert not page.seen("#empty")


def test_the_same_file_can_be_chosen_again(page):
    for _ in range(2):
        with_scene(page)
        page.js("document.querySelector('#status').textContent = ''")
        page.give(SCENE, lambda: page.click("#choose"))
        page.until("document.querySelector('#status').textContent === 'The picture is here.'")


def test_a_picture_is_dropped_anywhere(page):
    for place in ("#empty", "#question", "h1"):
        page.js("document.querySelector('#status').textContent = ''")
        page.drop(place, SCENE)
        page.until("document.querySelector('#status').textContent === 'The picture is here.'")
        page.until(READY)
        assert page.js("document.querySelector('#picture').className") == "card"


def test_the_card_says_that_it_takes_a_drop(page):
    page.drop("#empty", SCENE, lets_go=False)
    page.until("document.querySelector('#picture').className === 'card over'")
    page.js("dispatchEvent(new DragEvent('dragleave'))")  # as where it leaves the window
    assert page.js("document.querySelector('#picture').className") == "card"


def test_an_address_that_is_dropped_is_not_followed(page):
    page.drop("#empty", items=({"mimeType": "text/uri-list", "data": "https://example.com/cat.png"},))
    page.until("!document.querySelector('#error').hidden")
    assert page.text("#error").startswith("That was an address and no file.")


def test_a_file_that_is_no_picture_is_told(page):
    page.drop("#empty", ROOT / "LICENSE")
    page.until("!document.querySelector('#shown-note').hidden && !document.querySelector('#original-note').hidden")
    assert page.text("#original-note").startswith("This browser cannot show it.")
    assert page.text("#shown-note").startswith("The image data is not a picture in a known format.")
    with_scene(page)  # and the next is shown
    page.until(READY)
    assert page.seen("#original")
    assert not page.seen("#original-note")


def test_a_picture_is_pasted_from_the_clipboard(page):
    data = base64.b64encode(SCENE.read_bytes()).decode()
    page.js(f"""navigator.clipboard.write([new ClipboardItem({{'image/png': new Blob(
        [Uint8Array.from(atob('{data}'), (c) => c.charCodeAt(0))], {{type: 'image/png'}})}})])""")
    page.press("v", CONTROL, commands=("paste",))
    page.until(READY)
    assert (pixels(page, "#original") == sdk.read_image(SCENE)).all()


def test_a_text_is_pasted_into_the_question(page):
    page.js("navigator.clipboard.writeText('Is it red?')")
    page.js("document.querySelector('#question').focus()")
    page.press("v", CONTROL, commands=("paste",))
    page.until("document.querySelector('#question').value === 'Is it red?'")
    assert page.seen("#empty")


def test_the_camera_takes_a_picture_and_is_let_go(page):
    page.click("#camera")
    page.until("document.querySelector('#viewfinder').open && document.querySelector('#video').videoWidth")
    assert page.js("document.activeElement.id") == "take"
    page.js("window.tracks = document.querySelector('#video').srcObject.getTracks()")
    page.click("#take")
    page.until(READY)
    assert not page.js("document.querySelector('#viewfinder').open")
    assert page.js("window.tracks.map((track) => track.readyState)") == ["ended"]
    assert page.js("document.querySelector('#video').srcObject") is None
    assert page.js("document.querySelector('#original').naturalWidth") >= 640
    assert "camera.jpg" in page.js("document.querySelector('#curl').textContent")
    page.fill("#question", "How many objects are there?")
    page.click("#ask")
    assert answered(page)


@pytest.mark.parametrize("by", ["button", "Escape"])
def test_the_camera_is_closed_without_a_picture(page, by):
    page.click("#camera")
    page.until("document.querySelector('#viewfinder').open")
    page.js("window.tracks = document.querySelector('#video').srcObject.getTracks()")
    if by == "button":
        page.click("#close-camera")
    else:
        page.press("Escape")
    page.until("!document.querySelector('#viewfinder').open")
    page.until("window.tracks.every((track) => track.readyState === 'ended')")
    assert page.seen("#empty")
    assert page.js("document.activeElement.id") == "camera"
    page.click("#camera")  # it opens again, and takes one picture
    page.until("document.querySelector('#video').videoWidth")
    page.click("#take")
    page.until(READY)


def test_a_camera_that_may_not_be_used_is_told(page, browser):
    browser.call(
        "Browser.setPermission", permission={"name": "camera"}, setting="denied", browserContextId=page.context
    )
    page.click("#camera")
    page.until("!document.querySelector('#error').hidden")
    assert page.text("#error").startswith("The camera may not be used. Allow it")
    assert not page.js("document.querySelector('#viewfinder').open")


@pytest.mark.parametrize(
    ("name", "says"), [("NotFoundError", "has no camera"), ("NotReadableError", "in use"), ("Other", "does not start")]
)
def test_a_camera_that_fails_is_told(page, name, says):
    page.js(
        f"navigator.mediaDevices.getUserMedia = () => Promise.reject(Object.assign(new Error(), {{name: '{name}'}})), 0"
    )
    page.click("#camera")
    page.until("!document.querySelector('#error').hidden")
    assert says in page.text("#error")
