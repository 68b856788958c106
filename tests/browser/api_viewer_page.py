"""What tests do on the page of the API viewer."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page


def call(page: "Page", name: str) -> "Locator":
    """A call of the viewer, such as `tracks-find_tracks`, with its details shown."""
    found = page.locator(f"#operations-{name}")
    found.locator(".opblock-summary-control").click()
    return found


def try_out(page: "Page", name: str, **parameters: str) -> str:
    """Send a call from the viewer, and return the status of the answer."""
    found = call(page, name)
    found.get_by_role("button", name="Try it out").click()
    for parameter, value in parameters.items():
        found.locator(f"[data-param-name={parameter}] input").fill(value)
    found.get_by_role("button", name="Execute").click()
    status = found.locator(".live-responses-table tr.response .response-col_status").first
    return status.inner_text().strip()
