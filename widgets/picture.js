// Bars on the page, for the views that come behind this. Python has laid them out.

const STYLE = `
.macluster-bars { --weights: #2f6fd0; --wait: #d08a1d; --wire: #128a7d;
  --alarm: var(--jp-error-color1, #b3261e);
  --ink: var(--jp-ui-font-color1, #24292f); --faint: var(--jp-ui-font-color2, #57606a);
  --line: var(--jp-border-color1, #b1bac4); --paper: var(--jp-layout-color0, #fff);
  font-family: var(--jp-ui-font-family, system-ui, sans-serif); color: var(--ink);
  max-width: 980px; padding: 4px 0; }
[data-jp-theme-light="false"] .macluster-bars { --weights: #6aa5ff; --wait: #eab04d;
  --wire: #3fc7b4; --alarm: #ff8a80; }
.macluster-bars .title { font-size: 13px; font-weight: 600; margin: 0 0 6px 8px; }
.macluster-bars svg { display: block; width: 100%; height: auto; }
.macluster-bars text { fill: var(--ink); font-size: 12px; }
.macluster-bars text.strong { font-weight: 600; }
.macluster-bars text.small { fill: var(--faint); font-size: 10.5px; }
.macluster-bars text.alarm { fill: var(--alarm); font-size: 10.5px; font-weight: 600; }
.macluster-bars .weights, .macluster-bars .compute { fill: var(--weights); }
.macluster-bars .range { fill: var(--weights); fill-opacity: .4; }
.macluster-bars .value, .macluster-bars .limit, .macluster-bars .whisker { fill: var(--ink); }
.macluster-bars .tick { fill: var(--line); fill-opacity: .6; }
.macluster-bars .room { fill: var(--jp-layout-color2, #eaeef2); stroke: var(--line); }
.macluster-bars .over { stroke: var(--alarm); }
.macluster-bars .late { fill: none; stroke: var(--alarm); stroke-width: 1.5; }
.macluster-bars p { margin: 4px 8px; font-size: 12px; line-height: 17px; color: var(--faint); }
.macluster-bars p.main { color: var(--ink); }
`;
// Patterns tell the kinds apart where colours do not.
function patterns(root, prefix) {
  const defs = svg("defs", {}, root);
  const pattern = (name, size, ground, mark, attributes, style) => {
    const id = `${prefix}-${name}`;
    const node = svg("pattern", { id, width: size, height: size,
      patternUnits: "userSpaceOnUse" }, defs);
    svg("rect", { width: size, height: size, style: `fill: ${ground}` }, node);
    svg(mark, { ...attributes, style }, node);
  };
  const paper = "stroke: var(--paper); stroke-width: 1.2";
  pattern("wait", 4, "var(--wait)", "path", { d: "M0 2H4" }, paper);
  pattern("wire", 4, "var(--wire)", "circle", { cx: 2, cy: 2, r: 0.8 }, "fill: var(--paper)");
  pattern("cache", 5, "var(--paper)", "path", { d: "M-1 6L6 -1" },
    "stroke: var(--faint); stroke-width: 1.6");
  pattern("over", 6, "var(--paper)", "path", { d: "M0 0L6 6M6 0L0 6" },
    "stroke: var(--alarm); stroke-width: 1.3");
}

function draw(scene, parent) {
  const prefix = unique("bars");
  const picture = svg("svg", {
    viewBox: `0 0 ${scene.width} ${scene.height}`, role: "img", "aria-label": scene.label,
  });
  picture.style.maxWidth = `${scene.width}px`;
  patterns(picture, prefix);
  for (const [kind, x, y, width, height] of scene.shapes) {
    const node = svg("rect", { class: kind, x, y, width, height }, picture);
    const drawn = ["wait", "wire", "cache", "over"].includes(kind);
    if (drawn) node.style.fill = `url(#${prefix}-${kind})`;
  }
  for (const [kind, x, y, anchor, words] of scene.texts) {
    svg("text", { class: kind, x, y, "text-anchor": anchor }, picture).textContent = words;
  }
  parent.replaceChildren(picture);
}

function paragraphs(words, parent, className = "") {
  parent.replaceChildren();
  for (const each of words) html("p", className, parent).textContent = each;
}

function frame(model, el) {
  const root = html("div", "macluster-bars", el);
  html("style", "", root).textContent = STYLE;
  html("div", "title", root).textContent = model.get("title");
  return root;
}
