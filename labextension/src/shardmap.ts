// The small sharding map: across, the layers of a model; down, the width of each layer.

import { bytesText, percentText, ranksText } from './format.js';
import type { Trans } from './trans.js';
import type { Model, ModelRank } from './types.js';

/** A rank's part of the model, in the unit square. */
export interface Slice {
  rank: number;
  x: number;
  y: number;
  w: number;
  h: number;
  words: string;
}

export interface ShardMap {
  /** columns: split by depth; lanes: split by width; copies: each rank has all of it. */
  kind: 'columns' | 'lanes' | 'copies';
  slices: Slice[];
  bytes: number | null;
  label: string;
}

const ranksOf = (model: Model): [number, ModelRank][] =>
  Object.entries(model.ranks)
    .map(([rank, part]): [number, ModelRank] => [Number(rank), part])
    .sort(([a], [b]) => a - b);

export function shardMap(model: Model, trans: Trans): ShardMap {
  const ranks = ranksOf(model);
  const sizes = ranks.map(([, part]) => part.bytes);
  const bytes = sizes.some(size => size == null)
    ? null
    : sizes.reduce<number>((sum, size) => sum + (size ?? 0), 0);
  const shares = ranks.map(([, part]) => shareOf(part, bytes, ranks.length));
  const layers = model.layers ?? 0;
  const byDepth = layers > 0 && ranks.some(([, part]) => part.layers != null);
  const copies = !byDepth && ranks.length > 1 && shares.every(share => share > 0.99);
  const kind = byDepth ? 'columns' : copies ? 'copies' : 'lanes';
  const whole = shares.reduce((sum, share) => sum + share, 0) || 1;
  let y = 0;
  const slices = ranks.map(([rank, part], index): Slice => {
    const words = wordsOf(rank, part, shares[index], trans);
    if (kind === 'columns') {
      const [from, to] = part.layers ?? [0, 0];
      return { rank, x: from / layers, y: 0, w: Math.max(0, to - from) / layers, h: 1, words };
    }
    const h = shares[index] / whole;
    const slice = { rank, x: 0, y, w: 1, h, words };
    y += h;
    return slice;
  });
  return { kind, slices, bytes, label: labelOf(kind, slices, ranks, shares, trans) };
}

function shareOf(part: ModelRank, bytes: number | null, ranks: number): number {
  if (part.share != null) {
    return part.share;
  }
  return bytes && part.bytes != null ? part.bytes / bytes : 1 / ranks;
}

/** "rank 1: layers 8-15, 4.1 GB, 25 %". */
function wordsOf(rank: number, part: ModelRank, share: number, trans: Trans): string {
  const found = [];
  if (part.layers) {
    const [from, to] = part.layers;
    found.push(
      to - from > 1
        ? trans.__('layers %1-%2', from, to - 1)
        : to > from
          ? trans.__('layer %1', from)
          : trans.__('no layer')
    );
  }
  if (part.bytes != null) {
    found.push(bytesText(part.bytes));
  }
  found.push(percentText(100 * share));
  return trans.__('rank %1: %2', rank, found.join(', '));
}

// Of many ranks that hold about the same, one sentence is better than a long list.
function labelOf(
  kind: ShardMap['kind'],
  slices: Slice[],
  ranks: [number, ModelRank][],
  shares: number[],
  trans: Trans
): string {
  if (kind === 'copies') {
    const all = ranksText(ranks.map(([rank]) => rank));
    return trans.__('ranks %1 hold the whole model each', all);
  }
  if (slices.length <= 8) {
    return slices.map(slice => slice.words).join('; ');
  }
  const least = 100 * Math.min(...shares);
  const most = 100 * Math.max(...shares);
  const range = most - least < 0.1 ? least.toFixed(1) : `${least.toFixed(1)}-${most.toFixed(1)}`;
  return trans.__('%1 ranks hold %2 % each', slices.length, range);
}
