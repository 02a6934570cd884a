// A network on the page: draws the scenes that network.py lays out, and keeps what is drawn from
// scene to scene. Needs dom.js before it, and the rules of network.css on the page.

const NAMES = {
  rect: ["x", "y", "width", "height", "rx"],
  path: ["d", "stroke-width"],
  circle: ["cx", "cy", "r"],
  text: ["x", "y", "text-anchor"],
};

// Sets an attribute that has changed; what was set last is kept at the element, which is faster
// than to ask the page.
function put(node, name, value) {
  const kept = (node.kept ??= {});
  if (kept[name] === value) return;
  kept[name] = value;
  node.setAttribute(name, value);
}

function parts(group, wanted) {
  wanted.forEach(([tag, kind, ...values], index) => {
    let node = group.childNodes[index];
    if (node?.tagName !== tag) {
      const fresh = document.createElementNS(SVG, tag);
      if (node) node.replaceWith(fresh);
      else group.append(fresh);
      node = fresh;
    }
    put(node, "class", kind);
    NAMES[tag].forEach((name, at) => put(node, name, values[at] ?? 0));
    if (tag === "text") {
      const words = values[3];
      if (node.words !== words) node.textContent = node.words = words;
    }
  });
  while (group.childNodes.length > wanted.length) group.lastChild.remove();
}

// The groups of a layer by the id of their items: those that stay are kept as they are.
function layer(parent, known, items, className, prefix, change) {
  const here = new Set(items.map((item) => item.id));
  for (const [id, group] of known) {
    if (!here.has(id)) {
      group.remove();
      known.delete(id);
    }
  }
  items.forEach((item, index) => {
    let group = known.get(item.id);
    if (!group) {
      group = svg("g", { class: className, id: `${prefix}-${item.id}` });
      group.item = item.id;
      known.set(item.id, group);
    }
    if (parent.childNodes[index] !== group) {
      parent.insertBefore(group, parent.childNodes[index] ?? null);
    }
    change(group, item);
  });
}

