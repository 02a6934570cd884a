// The sharding map on the page. Python has laid it out; here it is drawn, and walked through.

const STYLE = `
.macluster-shards { --split: #2f6fd0; --experts: #8a4fc7; --whole: #128a7d; --copy: #d08a1d;
  --ink: var(--jp-ui-font-color1, #24292f); --faint: var(--jp-ui-font-color2, #57606a);
  --line: var(--jp-border-color1, #b1bac4); --paper: var(--jp-layout-color0, #fff);
  font-family: var(--jp-ui-font-family, system-ui, sans-serif); color: var(--ink);
  max-width: 980px; padding: 4px 0; }
[data-jp-theme-light="false"] .macluster-shards { --split: #6aa5ff; --experts: #c095f5;
  --whole: #3fc7b4; --copy: #eab04d; }
.macluster-shards .title { font-size: 13px; font-weight: 600; margin: 0 0 6px 8px; }
.macluster-shards svg { display: block; width: 100%; height: auto; }
.macluster-shards text { fill: var(--ink); font-size: 12px; }
.macluster-shards text.small { fill: var(--faint); font-size: 10.5px; }
.macluster-shards .split { fill: var(--split); }
.macluster-shards .whole { fill: var(--whole); }
.macluster-shards .experts-thin { fill: var(--experts); }
.macluster-shards .split-tint { fill: var(--split); fill-opacity: .24; }
.macluster-shards .experts-split-tint { fill: var(--experts); fill-opacity: .26; }
.macluster-shards .none { fill: none; stroke: var(--line); stroke-opacity: .5; }
.macluster-shards .room { fill: var(--jp-layout-color2, #eaeef2); stroke: var(--line); }
.macluster-shards .hit { fill: transparent; stroke: none; }
.macluster-shards [role="gridcell"] { outline: none; cursor: default; }
.macluster-shards [role="gridcell"]:hover .hit { stroke: var(--faint); stroke-width: 1.5; }
.macluster-shards [role="gridcell"]:focus .hit { stroke: var(--ink); stroke-width: 2.5; }
.macluster-shards .detail { min-height: 32px; margin: 2px 8px 0; font-size: 12px;
  line-height: 16px; color: var(--faint); }
.macluster-shards .detail b { color: var(--ink); font-weight: 600; }
`;
const HINT = "Point at a cell, or press Tab and walk with the arrow keys, to see its bytes.";
// Patterns tell the kinds apart where colours do not.
function patterns(root, prefix) {
  const defs = svg("defs", {}, root);
  const pattern = (name, size, ground) => {
    const node = svg(
      "pattern",
      { id: `${prefix}-${name}`, width: size, height: size, patternUnits: "userSpaceOnUse" },
      defs,
    );
    svg("rect", { width: size, height: size, style: `fill: ${ground}` }, node);
    return node;
  };
  const paper = "stroke: var(--paper); stroke-width: 1.2";
  svg("path", { d: "M0 2H4", style: paper }, pattern("copy", 4, "var(--copy)"));
  const dot = { cx: 2, cy: 2, r: 0.8, style: "fill: var(--paper)" };
  svg("circle", dot, pattern("experts", 4, "var(--experts)"));
  const hatch = "stroke: var(--faint); stroke-width: 1.6";
  svg("path", { d: "M-1 6L6 -1", style: hatch }, pattern("cache", 5, "var(--paper)"));
}

function shape([kind, x, y, width, height], prefix, parent) {
  const node = svg("rect", { class: kind, x, y, width, height }, parent);
  const fill = { copy: "copy", "experts-split": "experts", "experts-whole": "experts",
    cache: "cache" }[kind];
  if (fill) node.style.fill = `url(#${prefix}-${fill})`;
}

function render({ model, el }) {
  const scene = model.get("scene");
  const prefix = unique("shards");
  const root = html("div", "macluster-shards", el);
  html("style", "", root).textContent = STYLE;
  html("div", "title", root).textContent = model.get("title");
  const picture = svg("svg", {
    viewBox: `0 0 ${scene.width} ${scene.height}`,
    role: "grid",
    "aria-label": scene.label,
    "aria-rowcount": scene.rows.length,
  }, root);
  picture.style.maxWidth = `${scene.width}px`;
  patterns(picture, prefix);
  for (const [kind, x, y, anchor, words] of scene.texts) {
    const node = svg("text", { class: kind, x, y, "text-anchor": anchor }, picture);
    node.setAttribute("aria-hidden", "true");
    node.textContent = words;
  }
  for (const each of scene.shapes) shape(each, prefix, picture);
  const detail = html("div", "detail", root);
  detail.textContent = HINT;

  const grid = [];
  const tell = (cell) => {
    detail.replaceChildren();
    html("b", "", detail).textContent = cell.label;
    if (cell.detail) detail.append(` – ${cell.detail}`);
  };
  let row = 0;
  let column = 0;
  const move = (nextRow, nextColumn) => {
    row = Math.max(0, Math.min(grid.length - 1, nextRow));
    column = Math.max(0, Math.min(grid[row].length - 1, nextColumn));
    grid[row][column].focus({ preventScroll: true });
  };
  scene.rows.forEach((line, y) => {
    const group = svg("g", { role: "row", "aria-label": line.label }, picture);
    grid.push(line.cells.map((cell, x) => {
      const node = svg("g", {
        role: "gridcell",
        tabindex: x === 0 && y === 0 ? 0 : -1,
        "aria-label": cell.detail ? `${cell.label}: ${cell.detail}` : cell.label,
      }, group);
      for (const each of cell.shapes) shape(each, prefix, node);
      svg("rect", { class: "hit", x: cell.x - 1, y: cell.y - 1, width: cell.w + 2,
        height: cell.h + 2, rx: 1.5 }, node);
      node.addEventListener("pointerenter", () => tell(cell));
      node.addEventListener("pointerleave", () => {
        const focused = grid.flat().indexOf(document.activeElement);
        if (focused < 0) detail.textContent = HINT;
        else tell(scene.rows[row].cells[column]);
      });
      node.addEventListener("focus", () => {
        // One cell at a time can be reached with Tab: the one that was last looked at.
        for (const other of grid.flat()) other.setAttribute("tabindex", -1);
        node.setAttribute("tabindex", 0);
        [row, column] = [y, x];
        tell(cell);
      });
      node.addEventListener("blur", () => { detail.textContent = HINT; });
      return node;
    }));
  });
  picture.addEventListener("keydown", (event) => {
    const last = grid[row].length - 1;
    const steps = {
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      Home: [event.ctrlKey ? 0 : row, 0],
      End: [event.ctrlKey ? grid.length - 1 : row, last],
    };
    if (!(event.key in steps)) return;
    // JupyterLab would take the key as a step to another cell of the notebook.
    event.preventDefault();
    event.stopPropagation();
    move(...steps[event.key]);
  });
}

export default { render };
