"""Prefect's UI in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import contextlib
import http
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from playwright.sync_api import Browser, Locator, Page, TimeoutError, expect, sync_playwright

WIDTH, HEIGHT = 1280, 900
PATIENCE_MS = 60_000
"""How long a page may take to show what is expected: long, since machines may be busy."""

RELOAD_MS = 2_000
TRIES = 5

expect.set_options(timeout=PATIENCE_MS)


def chromium() -> str | None:
    """The path of an installed Chromium."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next(filter(None, found), None)


@contextlib.contextmanager
def running_browser(path: str) -> Iterator[Browser]:
    """A browser with an empty profile that reaches nothing but this machine."""
    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(browser: Browser, url: str) -> Iterator[Ui]:
    """The UI at ``url``, in a window of its own."""
    context = browser.new_context(base_url=url, viewport={"width": WIDTH, "height": HEIGHT})
    context.set_default_timeout(PATIENCE_MS)
    try:
        yield Ui(context.new_page())
    finally:
        context.close()


@dataclass(frozen=True)
class Ui:
    """What a person does in Prefect's UI."""

    page: Page

    def run(self, flow_run: str, tab: str) -> None:
        """Open a tab of a flow run's page: ``Logs``, ``TaskRuns``, ``Artifacts``."""
        self.page.goto(f"/v2/runs/flow-run/{flow_run}?tab={tab}")

    def card(self, key: str) -> Locator:
        """What the Artifacts tab of a flow run shows of one artifact."""
        grid = self.page.get_by_test_id("flow-run-artifacts-grid")
        return grid.locator(f"a[href$='/artifacts/key/{key}']")

    def refreshed(self, wanted: Locator) -> None:
        """Reload the page until it shows what is wanted: it does not ask for artifacts again."""
        for _ in range(PATIENCE_MS // RELOAD_MS):
            with contextlib.suppress(TimeoutError):
                return wanted.wait_for(timeout=RELOAD_MS)
            self.page.reload()
        expect(wanted).to_be_visible()
        return None

    def artifact(self, flow_run: str, key: str) -> None:
        """Go from a flow run's page to the newest artifact of a key."""
        self.run(flow_run, "Artifacts")
        self.card(key).click()
        self.page.locator("a[href*='/artifacts/artifact/']").first.click()
        expect(self.page.get_by_role("tab", name="Raw")).to_be_visible()

    def form(self, deployment: str) -> None:
        """Open the form that runs a deployment, such as ``derive/films``, from the list of all."""
        flow, name = deployment.split("/")
        self.page.goto("/v2/deployments")
        row = self.page.get_by_role("row").filter(has_text=flow).filter(has_text=name)
        row.get_by_role("link", name=name, exact=True).click()
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Custom run").click()
        expect(self.page.get_by_role("heading", name="Parameters")).to_be_visible()

    def field(self, label: str) -> Locator:
        """The input of a form's field, by its whole label or without ``(Optional)``."""
        return self.page.get_by_label(re.compile(rf"^{re.escape(label)}( \(Optional\))?$"))

    def choose(self, label: str, value: str) -> None:
        """Choose a value of an enumeration."""
        self.page.get_by_label(f"Select {label}", exact=True).click()
        self.page.get_by_role("option", name=value, exact=True).click()

    def submit(self) -> None:
        self.page.get_by_role("button", name="Submit").click()

    def submitted(self) -> str:
        """Submit a form that is in order; the ID of the flow run that it starts."""
        for _ in range(TRIES):
            with self.page.expect_response("**/create_flow_run") as answer:
                self.submit()
            # What a server of Prefect says while its database is busy.
            if answer.value.status != http.HTTPStatus.SERVICE_UNAVAILABLE:
                break
        assert answer.value.ok, answer.value.text()
        return str(answer.value.json()["id"])

    def complaint(self, text: str) -> Locator:
        """What a form says beside a field that it refuses."""
        return self.page.locator("form").get_by_text(text)

    def ends_as(self, state: str) -> None:
        """Wait until the page of a flow run or a task run says so."""
        expect(self.page.get_by_text(state, exact=True).first).to_be_visible()

    def cancel(self) -> None:
        """Cancel the flow run whose page is open."""
        self.page.get_by_role("button", name="Open menu").click()
        self.page.get_by_role("menuitem", name="Cancel").click()
        self.page.get_by_role("button", name="Cancel Flow Run").click()