// `events.choose` is called with the key of what a person selects ("node-0", "link-0-1", null for
// nothing), `events.leave` when they leave with Escape.
function network(parent, events) {
  const prefix = unique("network");
  const root = svg("svg", {
    class: "macluster-network", role: "listbox", tabindex: 0,
    // Keys are for the graph, not for the notebook or page around it.
    "data-lm-suppress-shortcuts": "true",
  }, parent);
  const back = svg("g", { "aria-hidden": "true" }, root);
  const groups = {
    link: svg("g", { role: "group", "aria-label": "Links" }, root),
    over: svg("g", { "aria-hidden": "true" }, root),
    node: svg("g", { role: "group", "aria-label": "Ranks" }, root),
  };
  const known = { link: new Map(), over: new Map(), node: new Map() };
  let scene = null;
  let chosen = null;
  let here = null;
  let from = null; // the rank whose links are walked through

  const group = (key) => {
    const at = key?.indexOf("-") ?? -1;
    return at < 0 ? undefined : known[key.slice(0, at)].get(key.slice(at + 1));
  };
  const link = (key) => scene.links.find((each) => `link-${each.id}` === key);
  const linksOf = (rank) => scene.links.filter((each) => each.ends.includes(rank));

  const marked = [];
  const mark = (node, name) => {
    if (!node) return;
    node.classList.add(name);
    marked.push([node, name]);
  };
  const show = () => {
    for (const [node, name] of marked.splice(0)) node.classList.remove(name);
    const selected = group(chosen);
    root.classList.toggle("chosen", Boolean(selected));
    for (const each of root.querySelectorAll('[aria-selected="true"]')) {
      put(each, "aria-selected", "false");
    }
    if (selected) {
      mark(selected, "on");
      put(selected, "aria-selected", "true");
      const rank = chosen.startsWith("node-") ? Number(chosen.slice(5)) : null;
      if (rank === null) mark(known.over.get(selected.item), "on");
      else {
        for (const each of linksOf(rank)) {
          mark(known.link.get(each.id), "near");
          mark(known.over.get(each.id), "near");
        }
      }
    }
    const walked = group(here);
    mark(walked, "here");
    if (walked && root.matches(":focus")) reveal(walked);
    if (walked) put(root, "aria-activedescendant", walked.id);
    else {
      root.removeAttribute("aria-activedescendant");
      root.kept["aria-activedescendant"] = undefined;
    }
  };
  const choose = (key) => {
    chosen = key;
    show();
    events.choose(key);
  };
  const walk = (key, rank) => {
    here = key;
    from = rank;
    show();
  };

  const step = (key) => {
    const ranks = scene.nodes.map((each) => Number(each.id));
    const all = ranks.length;
    if (!all) return;
    if (here === null) {
      walk(chosen ?? `node-${ranks[0]}`, chosen ? link(chosen)?.ends[0] ?? null : ranks[0]);
      return;
    }
    const found = link(here);
    if (key === "Home" || key === "End") {
      const rank = ranks[key === "Home" ? 0 : all - 1];
      walk(`node-${rank}`, rank);
    } else if (!found) {
      const rank = Number(here.slice(5));
      const index = ranks.indexOf(rank);
      const links = linksOf(rank);
      if (key === "ArrowLeft" || key === "ArrowRight") {
        const next = ranks[(index + (key === "ArrowRight" ? 1 : all - 1)) % all];
        walk(`node-${next}`, next);
      } else if (links.length) {
        walk(`link-${links[key === "ArrowDown" ? 0 : links.length - 1].id}`, rank);
      }
    } else if (key === "ArrowLeft") {
      walk(`node-${from}`, from);
    } else if (key === "ArrowRight") {
      const other = found.ends[0] === from ? found.ends[1] : found.ends[0];
      walk(`node-${other}`, other);
    } else {
      const links = linksOf(from);
      const next = links.indexOf(found) + (key === "ArrowDown" ? 1 : links.length - 1);
      walk(`link-${links[next % links.length].id}`, from);
    }
  };
  const STEPS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"];
  root.addEventListener("keydown", (event) => {
    if (event.key === "Tab") return;
    event.stopPropagation();
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (STEPS.includes(event.key)) step(event.key);
    else if (event.key === "Enter" || event.key === " ") choose(here === chosen ? null : here);
    else if (event.key === "Escape") {
      here = null;
      choose(null);
      root.blur();
      events.leave?.();
    } else return;
    event.preventDefault();
  });
  root.addEventListener("focus", () => {
    // With a pointer, what was pointed at is chosen, and nothing else is marked.
    if (here === null && root.matches(":focus-visible")) step("");
  });
  root.addEventListener("click", (event) => {
    const node = event.target.closest(".item");
    if (!node) {
      choose(null);
      return;
    }
    const key = `${node.parentNode === groups.node ? "node" : "link"}-${node.item}`;
    here = key;
    from = link(key)?.ends[0] ?? Number(node.item);
    choose(chosen === key ? null : key);
  });

  const update = (next) => {
    scene = next;
    put(root, "viewBox", scene.box.join(" "));
    root.style.maxWidth = `${scene.box[2]}px`;
    // Letters stay readable: what does not fit is scrolled to.
    root.style.minWidth = `${Math.round(LEAST * scene.box[2])}px`;
    put(root, "aria-label", scene.title);
    parts(back, scene.back);
    const option = (node, item) => {
      put(node, "role", "option");
      put(node, "aria-label", item.label);
      if (!node.hasAttribute("aria-selected")) put(node, "aria-selected", "false");
      parts(node, item.parts);
    };
    layer(groups.link, known.link, scene.links, "item link", `${prefix}-link`, option);
    const over = scene.links.filter((item) => item.over.length);
    layer(groups.over, known.over, over, "item over", `${prefix}-over`, (node, item) => {
      node.kept ??= {};
      parts(node, item.over);
    });
    layer(groups.node, known.node, scene.nodes, "item node", `${prefix}-node`, (node, item) => {
      put(node, "transform", `translate(${item.x} ${item.y})`);
      option(node, item);
    });
    if (!group(here)) here = null;
    if (!group(chosen)) chosen = null;
    show();
  };
  return { root, update, choose, chosen: () => chosen };
}
