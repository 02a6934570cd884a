// A measurement on the page: a matrix of pairs, and curves. Python says what each cell shows.

const SHADES = [0, 1, 2, 3, 4, 5, 6, 7, 8].map((level) => `var(--s${level})`);
const STYLE = `
.macluster-measure { --alarm: var(--jp-error-color1, #b3261e);
  --ink: var(--jp-ui-font-color1, #24292f); --faint: var(--jp-ui-font-color2, #57606a);
  --line: var(--jp-border-color1, #b1bac4); --soft: var(--jp-border-color2, #e1e5ea);
  --paper: var(--jp-layout-color0, #fff); --empty: var(--jp-layout-color2, #f0f2f4);
  --accent: #2f6fd0;
  --s0: #f2f7fc; --s1: #e0ecf7; --s2: #cbdff1; --s3: #b1d0ea; --s4: #93bee0; --s5: #74a9d5;
  --s6: #5694c8; --s7: #4388c2; --s8: #2869a5; --on-a: #000; --on-b: #000; --on-c: #fff;
  --all_sum: #2f6fd0; --all_gather: #128a7d; --sendrecv: #b35c00; --barrier: #8a4fc7;
  --pair: #a8326e; --predicted: var(--faint);
  font-family: var(--jp-ui-font-family, system-ui, sans-serif); color: var(--ink);
  font-size: 12px; line-height: 17px; max-width: 860px; padding: 4px 8px;
  font-variant-numeric: tabular-nums; }
[data-jp-theme-light="false"] .macluster-measure { --accent: #6aa5ff; --alarm: #ff8a80;
  --s0: #18222d; --s1: #1b2f42; --s2: #1e3d59; --s3: #224d72; --s4: #275f8d; --s5: #2f6b9f;
  --s6: #4387bf; --s7: #5ea0d4; --s8: #7ab5e1; --on-a: #fff; --on-b: #000; --on-c: #000;
  --all_sum: #6aa5ff; --all_gather: #3fc7b4; --sendrecv: #f0a04b; --barrier: #c095f5;
  --pair: #f58bbd; }
.macluster-measure .title { font-size: 13px; font-weight: 600; margin-bottom: 8px; }
.macluster-measure .simulated { display: inline-block; margin: 0 0 8px; padding: 2px 8px;
  border: 1px dashed var(--ink); border-radius: 4px; font-weight: 600; }
.macluster-measure .wrong { margin: 0 0 10px; padding: 8px 12px; border: 2px solid var(--alarm);
  border-radius: 4px; color: var(--alarm); font-weight: 600; font-size: 13px; }
.macluster-measure .wrong span { display: block; font-weight: 400; font-size: 12px; }
.macluster-measure [role="tablist"] { display: flex; gap: 20px; margin-bottom: 14px;
  border-bottom: 1px solid var(--soft); }
.macluster-measure [role="tab"] { border: 0; border-bottom: 2px solid transparent; padding: 5px 2px;
  margin-bottom: -1px; background: none; font: inherit; font-size: 13px; color: var(--faint);
  cursor: pointer; }
.macluster-measure [role="tab"][aria-selected="true"] { color: var(--ink); font-weight: 600;
  border-color: var(--accent); }
.macluster-measure button:focus-visible, .macluster-measure select:focus-visible,
.macluster-measure input:focus-visible + span { outline: 2px solid var(--accent);
  outline-offset: 1px; }
.macluster-measure .bar { display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: center;
  margin-bottom: 12px; }
.macluster-measure fieldset { display: flex; flex-wrap: wrap; gap: 2px; margin: 0; padding: 0;
  border: 0; min-width: 0; }
.macluster-measure fieldset label { position: relative; cursor: pointer; }
.macluster-measure fieldset input { position: absolute; opacity: 0; inset: 0; margin: 0;
  cursor: pointer; }
.macluster-measure fieldset span { display: block; padding: 3px 9px; border-radius: 4px;
  color: var(--faint); }
.macluster-measure fieldset input:checked + span { background: var(--empty); color: var(--ink);
  font-weight: 600; }
.macluster-measure select { font: inherit; color: var(--ink); background: var(--paper);
  border: 1px solid var(--line); border-radius: 4px; padding: 2px 4px; }
.macluster-measure .hidden { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); }
.macluster-measure p { margin: 0 0 6px; color: var(--faint); }
.macluster-measure .alarm { color: var(--alarm); font-weight: 600; }
.macluster-measure .scroll { overflow-x: auto; }
.macluster-measure .stage { position: relative; }
.macluster-measure svg, .macluster-measure canvas { display: block; max-width: 100%;
  height: auto; }
.macluster-measure text { fill: var(--ink); font-size: 13px; }
.macluster-measure text.small { fill: var(--faint); font-size: 11px; }
.macluster-measure text.strong { font-weight: 600; font-size: 12px; }
.macluster-measure .none { fill: var(--empty); }
.macluster-measure .self { fill: none; }
.macluster-measure text.a { fill: var(--on-a); }
.macluster-measure text.b { fill: var(--on-b); }
.macluster-measure text.c { fill: var(--on-c); }
.macluster-measure text.unit { font-size: 10px; }
.macluster-measure .frame-alarm { fill: none; stroke: var(--alarm); stroke-width: 2.5; }
.macluster-measure .bang { fill: var(--alarm); }
.macluster-measure text.bang { fill: var(--paper); font-size: 10px; font-weight: 700; }
.macluster-measure .plain { fill: var(--ink); stroke: var(--paper); stroke-width: 1; }
.macluster-measure [role="gridcell"] { outline: none; cursor: default; }
.macluster-measure .hit { fill: transparent; stroke: none; }
.macluster-measure [role="gridcell"]:hover .hit { stroke: var(--faint); stroke-width: 1.5; }
.macluster-measure [role="gridcell"]:focus .hit { stroke: var(--ink); stroke-width: 3; }
.macluster-measure div[role="gridcell"] { position: absolute; box-sizing: border-box; }
.macluster-measure div[role="gridcell"]:focus { outline: 2px solid var(--ink);
  box-shadow: 0 0 0 3px var(--paper); }
.macluster-measure .legend { display: flex; flex-wrap: wrap; align-items: center; gap: 6px 18px;
  margin: 10px 0; color: var(--faint); font-size: 11px; }
.macluster-measure .ramp { display: inline-flex; align-items: center; gap: 6px; }
.macluster-measure .ramp i { width: 180px; height: 10px; border-radius: 2px;
  background: linear-gradient(to right, ${SHADES.join(", ")}); }
.macluster-measure .key { display: inline-flex; align-items: center; gap: 6px; }
.macluster-measure .detail { min-height: 84px; margin: 10px 0 4px; color: var(--faint); }
.macluster-measure .detail.one { min-height: 34px; }
.macluster-measure .detail b { color: var(--ink); }
.macluster-measure .detail div { padding-left: 0; }
.macluster-measure .curve.predicted .line { stroke-dasharray: var(--dash); stroke-width: 1.5; }
.macluster-measure .half { fill: none; stroke: var(--c); stroke-width: 1.6; }
.macluster-measure .crossing { stroke: var(--faint); stroke-dasharray: 2 3; }
.macluster-measure .cross { fill: none; stroke: var(--alarm); stroke-width: 2.6; }
.macluster-measure .point .ring { fill: none; stroke: none; }
.macluster-measure .point.near .ring { stroke: var(--faint); stroke-width: 1.5; }
.macluster-measure .point:focus .ring { stroke: var(--ink); stroke-width: 2.5; }
.macluster-measure .point { outline: none; }
.macluster-measure .over { pointer-events: none; }
.macluster-measure table { border-collapse: collapse; margin: 6px 0 4px; font-size: 12px;
  width: 100%; }
.macluster-measure th, .macluster-measure td { padding: 3px 12px 3px 0; text-align: right;
  white-space: nowrap; background: none; border: 0; color: var(--ink); max-width: none; }
.macluster-measure th:first-child { text-align: left; }
.macluster-measure tbody th { font-weight: 400; }
.macluster-measure thead th { color: var(--faint); font-weight: 400; font-size: 11px;
  vertical-align: bottom; }
.macluster-measure td small { color: var(--faint); font-size: 10.5px; display: block;
  line-height: 12px; }
.macluster-measure .toggle { display: inline-flex; align-items: center; gap: 8px; border: 0;
  padding: 2px 6px 2px 2px; margin-left: -2px; background: none; font: inherit; color: var(--ink);
  cursor: pointer; border-radius: 4px; }
.macluster-measure .toggle:hover { background: var(--empty); }
.macluster-measure .toggle[aria-pressed="false"] { color: var(--faint);
  text-decoration: line-through; }
.macluster-measure .toggle[aria-pressed="false"] svg { opacity: .3; }
`;
const SHAPES = { all_sum: "circle", all_gather: "square", sendrecv: "up", barrier: "diamond",
  pair: "down" };
