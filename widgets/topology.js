// A topology on the page: the network, and what is known of the link or host that is selected.

const PANEL = `
.macluster-topology { --ink: var(--jp-ui-font-color1, #24292f);
  --faint: var(--jp-ui-font-color2, #57606a); --alarm: var(--jp-error-color1, #b3261e);
  --line: var(--jp-border-color2, #d0d7de); --mark: #284c96;
  font-family: var(--jp-ui-font-family, system-ui, sans-serif); color: var(--ink);
  font-size: 12px; line-height: 17px; max-width: 1060px; padding: 6px 8px; }
[data-jp-theme-light="false"] .macluster-topology { --alarm: #ff8a80; --mark: #95d1ec;
  --line: var(--jp-border-color2, #444c56); }
.macluster-topology .head { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 10px; }
.macluster-topology .head .name { font-size: 13px; font-weight: 600; }
.macluster-topology .badge { font-size: 10.5px; line-height: 15px; padding: 1px 8px;
  border: 1px solid var(--faint); border-radius: 9px; color: var(--faint); }
.macluster-topology .badge.rdma, .macluster-topology .badge.gpu { border-color: var(--mark);
  color: var(--mark); }
.macluster-topology .badge.simulated { border-style: dashed; }
.macluster-topology .badge:empty { display: none; }
.macluster-topology .warnings { margin: 6px 0 0; padding: 0; list-style: none; }
.macluster-topology .warnings:empty { display: none; }
.macluster-topology .warnings li { padding-left: 20px; text-indent: -20px; color: var(--alarm); }
.macluster-topology .warnings li::before { content: "▲"; display: inline-block; width: 20px;
  text-indent: 0; font-size: 11px; }
.macluster-topology .status { white-space: pre-wrap; color: var(--alarm); margin-top: 6px; }
.macluster-topology .status:empty { display: none; }
.macluster-topology .both { display: flex; flex-wrap: wrap; gap: 8px 28px; align-items: flex-start; }
.macluster-topology .graph { flex: 1 1 440px; min-width: 0; overflow-x: auto; }
.macluster-topology .graph svg { display: block; width: 100%; height: auto; margin: 0 auto; }
.macluster-topology .old :is(.link, .node > :not(text)) { opacity: .5; }
.macluster-topology .panel { flex: 1 1 270px; max-width: 320px; min-width: 0; padding-top: 14px; }
.macluster-topology .panel .which { font-size: 13px; font-weight: 600; }
.macluster-topology .panel .under { color: var(--faint); margin-bottom: 8px; }
.macluster-topology .panel .under.alarm { color: var(--alarm); font-weight: 600; }
.macluster-topology dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 14px;
  margin: 8px 0; padding: 8px 0 0; border-top: 1px solid var(--line); }
.macluster-topology dl dt, .macluster-topology dl dd { float: none; width: auto; margin: 0;
  padding: 0; }
.macluster-topology dl dt { color: var(--faint); font-weight: normal; white-space: nowrap; }
.macluster-topology dl dd { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.macluster-topology .hint, .macluster-topology .key { color: var(--faint); margin: 6px 0; }
.macluster-topology .heard { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); }
.macluster-topology { --soft: var(--line); --paper: var(--jp-layout-color0, #fff); }
.macluster-topology .lines { --c: var(--mark); display: block; width: 100%; max-width: 320px;
  height: auto; margin-top: 10px; }
.macluster-topology .lines text { fill: var(--faint); font-size: 10px; }
.macluster-topology .lines .fit.bad { stroke: var(--alarm); stroke-dasharray: 3 3; }
.macluster-topology .lines .half { stroke: var(--c); stroke-dasharray: 2 2; }
`;
const HINT = "Click a link or a host. Or press Tab, walk with the arrow keys (left and right: hosts; "
  + "up and down: links), select with Enter, leave with Escape.";

