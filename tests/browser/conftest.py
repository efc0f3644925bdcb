from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import driver

ROOT = Path(__file__).resolve().parents[2]
SCENE = ROOT / "docs" / "images" / "scene.png"
HOME = "phone.home"  # a name that leads here; without https, so that its pages are no secure context


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if driver.find() is None:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(
                    pytest.mark.skip(
                        reason=f"there is none of {', '.join(driver.NAMES)}; on Debian: apt-get install chromium"
                    )
                )


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Some of each kind."""
    return export_bundles(tmp_path_factory.mktemp("bundles"))


def export_bundles(folder: Path) -> dict[str, str]:
    """A zoo model behind the lens, a contrastive one, and one that writes nonsense as long as one likes."""
    from tests.serve.running import LLAVA
    from tvp.export.bundle import export
    from tvp.trainer import tasks
    from tvp.trainer.prompt import Prompt

    lens = Prompt.load(ROOT / "samples" / "zoo" / "prompts" / "lens.safetensors")
    export("zoo:blip2", tasks.get("bad-camera"), folder / "camera", prompt=lens, n_cases=4)
    export("zoo:guide", tasks.get("count"), folder / "guide", n_cases=4)
    return {"camera": str(folder / "camera"), "guide": str(folder / "guide"), "llava": LLAVA}


@pytest.fixture(scope="session")
def service(bundles: dict[str, str]) -> Iterator[Any]:
    """The service that all tests share; it has no keys."""
    from tests.serve.running import running

    with running(bundles=bundles) as server:
        yield server


@pytest.fixture(scope="session")
def browser() -> Iterator[driver.Browser]:
    """A browser with a camera of its own. It finds this machine and no other."""
    rules = f"MAP {HOME} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    browser = driver.Browser("--use-fake-device-for-media-stream", f"--host-resolver-rules={rules}")
    yield browser
    browser.close()


@pytest.fixture
def visit(browser: driver.Browser) -> Iterator[Callable[..., driver.Page]]:
    """Opens pages. Behind the test, none may have asked another host, or have failed by itself."""
    pages: list[tuple[driver.Page, str]] = []

    def visit(server: Any, path: str = "", host: str = "127.0.0.1", **options: Any) -> driver.Page:
        origin = f"http://{host}:{server.port}/"
        page = browser.open(origin + path, **options)
        pages.append((page, origin))
        page.allow("videoCapture", "clipboardReadWrite", "clipboardSanitizedWrite")
        return page

    yield visit
    for page, origin in pages:
        page.close()
        assert page.problems == []
        assert [url for url in page.requests if not url.removeprefix("blob:").startswith(origin)] == []


@pytest.fixture
def page(visit: Callable[..., driver.Page], service: Any) -> driver.Page:
    """The page, with its tasks."""
    page = visit(service)
    page.until("document.querySelector('#task').options.length")
    return page


def with_scene(page: driver.Page, file: Path = SCENE) -> None:
    """Choose a picture, and wait until both sides show it, or say why not."""
    page.give(file, lambda: page.click("#choose"))
    page.until(
        "document.querySelector('#original').complete && (document.querySelector('#shown').naturalWidth || "
        "document.querySelector('#shown-note').textContent) && !document.querySelector('.busy')"
    )


def choose_task(page: driver.Page, name: str) -> None:
    """Choose a task as a keyboard does: by its first letter."""
    page.js("document.querySelector('#task').focus()")
    page.press(name[0])
    assert page.js("document.querySelector('#task').value") == name


def answered(page: driver.Page) -> str:
    """Wait for the whole answer, labels included, and return its text."""
    page.until("document.querySelector('#status').textContent.startsWith('The answer is: ')")
    return page.text("#answer")
