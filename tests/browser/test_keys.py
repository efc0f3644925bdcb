"""The page where keys are needed, and where there is no https: as on a phone in the home network."""

from __future__ import annotations

import pytest

from tests.browser.conftest import HOME, SCENE, answered, with_scene
from tests.browser.driver import CONTROL
from tests.serve.running import running
from tvp.sdk.serve.settings import Settings

KEY = "first-key-of-a-phone"
TASKS = "document.querySelector('#task').options.length"


@pytest.fixture(scope="module")
def locked(bundles, tmp_path_factory):
    """A service with a key, which takes small pictures only."""
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.touch(0o600)
    file.write_text(f"phone {KEY}\n")
    with running(Settings(max_body=200_000), keys=file, bundles={"camera": bundles["camera"]}) as server:
        yield server


@pytest.fixture
def phone(visit, locked):
    """The page over plain http under a name of the home network."""
    page = visit(locked, host=HOME, size=(390, 844), touch=True)
    page.until("!document.querySelector('#key-form').hidden")
    return page


def unlock(page, key=KEY):
    page.fill("#key", key)
    page.press("Enter")


def test_it_asks_for_a_key_and_takes_it(phone):
    assert phone.js("document.activeElement.id") == "key"
    assert not phone.seen("#error")
    unlock(phone)
    phone.until(TASKS)
    assert not phone.seen("#key-form")
    assert phone.js("document.querySelector('#key').value") == ""
    with_scene(phone)
    phone.fill("#question", "How many objects are there?")
    phone.click("#ask")
    assert answered(phone) == "3"


@pytest.mark.parametrize(
    ("key", "says"),
    [("wrong-key-of-a-phone", "This is none of the server's keys."), ("kéy with spaces", "This is no key:")],
)
def test_a_wrong_key_is_told(phone, key, says):
    unlock(phone, key)
    phone.until("!document.querySelector('#error').hidden")
    assert phone.text("#error").startswith(says)
    assert phone.seen("#key-form")
    unlock(phone)
    phone.until(TASKS)
    assert not phone.seen("#error")


def test_a_key_lasts_as_long_as_its_tab(phone, visit, locked):
    """A phone may load the page again behind its camera's app. No other tab, and nothing that stays, has the key."""
    unlock(phone)
    phone.until(TASKS)
    phone.js("location.reload()")
    phone.until(f"document.querySelector('#task') && {TASKS}")
    assert phone.js("JSON.stringify([localStorage.length, document.cookie])") == '[0,""]'
    other = visit(locked, host=HOME)
    other.until("!document.querySelector('#key-form').hidden")


def test_a_key_comes_with_a_link_and_goes_out_of_sight(visit, locked):
    page = visit(locked, f"#key={KEY}", host=HOME)
    page.until(TASKS)
    assert page.js("location.href") == f"http://{HOME}:{locked.port}/"
    assert [url for url in page.requests if KEY in url and "#" not in url] == []


def test_a_key_can_be_changed(phone):
    unlock(phone)
    phone.until(TASKS)
    phone.click("#change-key")
    assert phone.js("document.activeElement.id") == "key"
    unlock(phone, "wrong-key-of-a-phone")
    phone.until("!document.querySelector('#error').hidden")


def test_a_key_is_never_part_of_a_copied_program(phone):
    unlock(phone)
    phone.until(TASKS)
    phone.click("#same summary")
    for program in ("#curl", "#python"):
        assert KEY not in phone.text(program)
    assert '-H "Authorization: Bearer $TVP_KEY"' in phone.text("#curl")
    assert "os.environ['TVP_KEY']" in phone.text("#python")


def test_without_https_the_phones_own_camera_is_opened(phone):
    unlock(phone)
    phone.until(TASKS)
    assert phone.js("window.isSecureContext") is False
    assert phone.js("document.querySelector('#capture').getAttribute('capture')") == "environment"
    phone.give(SCENE, lambda: phone.click("#camera"))
    phone.until("document.querySelector('#shown').naturalWidth")


def test_without_https_a_program_is_copied_all_the_same(phone):
    unlock(phone)
    phone.until(TASKS)
    phone.click("#same summary")
    phone.click("#copy-curl")
    phone.until("document.querySelector('#copy-curl').textContent === 'Copied'")
    phone.fill("#question", "x")
    phone.press("v", CONTROL, commands=("paste",))
    phone.until("document.querySelector('#question').value.includes('curl -s')")


def test_a_picture_that_is_too_large_is_told(phone, tmp_path):
    """The service refuses by the head alone; the browser must not lose that behind megabytes that it still sends."""
    unlock(phone)
    phone.until(TASKS)
    large = tmp_path / "large.png"
    large.write_bytes(SCENE.read_bytes() + bytes(8_000_000))
    with_scene(phone, large)
    phone.fill("#question", "What?")
    phone.click("#ask")
    phone.until("!document.querySelector('#error').hidden")
    assert phone.text("#error") == "The body is larger than 200,000 bytes. Send a smaller picture."