const VALUES = { time: "time", algbw: "algbw", busbw: "busbw" };
const PAIRS_HINT = "Point at a cell, or press Tab and walk with the arrow keys. Enter shows the "
  + "curve of a pair.";
const CURVES_HINT = "Point at a curve, or press Tab and walk with the arrow keys: left and right "
  + "along it, up and down to the next.";
const LARGE = 32; // ranks; more are drawn on a canvas
const WIDE = 820; // pixels of a chart

const clamp = (value, most) => Math.max(0, Math.min(most, value));

// 2.5 is half way between the third shade and the fourth.
function shade(level) {
  const first = Math.min(Math.floor(level), 7);
  const part = Math.round(100 * (level - first));
  return `color-mix(in srgb, ${SHADES[first]}, ${SHADES[first + 1]} ${part}%)`;
}

function choice(parent, legend, entries, chosen, pick) {
  const set = html("fieldset", "", parent);
  html("legend", "hidden", set).textContent = legend;
  const name = unique("choice");
  for (const [key, words] of entries) {
    const label = html("label", "", set);
    const input = html("input", "", label);
    Object.assign(input, { type: "radio", name, value: key, checked: key === chosen });
    html("span", "", label).textContent = words;
    input.addEventListener("change", () => pick(key));
  }
}

