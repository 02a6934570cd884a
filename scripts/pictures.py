"""Draw the pictures of the wires in docs/: simulated Macs, one of them on a bad cable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

import macluster

DOCS = Path(__file__).resolve().parent.parent / "docs"
MACS = "2 x M3 Ultra 512GB + M4 Pro 64GB + M4 Max 128GB, mesh"
THEMES = {
    "light": "background: #fff",
    "dark": "background: #111; --jp-layout-color0: #111; "
    "--jp-ui-font-color1: rgba(255, 255, 255, .87); --jp-border-color1: #616161; "
    "--jp-border-color2: #424242; --jp-ui-font-color2: rgba(255, 255, 255, .6); "
    "--jp-layout-color2: #2a2a2a",
}
SHOW = """async ([code, state, style, light]) => {
  document.body.style.cssText = `margin: 0; width: 1034px; padding: 12px; ${style}`;
  document.body.dataset.jpThemeLight = light;
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const { render } = (await import(url)).default;
  render({ el: document.body, model: { get: (key) => state[key], on: () => {}, send: () => {} } });
}"""


def _show(page: Page, view: Any, names: list[str], theme: str) -> None:
    state = json.loads(json.dumps({name: getattr(view, name) for name in names}))
    page.evaluate(SHOW, [view._esm, state, THEMES[theme], str(theme == "light").lower()])


def main() -> None:
    """Write docs/topology-*.png and docs/measure-*.png."""
    macs = macluster.simulate(MACS).slow(1, 2, bandwidth_factor=0.3)
    network = macluster.TopologyView(macs.topology())
    measured = macluster.MeasureView(macs.measure(), macs.topology())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
            args=["--no-sandbox", "--disable-gpu"],
        )
        for theme in THEMES:
            page = browser.new_page(
                viewport={"width": 1058, "height": 700}, device_scale_factor=1.5
            )
            _show(page, network, ["scene", "figures", "link_figures", "status"], theme)
            page.locator(".over .warn").first.dispatch_event("click")
            page.locator(".macluster-topology").screenshot(path=DOCS / f"topology-{theme}.png")
            page = browser.new_page(
                viewport={"width": 1058, "height": 700}, device_scale_factor=1.5
            )
            _show(page, measured, ["data"], theme)
            page.get_by_role("radio", name="bandwidth").first.check()
            page.locator(".macluster-measure").screenshot(path=DOCS / f"measure-{theme}.png")
        browser.close()


if __name__ == "__main__":
    main()
