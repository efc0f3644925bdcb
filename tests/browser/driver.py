"""Chromium, driven over its DevTools protocol.

It listens at a pipe (`--remote-debugging-pipe`): JSON that ends with a zero byte. So no package and no port is needed.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import queue
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SECONDS = 20.0  # for whatever is waited for
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Windows' numbers and the texts of keys that write something.
KEYS = {
    "Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, ""), " ": (32, " "), "ArrowDown": (40, ""), "ArrowUp": (38, ""),
}  # fmt: skip
SHIFT, CONTROL = 8, 2


def find() -> str | None:
    """Return the program, or None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class BrowserError(Exception):
    """Chromium refused a command, or a script failed in the page."""


class Browser:
    """A headless Chromium with a profile of its own. It reaches loopback, and no other host by name.

    Args:
        options: more options of its command line.
    """

    def __init__(self, *options: str) -> None:
        program = find()
        assert program is not None
        self._profile = tempfile.TemporaryDirectory(prefix="tvp-browser-", ignore_cleanup_errors=True)
        command = [
            program, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}",
            "--no-first-run", "--no-default-browser-check", "--disable-background-networking", "--disable-gpu",
            "--disable-dev-shm-usage", "--disable-component-update", "--disable-sync", "--mute-audio",
            "--no-proxy-server", "--hide-scrollbars", "--force-color-profile=srgb",
            *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []), *options,
        ]  # fmt: skip
        their_in, self._out = os.pipe()
        self._in, their_out = os.pipe()
        # Chromium reads from 3 and writes to 4.
        shell = f"exec {shlex.join(command)} 3<&{their_in} 4>&{their_out}"
        self._process = subprocess.Popen(
            ["bash", "-c", shell], pass_fds=(their_in, their_out), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(their_in)
        os.close(their_out)
        self._numbers = itertools.count(1)
        self._answers: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.version = self.call("Browser.getVersion")["product"]

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """Send a command, and return its result."""
        number = next(self._numbers)
        answer = self._answers[number] = queue.Queue(1)
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        try:
            found = answer.get(timeout=SECONDS)
        except queue.Empty:
            raise BrowserError(f"{method}: no answer") from None
        finally:
            del self._answers[number]
        if "error" in found:
            raise BrowserError(f"{method}: {found['error']['message']}")
        result: dict[str, Any] = found["result"]
        return result

    def open(self, address: str, size: tuple[int, int] = (1280, 900), dark: bool = False, touch: bool = False) -> Page:
        """Open an address in a window without a past: other pages' storage is not there.

        Args:
            address: of the page.
            size: of the window, in CSS pixels.
            dark: whether the reader prefers dark colours.
            touch: whether it is a phone.
        """
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session, context)
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            page.call(f"{domain}.enable")
        page.window = {"width": size[0], "height": size[1], "deviceScaleFactor": 2 if touch else 1, "mobile": touch}
        page.call("Emulation.setDeviceMetricsOverride", **page.window)
        page.call("Emulation.setTouchEmulationEnabled", enabled=touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.go(address)
        return page

    def close(self) -> None:
        """End the program."""
        try:
            self.call("Browser.close")
            self._process.wait(20)
        except (BrowserError, BrokenPipeError, subprocess.TimeoutExpired):
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._out)
        self._reader.join()
        os.close(self._in)
        self._profile.cleanup()

    def _read(self) -> None:
        data = b""
        while piece := os.read(self._in, 2**20):
            *whole, data = (data + piece).split(b"\0")
            for text in whole:
                message = json.loads(text)
                if "id" in message:
                    self._answers[message["id"]].put(message)
                elif message.get("sessionId") in self._pages:
                    self._pages[message["sessionId"]].noted(message["method"], message["params"])