// Where a key leads to from a cell; the last column is whatever `focus` makes of a large number.
const stepFrom = ([row, column], key, control, last) => ({
  ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1],
  ArrowUp: [row - 1, column], ArrowDown: [row + 1, column],
  Home: [control ? 0 : row, 0], End: [control ? last : row, 1e9],
})[key];

// The cells of a grid, and the keys that walk in it. `cells` is rows of nodes or of null.
function walk(cells, tell, forget) {
  let at = [0, 0];
  const focus = (row, column) => {
    row = clamp(row, cells.length - 1);
    column = clamp(column, cells[row].length - 1);
    cells[row][column].focus({ preventScroll: true });
    reveal(cells[row][column]);
  };
  cells.forEach((line, row) => line.forEach((node, column) => {
    node.setAttribute("tabindex", row + column === 0 ? 0 : -1);
    node.addEventListener("focus", () => {
      // One cell at a time can be reached with Tab: the one that was last looked at.
      cells[at[0]]?.[at[1]]?.setAttribute("tabindex", -1);
      node.setAttribute("tabindex", 0);
      at = [row, column];
      tell(row, column);
    });
    node.addEventListener("blur", forget);
  }));
  return {
    at: () => at,
    focus,
    keys: (key, control) => stepFrom(at, key, control, cells.length - 1),
  };
}

// -- pairs --

