// A network's scene for the narrow sidebar: the wiring and the ranks' numbers, larger, and nothing
// that would be too small to read there. The tab has all of it.

type Part = [tag: string, kind: string, ...values: (number | string)[]];

interface Item {
  id: string;
  x: number;
  y: number;
  parts: Part[];
  over: Part[];
  [more: string]: unknown;
}

export interface Scene {
  box: [number, number, number, number];
  back: Part[];
  nodes: Item[];
  links: Item[];
  [more: string]: unknown;
}

const WIDTH = 266; // pixels that the picture has in a sidebar of usual width
const LETTERS = 11; // pixels that letters shall have there
const EDGE = 8;
const FEW = 6; // links that have room for their speeds
const WIDE = 0.62; // of a letter's height, about

/** The scene, and how large letters have to be drawn in it. */
export function compact(scene: Scene): { scene: Scene; letters: number } {
  const seen = new Extent();
  const back = scene.back.filter(
    ([tag, kind]) => kind === 'frame' || kind === 'band' || (tag === 'text' && kind === 'strong')
  );
  for (const part of back) {
    if (part[1] === 'frame') {
      const [x, y, w, h] = part.slice(2) as number[];
      seen.add(x, y).add(x + w, y + h);
    }
  }
  for (const node of scene.nodes) {
    const body = node.parts.find(([tag, kind]) => tag === 'rect' && /^body\b/.test(kind));
    const [x, y, w, h] = (body?.slice(2) ?? [-20, -20, 40, 40]) as number[];
    seen.add(node.x + x - 6, node.y + y - 6).add(node.x + x + w + 6, node.y + y + h + 6);
  }
  for (const link of scene.links) {
    for (const [tag, , path] of link.parts) {
      // Curves stay within their control points; arcs have none, and stay within the nodes.
      if (tag === 'path' && typeof path === 'string' && !/[a-zA-Z]/.test(path.replace(/[MLCQTS]/g, ''))) {
        const numbers = path.match(/-?[\d.]+/g)?.map(Number) ?? [];
        for (let at = 0; at + 1 < numbers.length; at += 2) {
          seen.add(link.x + numbers[at], link.y + numbers[at + 1]);
        }
      }
    }
  }
  const letters = Math.min(18, Math.max(10.5, (LETTERS * seen.width) / WIDTH));
  const nodes = scene.nodes.map(node => ({ ...node, parts: nodeParts(node.parts, letters, seen, node) }));
  const named = back.map((part): Part => {
    if (part[0] !== 'text') {
      return part;
    }
    const [tag, kind, x, y, anchor, words] = part;
    seen.add(Number(x), Number(y) - letters).add(Number(x), Number(y) + letters / 2);
    return [tag, kind, x, y, anchor, String(words).split(',')[0]];
  });
  const links = scene.links.map(link => ({
    ...link,
    parts: link.parts.filter(([tag]) => tag !== 'text'),
    over: linkParts(link.over, letters, scene.links.length <= FEW, seen)
  }));
  const box = seen.box(EDGE);
  return { scene: { ...scene, box, back: named, nodes, links }, letters };
}

// The speed alone, with a gap in the line as large as it needs; of many links, none.
function linkParts(parts: Part[], letters: number, speeds: boolean, seen: Extent): Part[] {
  const gap = parts.find(([tag, kind]) => tag === 'rect' && kind === 'under');
  const speed = parts.find(([tag, kind]) => tag === 'text' && kind === 'strong');
  const rest = parts.filter(part => part !== gap && part[0] !== 'text');
  if (!gap || !speed || !speeds) {
    return rest;
  }
  const [x, y, w, h] = gap.slice(2) as number[];
  const words = String(speed[5]);
  const [width, height] = [WIDE * letters * words.length, 1.3 * letters];
  const [across, down] = [x + w / 2, y + h / 2];
  seen.add(across - width / 2, down).add(across + width / 2, down);
  return [
    ['rect', 'under', across - width / 2, down - height / 2, width, height, 4],
    ['text', 'strong', across, down + letters / 3, 'middle', words],
    ...rest
  ];
}

// Of what stands at a node only its number stays, next to its body.
function nodeParts(parts: Part[], letters: number, seen: Extent, node: Item): Part[] {
  const texts = parts.filter(([tag]) => tag === 'text');
  const label = texts.find(([, , , , , words]) => /^(rank )?\d+/.test(String(words)));
  const rest = parts.filter(([tag]) => tag !== 'text');
  if (!label) {
    return rest;
  }
  const [tag, kind, x, y, anchor, words] = label;
  const shown = String(words).split(' · ')[0];
  const across = Number(x);
  let at = Number(y);
  if (texts.length > 1) {
    const body = rest.find(([, name]) => /^body\b/.test(name));
    const half = body ? Number(body[5]) / 2 : 20;
    // Beside the body, or above or below it.
    at = anchor !== 'middle' ? letters / 3 : at < 0 ? -half - 6 : half + letters;
  }
  const long = WIDE * letters * shown.length;
  const left = node.x + across - { start: 0, middle: long / 2, end: long }[String(anchor) as 'end'];
  seen.add(left, node.y + at - letters).add(left + long, node.y + at + 3);
  return [...rest, [tag, kind, x, at, anchor, shown]];
}

class Extent {
  private _left = Infinity;
  private _top = Infinity;
  private _right = -Infinity;
  private _bottom = -Infinity;

  add(x: number, y: number): this {
    this._left = Math.min(this._left, x);
    this._top = Math.min(this._top, y);
    this._right = Math.max(this._right, x);
    this._bottom = Math.max(this._bottom, y);
    return this;
  }

  get width(): number {
    return Math.max(0, this._right - this._left);
  }

  box(edge: number): [number, number, number, number] {
    if (this._left > this._right) {
      return [0, 0, 2 * edge, 2 * edge];
    }
    return [
      this._left - edge,
      this._top - edge,
      this.width + 2 * edge,
      this._bottom - this._top + 2 * edge
    ];
  }
}