// What a link takes by size: medians with their band, the line through them, the roof.
function curveOf(curve, parent) {
  const picture = svg("svg", { class: "lines", viewBox: "0 0 300 204", role: "img",
    "aria-label": curve.label }, parent);
  const sizes = curve.points.map(([size]) => size);
  const times = curve.points.flatMap(([, ...each]) => each);
  const across = [Math.min(...sizes), Math.max(...sizes, 4 * Math.min(...sizes))];
  const up = [Math.min(...times) / 1.6, Math.max(...times) * 1.6];
  const frame = logAxes(picture, [50, 10, 290, 162], across, up, { xText: sizeLabel,
    yText: timeText, xTitle: "size of a message", yTitle: "", most: 5 });
  if (curve.roof) drawFormula(frame, (size) => size / curve.roof, "roof");
  drawCurve(frame, curve.points, { kind: "link", marker: "circle" });
  if (!curve.fit) return;
  const [latency, rate] = curve.fit;
  drawFormula(frame, (size) => latency + size / rate, curve.good ? "fit" : "fit bad");
  // What is no line has no such point.
  if (!curve.good || curve.half <= across[0] || curve.half >= across[1]) return;
  const [x, y] = [frame.px(curve.half), frame.py(2 * latency)];
  svg("path", { class: "half", d: `M${x} ${y}V162` }, frame.plot);
  svg("text", { x: x - 5, y: y - 6, "text-anchor": "end" }, frame.over).textContent = "n½";
}

function render({ model, el }) {
  const page = Math.random().toString(36).slice(2);
  const root = html("div", "macluster-topology", el);
  html("style", "", root).textContent = NETWORK_STYLE + PANEL
    + axesStyle(".macluster-topology");
  const head = html("div", "head", root);
  const name = html("span", "name", head);
  const badge = html("span", "badge", head);
  const warnings = html("ul", "warnings", root);
  warnings.setAttribute("aria-label", "Warnings");
  const status = html("div", "status", root);
  status.setAttribute("role", "status");
  const both = html("div", "both", root);
  const graph = html("div", "graph scroll", both);
  const panel = html("div", "panel", both);
  panel.setAttribute("role", "region");
  panel.setAttribute("aria-label", "What is known of the selection");
  const heard = html("div", "heard", root);
  heard.setAttribute("aria-live", "polite");
  let shown = null; // what the panel was made from

  const known = (key) => model.get("figures")[key] ?? model.get("link_figures")[key];
  const tell = () => {
    const found = known(net.chosen()) ?? known("all");
    const text = JSON.stringify(found);
    if (text === shown) return;
    shown = text;
    panel.replaceChildren();
    html("div", "which", panel).textContent = found.title;
    if (found.under) {
      html("div", found.faulty ? "under alarm" : "under", panel).textContent = found.under;
    }
    if (found.curve) {
      curveOf(found.curve, panel);
      html("p", "key", panel).textContent = found.curve.words;
    }
    const list = html("dl", "", panel);
    for (const [what, value] of found.rows) {
      html("dt", "", list).textContent = what;
      html("dd", "", list).textContent = value;
    }
    if (found === known("all")) html("p", "hint", panel).textContent = HINT;
  };
  const net = network(graph, {
    choose: (key) => {
      tell();
      const found = known(key);
      heard.textContent = key && found ? `Selected: ${found.title}. ${found.heard}` : "";
    },
    leave: () => {
      // Back to what is around the view, which had the keys before.
      el.parentElement?.closest("[tabindex]")?.focus({ preventScroll: true });
    },
  });
  const draw = () => {
    const scene = model.get("scene");
    name.textContent = scene.title;
    badge.textContent = scene.badge.words;
    badge.className = `badge ${scene.badge.kind}`;
    if (warnings.textContent !== scene.warnings.join("")) {
      warnings.replaceChildren();
      for (const each of scene.warnings) html("li", "", warnings).textContent = each;
    }
    net.update(scene);
    tell();
  };
  const told = () => {
    status.textContent = model.get("status");
    graph.classList.toggle("old", Boolean(model.get("status")));
  };
  const close = () => model.send({ do: "close", page });
  draw();
  told();
  model.on("change:scene", draw);
  model.on("change:figures", tell);
  model.on("change:link_figures", tell);
  model.on("change:status", told);
  window.addEventListener("pagehide", close);
  model.send({ do: "open", page });
  return () => {
    window.removeEventListener("pagehide", close);
    model.off("change:scene", draw);
    model.off("change:figures", tell);
    model.off("change:link_figures", tell);
    model.off("change:status", told);
    close();
  };
}

export default { render };