function pairsPanel(panel, data, state, show) {
  const n = data.ranks.length;
  if (!data.pairs.length) {
    html("p", "", panel).textContent = "No pair of ranks was measured.";
    return;
  }
  const pairs = new Map();
  for (const each of data.pairs) {
    pairs.set(each.a * n + each.b, each);
    pairs.set(each.b * n + each.a, each);
  }
  const metric = data.metrics.find((each) => each.key === state.metric) ?? data.metrics[0];
  const alarms = new Set(metric.alarms);
  const names = { crowded: "crowded", part_of_rate: "% of line rate" };
  choice(html("div", "bar", panel), "What the cells show",
    data.metrics.map((each) => [each.key, names[each.key] ?? each.label]), metric.key,
    (key) => { state.metric = key; show("metric"); });
  const heading = html("p", "", panel);
  html("b", "", heading).textContent = metric.label;
  heading.append(`: ${metric.summary}`);

  const large = n > LARGE;
  const [wide, high] = n <= 4 ? [104, 58] : n <= 8 ? [76, 46] : n <= 16 ? [44, 30]
    : large ? [Math.max(6, Math.floor(640 / n)), Math.max(6, Math.floor(640 / n))] : [22, 22];
  const left = n <= 8 ? 116 : 82;
  const top = 42;
  const width = left + n * wide + 4;
  const height = top + n * high + 4;
  const stage = html("div", "stage", html("div", "scroll", panel));
  stage.style.minWidth = `${Math.round(LEAST * width)}px`;
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height }, stage);
  const say = (x, y, anchor, words, className) => {
    const attributes = { x, y, "text-anchor": anchor, class: className, "aria-hidden": "true" };
    svg("text", attributes, root).textContent = words;
  };
  say(left, 12, "start", "to rank →", "small");
  say(left - 12, top - 8, "end", "from rank ↓", "small");
  const every = n <= 16 ? 1 : n <= LARGE ? 4 : 8;
  for (let rank = 0; rank < n; rank += every) {
    const middle = top + (rank + 0.5) * high + 4;
    say(left + (rank + 0.5) * wide, top - 8, "middle", rank, "strong");
    say(left - 12, n <= 8 ? middle - 6 : middle, "end", rank, "strong");
    if (n <= 8) say(left - 12, middle + 8, "end", data.names[rank], "small");
  }
  const detail = html("div", "detail", panel);
  detail.id = unique("detail");
  const words = (row, column) => {
    const at = row * n + column;
    const level = metric.levels[at];
    const what = level < 0 ? metric.reasons[-1 - level]
      : `${metric.label} ${metric.texts[at]} ${metric.unit}`;
    const plain = pairs.get(at)?.via === "tcp" ? ", plain socket (tcp)" : "";
    return `rank ${row} to rank ${column}: ${what}${plain}${alarms.has(at) ? ", stands out" : ""}`;
  };
  const tell = (row, column) => {
    state.cell = [row, column];
    detail.replaceChildren();
    html("b", "", detail).textContent = words(row, column);
    const pair = pairs.get(row * n + column);
    if (!pair) return;
    const who = [row, column].map((rank) =>
      data.ranks[rank] + (data.devices[rank] ? ` (${data.devices[rank]})` : ""));
    const by = pair.via === "tcp" ? "a plain socket, without MLX" : `MLX, ${pair.via}`;
    for (const line of [`${who.join(" and ")}, by ${by}`, ...pair.lines]) {
      html("div", "", detail).textContent = line;
    }
  };
  const hint = () => { detail.textContent = PAIRS_HINT; };
  hint();

  let grid;
  const enter = () => {
    const [row, column] = state.cell;
    const pair = pairs.get(row * n + column);
    if (pair?.points.length) {
      state.pair = `${pair.a}-${pair.b}`;
      state.hidden.delete("pair");
      state.tab = 1;
      show("tab");
    } else if (row !== column) {
      html("div", "", detail).textContent = "No curve of this pair was measured.";
    }
  };
  const listen = (node) => {
    node.addEventListener("keydown", (event) => {
      if (event.key === "Enter") {
        event.preventDefault();
        enter();
        return;
      }
      const next = grid.keys(event.key, event.ctrlKey);
      if (!next) return;
      event.preventDefault();
      event.stopPropagation();
      grid.focus(...next);
    });
  };
  const label = `${metric.label} in ${metric.unit}, from the rank of the row to that of the column`;
  if (large) {
    root.setAttribute("aria-hidden", "true");
    grid = canvasGrid(stage, { n, left, top, wide, high, width, label, metric, alarms, pairs,
      words, tell, hint, detail: detail.id, enter });
  } else {
    root.setAttribute("role", "grid");
    root.setAttribute("aria-label", label);
    const nodes = [];
    for (let row = 0; row < n; row += 1) {
      const group = svg("g", { role: "row", "aria-label": `from rank ${row}` }, root);
      nodes.push([]);
      for (let column = 0; column < n; column += 1) {
        const at = row * n + column;
        const x = left + column * wide;
        const y = top + row * high;
        const node = svg("g", { role: "gridcell", "aria-label": words(row, column),
          "aria-describedby": detail.id }, group);
        nodes[row].push(node);
        const level = metric.levels[at];
        const kind = level >= 0 ? "" : row === column ? "self" : "none";
        const back = svg("rect", { class: kind, x, y, width: wide - 2, height: high - 2, rx: 2 },
          node);
        if (level >= 0) back.style.fill = shade(level);
        // Letters on the deepest shades of a theme, and on those before them.
        const on = level < 5.5 ? "a" : level < 7.5 ? "b" : "c";
        const center = x + wide / 2 - 1;
        const put = (dy, text, className) => {
          svg("text", { x: center, y: y + high / 2 + dy, "text-anchor": "middle",
            class: className }, node).textContent = text;
        };
        if (level >= 0 && n <= 8) {
          put(0, metric.texts[at], on);
          put(13, metric.unit, `unit ${on}`);
        } else if (level >= 0 && n <= 16) {
          put(3.5, metric.texts[at], `unit ${on}`);
        } else if (row !== column && n <= 16) {
          put(4, "–", "small");
        }
        if (pairs.get(at)?.via === "tcp") {
          const size = n <= 16 ? 9 : 7;
          svg("path", { class: "plain", d: `M${x} ${y}h${size}l${-size} ${size}z` }, node);
        }
        if (alarms.has(at)) {
          svg("rect", { class: "frame-alarm", x: x + 1, y: y + 1, width: wide - 4,
            height: high - 4, rx: 2 }, node);
          if (n <= 8) {
            svg("circle", { class: "bang", cx: x + wide - 10, cy: y + 9, r: 6.5 }, node);
            svg("text", { class: "bang", x: x + wide - 10, y: y + 12.5,
              "text-anchor": "middle" }, node).textContent = "!";
          }
        }
        svg("rect", { class: "hit", x: x - 0.5, y: y - 0.5, width: wide - 1, height: high - 1,
          rx: 2.5 }, node);
        node.addEventListener("pointerenter", () => tell(row, column));
        node.addEventListener("pointerleave", () => {
          if (root.contains(document.activeElement)) tell(...grid.at());
          else hint();
        });
        node.addEventListener("click", () => grid.focus(row, column));
        node.addEventListener("dblclick", enter);
      }
    }
    grid = walk(nodes, tell, hint);
    root.dataset.keep = "cells";
  }
  listen(stage);
  if (state.cell && state.focus === "cells") grid.focus(...state.cell);

  const legend = html("div", "legend", panel);
  const ramp = html("span", "ramp", legend);
  html("span", "", ramp).textContent = metric.low;
  html("i", "", ramp);
  html("span", "", ramp).textContent = metric.high;
  const better = `${metric.better}${metric.logarithmic ? "; logarithmic" : ""}`;
  html("span", "", legend).textContent = better;
  const key = (draw, text) => {
    const entry = html("span", "key", legend);
    draw(svg("svg", { width: 16, height: 12, "aria-hidden": "true" }, entry));
    html("span", "", entry).textContent = text;
  };
  const gone = new Set(metric.levels.filter((level) => level < 0)
    .map((level) => metric.reasons[-1 - level]));
  gone.delete("the same rank");
  if (gone.size) {
    key((node) => svg("rect", { class: "none", x: 1, width: 14, height: 12, rx: 2 }, node),
      [...gone].join("; "));
  }
  if (data.pairs.some((each) => each.via === "tcp")) {
    key((node) => {
      svg("rect", { style: `fill: ${SHADES[2]}`, x: 1, width: 14, height: 12, rx: 2 }, node);
      svg("path", { class: "plain", d: "M1 0h9l-9 9z" }, node);
    }, "tcp: a plain socket, without MLX");
  }
  if (alarms.size) {
    key((node) => svg("rect", { class: "frame-alarm", x: 2, y: 1, width: 12, height: 10 }, node),
      "stands out");
  }
  for (const each of data.outliers) {
    html("p", "alarm", panel).textContent = `Stands out: ${each}.`;
  }
  panel.append(detail);
}

