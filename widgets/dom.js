// Elements of the page, for the views that come behind this.

const SVG = "http://www.w3.org/2000/svg";
// Each widget has this code to itself, so that counting alone would name things twice on a page.
const INSTANCE = `macluster-${Math.random().toString(36).slice(2)}`;
let views = 0;

// An id or name that nothing else on the page has.
const unique = (what) => `${INSTANCE}-${what}-${++views}`;

function svg(tag, attributes, parent) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (parent) parent.append(node);
  return node;
}

function html(tag, className, parent) {
  const node = document.createElement(tag);
  node.className = className;
  if (parent) parent.append(node);
  return node;
}

// How much smaller than they are drawn pictures may become; from there on they scroll.
const LEAST = 0.8;

// Scrolls what can be scrolled sideways until the node is seen.
function reveal(node) {
  const box = node.closest(".scroll");
  if (!box || box.scrollWidth <= box.clientWidth) return;
  const [inner, outer] = [node, box].map((each) => each.getBoundingClientRect());
  if (inner.left < outer.left) box.scrollLeft -= outer.left - inner.left + 8;
  else if (inner.right > outer.right) box.scrollLeft += inner.right - outer.right + 8;
}
