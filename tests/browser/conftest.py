"""A real browser: Debian's Chromium, driven by Playwright. `make test-browser` installs it.

A page that logs an error, or asks anything of another origin, fails its test, whatever else that checks.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 60_000
BY_INTENT = tuple(
    f"Failed to load resource: {what}"
    for what in ("the server responded", "net::ERR_FAILED", "net::ERR_CONNECTION_REFUSED")
)
"""What Chromium logs of an answer that is no success, of a request that a test aborts, and of a server that it ends.
The page tells these in words of its own.
"""

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.fail(f"none of {', '.join(NAMES)} is installed; Debian's `apt-get install chromium` will do")
    with sync_playwright() as playwright:
        # Containers forbid what Chromium's sandbox is made of; it loads nothing here but this project's page.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Desk:
    """The page as somebody uses it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.status = page.locator("#status")
        self.prompt = page.locator("#prompt")
        self.errors: list[str] = []
        self.strangers: list[str] = []
        page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._note(request.url))

    def _note(self, url: str) -> None:
        if urlsplit(url).scheme not in ("data", "blob") and not url.startswith(f"{self.url}/"):
            self.strangers.append(url)

    def open(self, fragment: str = "") -> "Desk":
        """Waits until the API's description is there."""
        self.page.goto(f"{self.url}/{fragment}")
        expect(self.page.locator("#A-cache")).to_be_attached()
        return self

    def run(self, **fields: str) -> dict:
        """Fills in fields by id, runs, waits for the end, and returns the body that pane A sent."""
        for name, value in fields.items():
            control = self.page.locator(f"#{name.replace('__', '-')}")
            if control.evaluate("control => control.tagName") == "SELECT":
                control.select_option(value)
            else:
                control.fill(value)
        with self.page.expect_request("**/v1/**") as asked:
            self.page.click("#run")
        self.wait()
        return json.loads(asked.value.post_data)

    def whole(self, body: dict) -> dict:
        """The same request's answer, not as a stream."""
        body = {**body, "stream": False}
        del body["stream_options"]
        path = f"/v1/{'chat/' if 'messages' in body else ''}completions"
        return httpx.post(f"{self.url}{path}", json=body, timeout=60).json()

    def wait(self) -> None:
        expect(self.status).to_contain_text("Pane A: ")

    def wait_for_drawing(self, pane: str = "A") -> None:
        """Steps are drawn one after another, for a while after the answer's end."""
        expect(self.pane(pane).locator(".step")).to_have_text(re.compile(r"step (\d+) of \1$"))

    def pane(self, name: str = "A") -> Locator:
        return self.page.locator(f"[aria-label='Pane {name}']")

    def goto(self, step: int, pane: str = "A") -> None:
        self.pane(pane).locator(".slider").fill(str(step))
        expect(self.pane(pane).locator(".step")).to_contain_text(f"step {step} of")

    def counter(self, name: str, pane: str = "A") -> str:
        return self.pane(pane).locator(f"[data-counter={name}]").inner_text()

    def cells(self, pane: str = "A") -> list[dict]:
        """What each cell shows: its classes, text, and step."""
        return (
            self.pane(pane)
            .locator(".canvas")
            .evaluate(
                """canvas => [...canvas.children].map(cell => ({
                marks: [...cell.classList], text: cell.textContent, step: Number(cell.dataset.step ?? 0),
            }))"""
            )
        )


@pytest.fixture
def desk_at(browser: Browser) -> Iterator[Callable[..., Desk]]:
    """`desk_at(url, **options)`: a page of its own context, not opened yet."""
    contexts: list[BrowserContext] = []
    desks: list[Desk] = []

    def build(url: str, **options) -> Desk:
        contexts.append(browser.new_context(**{"viewport": {"width": 1440, "height": 1000}, **options}))
        contexts[-1].set_default_timeout(PATIENCE_MS)
        desks.append(Desk(contexts[-1].new_page(), url))
        return desks[-1]

    yield build
    for context in contexts:
        context.close()
    for desk in desks:
        assert not desk.strangers, "asked another origin"
        assert [error for error in desk.errors if not error.startswith(BY_INTENT)] == []


@pytest.fixture
def desk(desk_at, demo_server) -> Desk:
    """The page of the bundled model's server, open."""
    return desk_at(demo_server).open()


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Where pictures of the page go, for people to look at."""
    folder = Path(__file__).parents[2] / ".tools" / "page"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