class Page:
    """One window.

    Attributes:
        problems: what went wrong in the page by itself: errors of scripts, and whatever its policy blocked.
        requests: addresses that the page asked for.
        context: of the browser, with its own storage and permissions.
        window: its size.
    """

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self.browser, self.context, self._session = browser, context, session
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.window: dict[str, Any] = {}
        self._choosers: queue.Queue[int] = queue.Queue()
        self._loaded = threading.Event()

    def noted(self, method: str, said: dict[str, Any]) -> None:
        """Take an event of the browser."""
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(said["exceptionDetails"].get("exception", said["exceptionDetails"])))
        elif method == "Log.entryAdded":
            entry = said["entry"]
            refused = entry["source"] == "network"  # a status of 4xx is logged; tests look at what the page says of it
            if entry["level"] in ("error", "warning") and not refused:
                self.problems.append(entry["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method == "Page.fileChooserOpened":
            self._choosers.put(said["backendNodeId"])
        elif method == "Page.loadEventFired":
            self._loaded.set()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command that is about this window."""
        return self.browser.call(method, self._session, **parameters)

    def go(self, address: str) -> None:
        """Load an address."""
        self._loaded.clear()
        failed = self.call("Page.navigate", url=address).get("errorText")
        assert not failed, f"{address}: {failed}"
        assert self._loaded.wait(SECONDS), address

    def js(self, expression: str) -> Any:
        """Return the value of an expression in the page; promises are waited for."""
        found = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=False
        )
        if "exceptionDetails" in found:
            raise BrowserError(f"{expression}: {found['exceptionDetails'].get('exception', {}).get('description')}")
        return found["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until an expression is true; returns its value."""
        end = time.monotonic() + SECONDS
        while not (value := self.js(expression)):
            if time.monotonic() > end:
                raise BrowserError(f"it did not happen: {expression}; the page says: {self.text('#error')!r}")
            time.sleep(0.02)
        return value

    def text(self, selector: str) -> str:
        """Return the text of an element as a reader sees it."""
        text: str = self.js(f"document.querySelector({json.dumps(selector)}).innerText")
        return text

    def seen(self, selector: str) -> bool:
        """Return whether an element is shown."""
        seen: bool = self.js(f"document.querySelector({json.dumps(selector)}).checkVisibility()")
        return seen

    # What a hand does.

    def middle(self, selector: str) -> tuple[float, float]:
        """Return the middle of an element, after scrolling to it."""
        found = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center', behavior: 'instant'}); const r = e.getBoundingClientRect(); "
            "return [r.x + r.width / 2, r.y + r.height / 2, r.width * r.height]; })()"
        )
        assert found[2], f"{selector} is not shown"
        return found[0], found[1]

    def click(self, selector: str) -> None:
        """Click at the middle of an element, whatever lies there."""
        x, y = self.middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, modifiers: int = 0, times: int = 1, commands: tuple[str, ...] = ()) -> None:
        """Press a key.

        Args:
            key: its name, or a letter.
            modifiers: SHIFT, CONTROL or their sum.
            times: how often.
            commands: of the editor, which a headless browser does not derive from keys.
        """
        number, text = KEYS.get(key, (ord(key[0].upper()), "" if modifiers & CONTROL else key))
        code = f"Key{key.upper()}" if len(key) == 1 and key.isalpha() else {" ": "Space"}.get(key, key)
        common = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        for _ in range(times):
            down = "keyDown" if text else "rawKeyDown"
            self.call("Input.dispatchKeyEvent", type=down, text=text, commands=list(commands), **common)
            self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def write(self, text: str) -> None:
        """Write a text where the cursor is."""
        self.call("Input.insertText", text=text)

    def fill(self, selector: str, text: str) -> None:
        """Click a field, and write a text in place of its own."""
        self.click(selector)
        self.js(f"document.querySelector({json.dumps(selector)}).select()")
        self.write(text) if text else self.press_delete()

    def press_delete(self) -> None:
        """Delete what is selected."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key="Delete", code="Delete", windowsVirtualKeyCode=46)

    def give(self, file: Path, open_chooser: Any) -> None:
        """Choose a file in the dialog that something opens."""
        self.call("Page.setInterceptFileChooserDialog", enabled=True)
        open_chooser()
        node = self._choosers.get(timeout=SECONDS)
        self.call("DOM.setFileInputFiles", files=[str(file)], backendNodeId=node)

    def drop(self, selector: str, *files: Path, items: tuple[dict[str, str], ...] = (), lets_go: bool = True) -> None:
        """Drag files or other items over an element, and let go."""
        x, y = self.middle(selector)
        data = {"items": list(items), "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", *(["drop"] if lets_go else [])):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def allow(self, *permissions: str) -> None:
        """Grant permissions, such as `clipboardReadWrite`."""
        self.browser.call("Browser.grantPermissions", permissions=list(permissions), browserContextId=self.context)

    def screenshot(self, file: Path, whole: bool = True) -> None:
        """Write what is seen as a PNG file; whole: in a window as high as the page, as nothing is scrolled then."""
        if whole:
            height = self.js("document.documentElement.scrollHeight")
            self.call("Emulation.setDeviceMetricsOverride", **{**self.window, "height": height})
            self.js("scrollTo(0, 0), new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        self.call("Emulation.setDeviceMetricsOverride", **self.window)

    def close(self) -> None:
        """Close the window, and forget what it stored."""
        self.browser.call("Target.disposeBrowserContext", browserContextId=self.context)
        del self.browser._pages[self._session]