// Thousands of cells are painted; of those that can be walked to, one row at a time exists.
function canvasGrid(stage, view) {
  const { n, left, top, wide, high, metric } = view;
  const box = html("div", "", stage);
  const part = (value, whole) => `${(100 * value) / whole}%`;
  const height = top + n * high + 4;
  box.style.cssText = `position:absolute;inset:0;max-width:${view.width}px`;
  const canvas = html("canvas", "", box);
  const ratio = window.devicePixelRatio || 1;
  [canvas.width, canvas.height] = [n * wide * ratio, n * high * ratio];
  canvas.setAttribute("aria-hidden", "true");
  canvas.style.cssText = `position:absolute;left:${part(left, view.width)};`
    + `top:${part(top, height)};width:${part(n * wide, view.width)};`
    + `height:${part(n * high, height)}`;
  const paint = () => {
    const context = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    const shades = SHADES.map((_, level) => {
      const number = parseInt(colour(`--s${level}`).slice(1), 16);
      return [number >> 16, (number >> 8) & 255, number & 255];
    });
    const mixed = (level) => {
      const first = Math.min(Math.floor(level), 7);
      const parts = shades[first].map((each, n) =>
        Math.round(each + (shades[first + 1][n] - each) * (level - first)));
      return `rgb(${parts.join(" ")})`;
    };
    const [empty, alarm, ink] = ["--empty", "--alarm", "--ink"].map(colour);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, n * wide, n * high);
    for (let at = 0; at < n * n; at += 1) {
      const [x, y] = [(at % n) * wide, Math.floor(at / n) * high];
      const level = metric.levels[at];
      if (level < 0 && at % (n + 1) === 0) continue;
      context.fillStyle = level < 0 ? empty : mixed(level);
      context.fillRect(x, y, wide - 1, high - 1);
      if (view.pairs.get(at)?.via === "tcp") {
        context.fillStyle = ink;
        context.fillRect(x, y, 3, 3);
      }
      if (view.alarms.has(at)) {
        context.strokeStyle = alarm;
        context.lineWidth = 2;
        context.strokeRect(x + 0.5, y + 0.5, wide - 2, high - 2);
      }
    }
  };
  paint();
  // Paint does not follow the colours of the page by itself.
  const themes = new MutationObserver(() => {
    if (canvas.isConnected) paint();
    else themes.disconnect();
  });
  themes.observe(document.body, { attributes: true });
  const grid = html("div", "", box);
  grid.setAttribute("role", "grid");
  grid.setAttribute("aria-label", view.label);
  grid.setAttribute("aria-rowcount", n);
  grid.setAttribute("aria-colcount", n);
  grid.dataset.keep = "cells";
  let at = [0, 0];
  const build = (row) => {
    const line = document.createElement("div");
    line.setAttribute("role", "row");
    line.setAttribute("aria-rowindex", row + 1);
    line.setAttribute("aria-label", `from rank ${row}`);
    for (let column = 0; column < n; column += 1) {
      const cell = html("div", "", line);
      cell.setAttribute("role", "gridcell");
      cell.setAttribute("aria-colindex", column + 1);
      cell.setAttribute("aria-label", view.words(row, column));
      cell.setAttribute("aria-describedby", view.detail);
      cell.setAttribute("tabindex", column === at[1] ? 0 : -1);
      cell.style.cssText = `left:${part(left + column * wide, view.width)};`
        + `top:${part(top + row * high, height)};width:${part(wide, view.width)};`
        + `height:${part(high, height)};pointer-events:none`;
      cell.addEventListener("focus", () => view.tell(row, column));
      cell.addEventListener("blur", view.hint);
    }
    grid.replaceChildren(line);
    return line;
  };
  const focus = (row, column) => {
    at = [clamp(row, n - 1), clamp(column, n - 1)];
    const line = grid.firstChild?.getAttribute("aria-rowindex") === String(at[0] + 1)
      ? grid.firstChild : build(at[0]);
    [...line.children].forEach((cell, index) => cell.setAttribute("tabindex",
      index === at[1] ? 0 : -1));
    line.children[at[1]].focus({ preventScroll: true });
    reveal(line.children[at[1]]);
  };
  build(0);
  const under = (event) => {
    const area = canvas.getBoundingClientRect();
    return [Math.floor(((event.clientY - area.top) / area.height) * n),
      Math.floor(((event.clientX - area.left) / area.width) * n)].map((x) => clamp(x, n - 1));
  };
  canvas.addEventListener("pointermove", (event) => view.tell(...under(event)));
  canvas.addEventListener("pointerleave", () => {
    if (grid.contains(document.activeElement)) view.tell(...at);
    else view.hint();
  });
  canvas.addEventListener("click", (event) => focus(...under(event)));
  canvas.addEventListener("dblclick", view.enter);
  return {
    at: () => at,
    focus,
    keys: (key, control) => stepFrom(at, key, control, n - 1),
  };
}

// -- curves --

const DASHES = ["6 4", "1.5 3", "9 3 2 3"];
const ONE_CABLE = ["sendrecv", "pair"];

function paintAs(node, each) {
  node.style.setProperty("--c", `var(--${each.kind})`);
  const count = Number(each.key.split("-")[1] ?? 0);
  node.style.setProperty("--dash", DASHES[count % DASHES.length]);
}

