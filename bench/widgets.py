"""How long the page needs for a frame of a network: an update beside a drawing from nothing.

A headless Chromium draws a ring and a mesh of several sizes. Each figure is the median of 50, from
the call to the end of the layout that it forces; the two are measured in one run.

    python bench/widgets.py [--chromium PROGRAM]
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
from typing import Any

from playwright.sync_api import Page, sync_playwright

from macluster.engine.tables import Table
from macluster.engine.topology.topology import Link, Node, Topology
from macluster.widgets.topology import TopologyView

COUNT = 50
ALLOWED = 20.0  # milliseconds of an update of 64 hosts in a ring
NAMES = ("chromium", "chromium-browser", "google-chrome")

TIMES = """async ([code, states, count]) => {
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const { render } = (await import(url)).default;
  const median = (all) => all.sort((a, b) => a - b)[Math.floor(all.length / 2)];
  const place = () => document.body.appendChild(document.createElement("div"));
  const listeners = {};
  let state = states[0];
  const model = { get: (key) => state[key], off: () => {}, send: () => {},
    on: (name, call) => { listeners[name] = call; } };
  const timed = (act) => {
    const begin = performance.now();
    act();
    document.body.getBoundingClientRect();
    return performance.now() - begin;
  };
  const found = { rebuild: [], update: [] };
  const where = place();
  for (let round = 0; round < count; round += 1) {
    state = states[round % 2];
    where.replaceChildren();
    found.rebuild.push(timed(() => render({ model, el: where })));
  }
  for (let round = 0; round < count; round += 1) {
    state = states[round % 2];
    found.update.push(timed(() => listeners["change:scene"]()));
  }
  return { rebuild: median(found.rebuild), update: median(found.update) };
}"""


def topology(size: int, mesh: bool, used: int) -> Topology:
    """Hosts in a ring or full mesh, with `used` GB in use and more on every second."""
    pairs = [(a, b) for a in range(size) for b in range(a + 1, size)]
    if not mesh:
        pairs = [(n, n + 1) for n in range(size - 1)] + [(0, size - 1)]
    nodes = tuple(
        Node(n, f"host-{n}", "Mac Studio, Apple M3 Ultra", 512 * 10**9,
             (used + n % 2 * 40) * 10**9, None, "ok")
        for n in range(size)
    )  # fmt: skip
    return Topology(nodes, tuple(Link(a, b, "rdma") for a, b in pairs), "jaccl")


def state(shown: Topology) -> dict[str, Any]:
    """What the page gets."""
    view = TopologyView(shown)
    names = ("scene", "figures", "link_figures", "status")
    return json.loads(json.dumps({name: getattr(view, name) for name in names}))


def measured(page: Page, size: int, mesh: bool) -> dict[str, float]:
    """Milliseconds, medians."""
    page.set_content("<body></body>")
    states = [state(topology(size, mesh, used)) for used in (100, 300)]
    found: dict[str, float] = page.evaluate(TIMES, [str(TopologyView._esm), states, COUNT])
    return found


def main() -> int:
    """Print the table; 1 when an update takes longer than is allowed."""
    parser = argparse.ArgumentParser(description=__doc__)
    installed = next((path for name in NAMES if (path := shutil.which(name))), None)
    parser.add_argument("--chromium", default=installed)
    options = parser.parse_args()
    rows, late = [], False
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=options.chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1080, "height": 900})
        for size, mesh in ((8, False), (8, True), (64, False), (64, True)):
            found = measured(page, size, mesh)
            links = len(topology(size, mesh, 0).links)
            name = f"{'mesh' if mesh else 'ring'} of {size}"
            late |= (size, mesh) == (64, False) and found["update"] > ALLOWED
            rows.append((name, str(links), *(f"{found[k]:.1f}" for k in ("update", "rebuild"))))
        version = browser.version
        browser.close()
    heading = ("network", "links", "update ms", "from nothing ms")
    title = f"Chromium {version} without a GPU, {platform.machine()}, medians of {COUNT}"
    print(Table(heading, rows, right=(1, 2, 3), title=title).text())
    return int(late)


if __name__ == "__main__":
    raise SystemExit(main())
