// Logarithmic axes, and curves in them, for the views that come behind this.

// Shapes tell the curves apart where colours do not.
const MARKERS = {
  circle: "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0z",
  square: "M-3.2-3.2h6.4v6.4h-6.4z",
  up: "M0-4.4L4.2 3.2H-4.2z",
  down: "M0 4.4L4.2-3.2H-4.2z",
  diamond: "M0-4.8L4.8 0L0 4.8L-4.8 0z",
};

// How they look below the view that `root` selects, which has --ink, --faint, --line, --soft and
// --paper; each curve has its colour in --c.
const axesStyle = (root) => `
${root} .curve .line { fill: none; stroke: var(--c); stroke-width: 1.8; }
${root} .curve .band { fill: var(--c); fill-opacity: .14; }
${root} .curve .mark { fill: var(--c); stroke: var(--paper); stroke-width: .8; }
${root} .fit { fill: none; stroke: var(--c); stroke-width: 1; stroke-opacity: .75; }
${root} .roof { fill: none; stroke: var(--ink); stroke-width: 1.2;
  stroke-dasharray: 14 5; }
${root} .grid { stroke: var(--soft); }
${root} .frame { fill: none; stroke: var(--line); }
${root} .over text { stroke: var(--paper); stroke-width: 4; paint-order: stroke;
  stroke-linejoin: round; }
`;

// -- quantities, written as the tables in Python write them --

function numberText(value) {
  if (value === 0) return "0";
  for (const [least, places] of [[99.95, 0], [9.995, 1], [0.9995, 2], [0.09995, 3]]) {
    if (value < least) continue;
    const digits = { minimumFractionDigits: places, maximumFractionDigits: places };
    return value.toLocaleString("en-US", digits);
  }
  return String(Number(value.toPrecision(2)));
}

function scaled(value, units, last, scale) {
  for (const [unit, worth] of units) {
    if (value >= 0.9995 * worth) return `${numberText(value / worth)} ${unit}`;
  }
  return `${numberText(value / scale)} ${last}`;
}

const timeText = (seconds) => scaled(seconds, [["s", 1], ["ms", 1e-3]], "us", 1e-6);
const rateText = (rate) => scaled(rate, [["GB/s", 1e9], ["MB/s", 1e6]], "kB/s", 1e3);

function sizeLabel(count) {
  for (const [unit, worth] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (count < worth) continue;
    const value = count / worth;
    return `${value >= 99.5 ? Math.round(value) : Number(value.toPrecision(3))} ${unit}`;
  }
  return `${Math.round(count)} B`;
}

// -- axes --

// Round numbers need no places.
const short = (words) => words.replace(/\.0+(?= )/, "");

function logScale([from, to], start, end) {
  const step = (end - start) / Math.log(to / from);
  return (value) => start + Math.log(value / from) * step;
}

// Powers of two, in the fewest bits that leave room for their names.
function sizeTicks([from, to], most = 9) {
  const first = Math.ceil(Math.log2(from) - 1e-9);
  const last = Math.floor(Math.log2(to) + 1e-9);
  for (const step of [1, 2, 4, 5, 10, 20]) {
    const found = [];
    for (let n = first; n <= last; n += 1) if (n % step === 0) found.push(2 ** n);
    if (found.length <= most) return found;
  }
  return [];
}

// Powers of ten; of a short range 1, 2 and 5 of each, where there is room.
function decadeTicks([from, to], most = 9) {
  const first = Math.floor(Math.log10(from));
  const last = Math.ceil(Math.log10(to));
  const few = last - first < Math.min(4, most / 2) ? [1, 2, 5] : [1];
  const found = [];
  for (let n = first; n <= last; n += 1) {
    for (const each of few) found.push(each * 10 ** n);
  }
  return found.filter((each) => each >= from * 0.999 && each <= to * 1.001);
}

// `box` is [left, top, right, bottom], `x` and `y` are ranges [from, to]. Returns the scales, and
// a group `plot`, which is cut off at the box, and one `over` it, which is not. There are about
// `most` names at an axis.
function logAxes(parent, box, x, y, { xText, yText, xTitle, yTitle, most = 9 }) {
  const [left, top, right, bottom] = box;
  const px = logScale(x, left, right);
  const py = logScale(y, bottom, top);
  const back = svg("g", { class: "axes", "aria-hidden": "true" }, parent);
  const say = (className, at, anchor, words) => {
    const node = svg("text", { class: className, x: at[0], y: at[1], "text-anchor": anchor }, back);
    node.textContent = words;
    return node;
  };
  for (const tick of decadeTicks(y, most)) {
    svg("path", { class: "grid", d: `M${left} ${py(tick)}H${right}` }, back);
    say("small", [left - 8, py(tick) + 3.5], "end", short(yText(tick)));
  }
  for (const tick of sizeTicks(x, most)) {
    svg("path", { class: "grid", d: `M${px(tick)} ${top}V${bottom}` }, back);
    say("small", [px(tick), bottom + 17], "middle", xText(tick));
  }
  svg("path", { class: "frame", d: `M${left} ${top}V${bottom}H${right}` }, back);
  say("small", [(left + right) / 2, bottom + 35], "middle", xTitle);
  say("small", [left - 8, top - 9], "start", yTitle).setAttribute("x", 0);
  const id = unique("axes");
  const clip = svg("clipPath", { id }, svg("defs", {}, parent));
  svg("rect", { x: left, y: top, width: right - left, height: bottom - top }, clip);
  const plot = svg("g", { "clip-path": `url(#${id})` }, parent);
  const over = svg("g", { class: "over", "aria-hidden": "true" }, parent);
  return { px, py, x, y, box, plot, over };
}

const joined = (points) => points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");

// `points` are [x, y, low, high]. The band from low to high lies below.
function drawCurve(frame, points, { kind, marker, band = true }) {
  const { px, py, plot } = frame;
  const group = svg("g", { class: `curve ${kind}` }, plot);
  if (band && points.length > 1) {
    const upper = points.map((p) => [px(p[0]), py(p[3])]);
    const lower = points.map((p) => [px(p[0]), py(p[2])]).reverse();
    svg("path", { class: "band", d: `M${joined([...upper, ...lower])}z` }, group);
  }
  const middle = points.map((p) => [px(p[0]), py(p[1])]);
  svg("path", { class: "line", d: `M${joined(middle)}` }, group);
  for (const [x, y] of marker ? middle : []) {
    svg("path", { class: "mark", d: MARKERS[marker], transform: `translate(${x} ${y})` }, group);
  }
  return group;
}

// A formula over the whole width: y of x, in short steps.
function drawFormula(frame, formula, className, parent = frame.plot) {
  const [from, to] = frame.x;
  const points = [];
  for (let n = 0; n <= 80; n += 1) {
    const x = from * (to / from) ** (n / 80);
    points.push([frame.px(x), frame.py(formula(x))]);
  }
  return svg("path", { class: className, d: `M${joined(points)}` }, parent);
}