function curvesPanel(panel, data, state, show) {
  const timed = data.pairs.filter((each) => each.points.length);
  const series = [...data.series];
  if (state.pair === undefined) {
    state.pair = series.length || !timed.length ? "" : `${timed[0].a}-${timed[0].b}`;
  }
  const pair = timed.find((each) => `${each.a}-${each.b}` === state.pair);
  if (pair) {
    series.push({ ...pair, key: "pair", kind: "pair", factor: 1,
      name: `ranks ${pair.a} and ${pair.b}${pair.via === "tcp" ? ", tcp" : ""}` });
  }
  if (!series.length) {
    html("p", "", panel).textContent = "No curve was measured.";
    return;
  }
  const bar = html("div", "bar", panel);
  choice(bar, "What the curves show", Object.entries(VALUES), state.value,
    (key) => { state.value = key; show("value"); });
  if (timed.length) {
    const label = html("label", "", bar);
    label.append("pair ");
    const select = html("select", "", label);
    const option = (key, words) => {
      const node = html("option", "", select);
      node.value = key;
      node.textContent = words;
    };
    option("", "none");
    for (const each of timed) {
      option(`${each.a}-${each.b}`, `ranks ${each.a} and ${each.b}`);
    }
    select.value = state.pair;
    select.dataset.keep = "pair";
    select.addEventListener("change", () => {
      state.pair = select.value;
      state.hidden.delete("pair");
      show("pair");
    });
  }

  const timing = state.value === "time";
  const y = (each, size, seconds) => (timing ? seconds
    : (size / seconds) * (state.value === "busbw" ? each.factor : 1));
  // A barrier has no size: a line across. It carries nothing, so it has no bandwidth.
  // Neither has what one rank does alone a busbw.
  const drawn = series.filter((each) => each.points.length && (timing
    || (each.points.some((point) => point[0] > 0) && (state.value === "algbw" || each.factor))))
    .map((each) => ({ ...each, at: each.points.map(([size, p50, p5 = p50, p95 = p50]) =>
      [size, ...[p50, p5, p95].map((seconds) => y(each, size, seconds))]) }));
  if (!drawn.length) {
    html("p", "", panel).textContent = `No curve has a ${state.value}.`;
    return;
  }
  const sized = drawn.flatMap((each) => each.at.filter((point) => point[0] > 0));
  const sizes = sized.length ? sized.map((point) => point[0]) : [1, 1024];
  const values = drawn.flatMap((each) => each.at.filter((point) => timing || point[0] > 0)
    .flatMap((point) => point.slice(1)));
  // Only these send all that they carry through one cable.
  const roof = state.value !== "busbw" && data.rate
    && drawn.some((each) => ONE_CABLE.includes(each.kind) && !state.hidden.has(each.key));
  if (!timing && roof) values.push(data.rate);
  const range = (found, room) => [Math.min(...found) / room, Math.max(...found) * room];
  const height = 380;
  const root = svg("svg", { viewBox: `0 0 ${WIDE} ${height}`, width: WIDE, height, role: "grid",
    style: `min-width: ${Math.round(LEAST * WIDE)}px`,
    "aria-label": `${VALUES[state.value]} by size` }, html("div", "scroll", panel));
  const frame = logAxes(root, [70, 28, WIDE - 14, height - 46], range(sizes, 1.6),
    range(values, 1.5), {
      xText: sizeLabel, yText: timing ? timeText : rateText, xTitle: "size of the message",
      yTitle: { time: "time of the slowest rank, p50; band p5-p95", algbw: "algbw: size / time",
        busbw: "busbw: algbw × factor of the collective" }[state.value] });
  const { px, py, plot, over } = frame;
  const note = (x, at, anchor, words, className = "small") => {
    svg("text", { x, y: at, "text-anchor": anchor, class: className }, over).textContent = words;
  };
  if (roof) {
    drawFormula(frame, (size) => (timing ? size / data.rate : data.rate), "roof");
    if (!timing) note(frame.box[0] + 8, py(data.rate) - 6, "start", data.rateText);
    else {
      // Beside the foot of the line, a little above the axis.
      const [, above, , below] = frame.box;
      const seconds = frame.y[0] * (frame.y[1] / frame.y[0]) ** (14 / (below - above));
      const x = px(Math.max(seconds * data.rate, frame.x[0]));
      note(clamp(x + 12, WIDE - 130), below - 10, "start", data.rateText);
    }
  }
  if (data.crossing) {
    const x = px(data.crossing);
    svg("path", { class: "crossing", d: `M${x} ${frame.box[1]}V${frame.box[3]}` }, plot);
    note(x + 6, timing ? frame.box[1] + 12 : frame.box[3] - 10, "start", data.crossingText);
  }
  const points = svg("g", {}, root);
  const visible = drawn.filter((each) => !state.hidden.has(each.key));
  const rows = [];
  for (const each of visible) {
    const colour = (node) => paintAs(node, each);
    const carried = each.at.filter((point) => point[0] > 0);
    if (carried.length) {
      const known = each.kind !== "predicted";
      const look = { kind: each.kind, marker: SHAPES[each.kind], band: known };
      colour(drawCurve(frame, carried, look));
    } else {
      const [, p50, p5, p95] = each.at[0];
      const group = svg("g", { class: "curve" }, plot);
      colour(group);
      const [from, to] = [frame.box[0], frame.box[2]];
      svg("path", { class: "band", d: `M${from} ${py(p95)}H${to}V${py(p5)}H${from}z` }, group);
      svg("path", { class: "line", d: `M${from} ${py(p50)}H${to}` }, group);
    }
    if (each.fit) {
      const value = (size) => y(each, size, each.fit.latency + size / each.fit.bandwidth);
      colour(drawFormula(frame, value, "fit"));
      const { half } = each.fit;
      if (each.fit.good && half > frame.x[0] && half < frame.x[1]) {
        colour(svg("circle", { class: "half", cx: px(half), cy: py(value(half)), r: 7 }, plot));
      }
    }
    if (each.kind === "predicted") continue;
    const row = svg("g", { role: "row", "aria-label": each.name }, points);
    rows.push(each.at.map(([size, value], index) => {
      const at = [size > 0 ? px(size) : frame.box[2] - 20, py(value)];
      const point = each.points[index];
      const wrong = point[5] > 0;
      const node = svg("g", { role: "gridcell", class: "point",
        "aria-label": readout(each, point) }, row);
      svg("circle", { class: "ring", cx: at[0], cy: at[1], r: 8 }, node);
      if (wrong) {
        const [left, top] = [at[0] - 6, at[1] - 6];
        svg("path", { class: "cross", d: `M${left} ${top}l12 12m0-12l-12 12` }, node);
      }
      return Object.assign(node, { at, words: readout(each, point), name: each.name, wrong });
    }));
  }
  if (!rows.length) {
    root.setAttribute("role", "img");
    root.setAttribute("tabindex", 0); // to scroll with the keys
    root.setAttribute("aria-label", "no measured curve is shown");
  }
  const detail = html("div", "detail one", panel);
  const hint = () => { detail.textContent = CURVES_HINT; };
  const tell = (node) => {
    detail.replaceChildren();
    html("b", "", detail).textContent = node.words;
    detail.classList.toggle("alarm", node.wrong);
  };
  hint();
  const grid = walk(rows, (row, column) => {
    state.point = [row, column];
    tell(rows[row][column]);
  }, hint);
  root.dataset.keep = "points";
  root.addEventListener("keydown", (event) => {
    const next = rows.length && grid.keys(event.key, event.ctrlKey);
    if (!next) return;
    event.preventDefault();
    const [row] = next;
    if (row !== grid.at()[0] && rows[row] && event.key.startsWith("Arrow")) {
      // To the next curve, at the nearest size.
      const x = rows[grid.at()[0]][grid.at()[1]].at[0];
      const away = rows[row].map((node) => Math.abs(node.at[0] - x));
      next[1] = away.indexOf(Math.min(...away));
    }
    grid.focus(...next);
  });
  const all = rows.flat();
  let near = null;
  const point = (node) => {
    near?.classList.remove("near");
    near = node;
    near?.classList.add("near");
  };
  root.addEventListener("pointermove", (event) => {
    const area = root.getBoundingClientRect();
    const x = ((event.clientX - area.left) / area.width) * WIDE;
    const at = ((event.clientY - area.top) / area.height) * height;
    const away = all.map((node) => Math.hypot(node.at[0] - x, node.at[1] - at));
    const least = Math.min(...away);
    point(least < 48 ? all[away.indexOf(least)] : null);
    if (near) tell(near);
  });
  root.addEventListener("pointerleave", () => {
    point(null);
    const [row, column] = grid.at();
    if (root.contains(document.activeElement)) tell(rows[row][column]);
    else hint();
  });
  if (state.point && state.focus === "points" && rows.length) grid.focus(...state.point);
  fits(panel, drawn, state, show);
}

function readout(each, [size, p50, p5, p95, count, wrong]) {
  const parts = [`${each.name}${size ? `, ${sizeLabel(size)}` : ""}: ${timeText(p50)}`
    + ` (p5-p95 ${timeText(p5)} - ${timeText(p95)})`];
  if (size) {
    parts.push(`algbw ${rateText(size / p50)}`, `busbw ${rateText((size / p50) * each.factor)}`);
  }
  parts.push(`${count.toLocaleString("en-US")} times`);
  if (wrong !== undefined) parts.push(wrong ? `${wrong.toLocaleString("en-US")} WRONG` : "0 wrong");
  return parts.join(", ");
}

// The legend: what is shown, and the line through it.
function fits(panel, series, state, show) {
  const table = html("table", "", html("div", "scroll", panel));
  html("caption", "hidden", table).textContent = "Curves and the lines through them";
  const head = html("tr", "", html("thead", "", table));
  const fitted = series.some((each) => each.fit);
  const heading = (words, title) => {
    const node = html("th", "", head);
    node.scope = "col";
    node.textContent = words;
    if (title) node.title = title;
  };
  heading(fitted ? "the thin lines: time = latency + size / bandwidth" : "curve");
  if (fitted) {
    heading("latency");
    heading("bandwidth");
    heading("n½ ○", "the size at which half of the bandwidth is reached");
    heading("off by", "median of |fitted - measured| / measured");
    heading("r²");
  }
  const body = html("tbody", "", table);
  for (const each of series) {
    const row = html("tr", "", body);
    const first = html("th", "", row);
    first.scope = "row";
    const button = html("button", "toggle", first);
    button.type = "button";
    button.setAttribute("aria-pressed", !state.hidden.has(each.key));
    button.dataset.keep = `toggle ${each.key}`;
    const sample = svg("svg", { width: 30, height: 12, "aria-hidden": "true" }, button);
    const group = svg("g", { class: `curve ${each.kind}` }, sample);
    paintAs(group, each);
    svg("path", { class: "line", d: "M0 6H30" }, group);
    const marker = SHAPES[each.kind];
    if (marker && each.points.some((point) => point[0] > 0)) {
      svg("path", { class: "mark", d: MARKERS[marker], transform: "translate(15 6)" }, group);
    }
    html("span", "", button).textContent = each.name;
    button.addEventListener("click", () => {
      if (!state.hidden.delete(each.key)) state.hidden.add(each.key);
      show(`toggle ${each.key}`);
    });
    if (!fitted) continue;
    for (let n = 0; n < 5; n += 1) {
      const cell = html("td", "", row);
      cell.textContent = each.fit?.figures[n] ?? (n || each.points[0][0] ? "" :
        timeText(each.points[0][1]));
      if (each.fit?.ranges[n]) html("small", "", cell).textContent = each.fit.ranges[n];
      if (each.fit && !each.fit.good && n > 2) cell.className = "alarm";
    }
  }
  if (series.some((each) => each.fit && !each.fit.good)) {
    html("p", "alarm", panel).textContent = "Figures in this colour: the line fits badly there "
      + "(r² below .98, or 20 % off), so do not trust its latency and bandwidth.";
  }
}

// -- the view --

function render({ model, el }) {
  const root = html("div", "macluster-measure", el);
  html("style", "", root).textContent = STYLE + axesStyle(".macluster-measure");
  const top = html("div", "", root);
  const tabs = html("div", "", root);
  tabs.setAttribute("role", "tablist");
  tabs.setAttribute("aria-label", "Measurement");
  const state = { tab: 0, metric: "bandwidth", value: "time", hidden: new Set(), cell: [0, 0] };
  const data = () => model.get("data");
  if (!data().pairs.length && data().series.length) state.tab = 1;
  const parts = ["Pairs", "Curves"].map((name, index) => {
    const tab = html("button", "", tabs);
    const panel = html("div", "", root);
    tab.id = unique("tab");
    panel.id = `${tab.id}-panel`;
    tab.type = "button";
    tab.textContent = name;
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", panel.id);
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("aria-labelledby", tab.id);
    tab.addEventListener("click", () => {
      state.tab = index;
      show("tab");
    });
    return { tab, panel };
  });
  tabs.addEventListener("keydown", (event) => {
    const other = 1 - state.tab;
    const next = { ArrowLeft: other, ArrowRight: other, Home: 0, End: 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    state.tab = next;
    show("tab");
  });
  const head = () => {
    const found = data();
    top.replaceChildren();
    if (found.wrong.length) {
      const box = html("div", "wrong", top);
      box.setAttribute("role", "alert");
      box.append("Wrong results. Do not trust this cluster until the cause is found.");
      for (const each of found.wrong.slice(0, 8)) html("span", "", box).textContent = each;
      const rest = found.wrong.length - 8;
      if (rest > 0) html("span", "", box).textContent = `and ${rest} more`;
    }
    html("div", "title", top).textContent = found.title;
    if (found.simulated) {
      html("div", "simulated", top).textContent =
        `simulated, nothing was measured: ${found.simulated}`;
    }
    for (const each of found.notes) html("p", "", top).textContent = each;
  };
  // `moved` names what has to have the focus afterwards.
  const show = (moved = "") => {
    parts.forEach(({ tab, panel }, index) => {
      const chosen = index === state.tab;
      tab.setAttribute("aria-selected", chosen);
      tab.setAttribute("tabindex", chosen ? 0 : -1);
      panel.hidden = !chosen;
      panel.replaceChildren();
    });
    state.focus = moved;
    const { tab, panel } = parts[state.tab];
    [pairsPanel, curvesPanel][state.tab](panel, data(), state, show);
    if (moved === "tab") tab.focus({ preventScroll: true });
    else if (moved === "metric" || moved === "value") panel.querySelector("input:checked").focus();
    else if (moved) panel.querySelector(`[data-keep="${moved}"]`)?.focus?.();
  };
  root.addEventListener("keydown", (event) => {
    // JupyterLab would take a key as a command, such as Enter or "d" twice: delete the cell.
    if (!event.ctrlKey && !event.metaKey && !event.altKey && event.key !== "Escape"
      && !(event.key === "Enter" && event.shiftKey)) event.stopPropagation();
  });
  const changed = () => {
    const here = document.activeElement;
    const kept = root.contains(here) ? here.closest("[data-keep]")?.dataset.keep : "";
    const radio = root.contains(here) && here.type === "radio";
    head();
    if (radio) show(state.tab ? "value" : "metric");
    else show(kept);
  };
  head();
  show();
  model.on("change:data", changed);
  return () => model.off("change:data", changed);
}

export default { render };
