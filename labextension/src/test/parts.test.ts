import assert from 'node:assert/strict';
import { test } from 'node:test';

import { compact, type Scene } from '../compact.js';
import { CELLS_MIME, dragData, insertCode, onEmptyCell } from '../connect.js';
import { memoryBar } from '../memory.js';
import { shardMap } from '../shardmap.js';
import { english } from '../trans.js';
import type { Model, ModelRank } from '../types.js';
import { ViewModel } from '../views.js';
import { parseWish, type Wish } from '../wish.js';

// -- connect ---------------------------------------------------------------------------------------

const CODE = '%load_ext macluster\n%cluster connect demo';

class Commands {
  done: [string, unknown][] = [];
  constructor(private readonly enabled: boolean) {}
  hasCommand(): boolean {
    return true;
  }
  isEnabled(): boolean {
    return this.enabled;
  }
  execute(id: string, args?: object): Promise<void> {
    this.done.push([id, args]);
    return Promise.resolve();
  }
}

test('code goes into a cell of its own below the current one', async () => {
  const commands = new Commands(true);
  assert.equal(await insertCode(commands, CODE, false), true);
  assert.deepEqual(commands.done, [
    ['notebook:insert-cell-below', undefined],
    ['notebook:replace-selection', { text: CODE }]
  ]);
});

test('an empty cell is filled', async () => {
  const commands = new Commands(true);
  await insertCode(commands, CODE, true);
  assert.deepEqual(commands.done, [['notebook:replace-selection', { text: CODE }]]);
});

test('without a notebook in front nothing is done', async () => {
  const commands = new Commands(false);
  assert.equal(await insertCode(commands, CODE, false), false);
  assert.deepEqual(commands.done, []);
});

test('an empty code cell is known, and anything else is none', () => {
  const widget = (type: string, source: string): unknown => ({
    content: { activeCell: { model: { type, sharedModel: { getSource: () => source } } } }
  });
  assert.ok(onEmptyCell(widget('code', ' \n')));
  assert.ok(!onEmptyCell(widget('code', 'a = 1')));
  assert.ok(!onEmptyCell(widget('markdown', '')));
  assert.ok(!onEmptyCell(null));
  assert.ok(!onEmptyCell({}));
});

test('a notebook gets a code cell, an editor gets text', () => {
  const data = new Map(dragData(CODE));
  assert.deepEqual(data.get(CELLS_MIME), [
    { cell_type: 'code', execution_count: null, metadata: {}, outputs: [], source: CODE }
  ]);
  assert.equal(data.get('text/plain'), CODE);
});

// -- the sharding map ------------------------------------------------------------------------------

const model = (layers: number | null, ranks: ModelRank[]): Model => ({
  name: 'model',
  source: 'repo',
  strategy: '',
  layers,
  ranks: Object.fromEntries(ranks.map((rank, index) => [index, rank]))
});
const boxes = (found: ReturnType<typeof shardMap>): number[][] =>
  found.slices.map(({ x, y, w, h }) => [x, y, w, h]);

test('a pipeline is cut into columns of layers', () => {
  const found = shardMap(
    model(8, [
      { bytes: 1e9, layers: [0, 2], share: 0.25 },
      { bytes: 3e9, layers: [2, 8], share: 0.75 }
    ]),
    english
  );
  assert.equal(found.kind, 'columns');
  assert.deepEqual(boxes(found), [
    [0, 0, 0.25, 1],
    [0.25, 0, 0.75, 1]
  ]);
  assert.equal(found.bytes, 4e9);
  assert.equal(
    found.label,
    'rank 0: layers 0-1, 1.0 GB, 25 %; rank 1: layers 2-7, 3.0 GB, 75 %'
  );
});

test('a rank without a layer has no column, and says so', () => {
  const found = shardMap(
    model(2, [
      { bytes: 8, layers: [0, 2], share: 1 },
      { bytes: 0, layers: [2, 2], share: 0 }
    ]),
    english
  );
  assert.deepEqual(boxes(found)[1], [1, 0, 0, 1]);
  assert.match(found.slices[1].words, /no layer/);
});

test('tensor parallelism is cut into lanes', () => {
  const part = { bytes: 1e9, layers: null, share: 0.25 };
  const found = shardMap(model(28, [part, part, part, part]), english);
  assert.equal(found.kind, 'lanes');
  assert.deepEqual(boxes(found), [
    [0, 0, 1, 0.25],
    [0, 0.25, 1, 0.25],
    [0, 0.5, 1, 0.25],
    [0, 0.75, 1, 0.25]
  ]);
});

test('copies share the picture, and say that they are whole', () => {
  const part = { bytes: 1e9, layers: null, share: 1 };
  const found = shardMap(model(28, [part, part]), english);
  assert.equal(found.kind, 'copies');
  assert.equal(found.label, 'ranks 0-1 hold the whole model each');
  assert.deepEqual(boxes(found)[1], [0, 0.5, 1, 0.5]);
});

test('what is not known is shared out evenly', () => {
  const part = { bytes: null, layers: null, share: null };
  const found = shardMap(model(null, [part, part]), english);
  assert.equal(found.bytes, null);
  assert.deepEqual(boxes(found), [
    [0, 0, 1, 0.5],
    [0, 0.5, 1, 0.5]
  ]);
});

test('many ranks are one sentence', () => {
  const part = { bytes: 1e6, layers: null, share: 1 / 64 };
  assert.equal(
    shardMap(model(28, Array(64).fill(part) as ModelRank[]), english).label,
    '64 ranks hold 1.6 % each'
  );
});

// -- memory ----------------------------------------------------------------------------------------

const GB = 2 ** 30;

test('the parts of a memory bar do not overlap', () => {
  const bar = memoryBar({ total: 64 * GB, used: 32 * GB, process: 16 * GB, arrays: 8 * GB }, english);
  assert.deepEqual([bar?.arrays, bar?.process, bar?.used], [0.125, 0.125, 0.25]);
  assert.equal(bar?.short, '32 of 64 GB');
});

test('arrays that do not count as resident leave no part below zero', () => {
  const bar = memoryBar({ total: 64 * GB, used: 20 * GB, process: 2 * GB, arrays: 16 * GB }, english);
  assert.deepEqual([bar?.arrays, bar?.process, bar?.used], [0.25, 0, 0.0625]);
});

test('memory that is not known is left out', () => {
  assert.equal(memoryBar(null, english), null);
  assert.equal(memoryBar({ total: null, used: null }, english), null);
  assert.equal(memoryBar({ process: 2 * GB }, english)?.short, '2.0 GB');
  assert.deepEqual(memoryBar({ total: GB, used: null, arrays: 0 }, english)?.rows, [
    ['arrays', 0],
    ['total', GB]
  ]);
});

// -- the views -------------------------------------------------------------------------------------

test('listeners hear of a change when all traits have changed', () => {
  const view = new ViewModel({ scene: 1, figures: 1 });
  const heard: unknown[] = [];
  const listener = (): void => {
    heard.push([view.get('scene'), view.get('figures')]);
  };
  view.on('change:scene', listener);
  view.update({ scene: 2, figures: 2 });
  view.off('change:scene', listener);
  view.update({ scene: 3 });
  assert.deepEqual(heard, [[2, 2]]);
});

test('the sidebar\'s picture has the numbers and the wires, in a box around them', () => {
  const scene: Scene = {
    box: [-304, -200, 608, 400],
    back: [
      ['text', 'small', -160, 190, 'start', 'RDMA, not measured'],
      ['rect', 'frame', -190, -60, 380, 120, 12],
      ['text', 'strong', 0, -70, 'middle', 'localhost, M3 Ultra, 19 of 64 GB']
    ],
    nodes: [-150, 150].map((x, index) => ({
      id: String(index),
      x,
      y: 0,
      over: [],
      parts: [
        ['rect', 'body', -30, -20, 60, 40, 8],
        index
          ? ['text', 'strong', 40, -10, 'start', `rank ${index} · busy`]
          : ['text', 'strong', 0, 38, 'middle', `rank ${index} · busy`],
        ['text', 'small', 0, 52, 'middle', '19 of 64 GB']
      ]
    })),
    links: [
      {
        id: '0-1',
        x: 0,
        y: 0,
        over: [
          ['rect', 'under', -46, 30, 92, 32, 4],
          ['text', 'strong', 0, 42, 'middle', '5.80 GB/s'],
          ['text', 'small', 0, 56, 'middle', 'RDMA · 28.0 us'],
          ['path', 'warn', 'M0 30l8 14h-16z', 0]
        ],
        parts: [['path', 'line', 'M-120 0Q0 90 120 0', 3]]
      }
    ]
  };
  const { scene: small, letters } = compact(scene);
  const words = [...small.back, ...small.nodes.flatMap(node => node.parts)]
    .filter(([tag]) => tag === 'text')
    .map(part => part[5]);
  assert.deepEqual(words, ['localhost', 'rank 0', 'rank 1']);
  // The speed, in a gap around the middle of the one that was there.
  const [gap, speed, ...more] = small.links[0].over;
  assert.deepEqual([gap[1], speed[5], more.map(([, kind]) => kind)], ['under', '5.80 GB/s', ['warn']]);
  assert.ok(Math.abs(Number(gap[2]) + Number(gap[4]) / 2) < 1e-9);
  assert.equal(Number(gap[3]) + Number(gap[5]) / 2, 46);
  const [left, top, width, height] = small.box;
  // Around the frame, the bent link, and the name beside the right node.
  assert.ok(left <= -190 && left + width > 190 + 40 && top < -70 && top + height >= 90);
  assert.ok(height < scene.box[3]);
  assert.ok(letters > 12);
  // Of many links no speed, and no gap for it.
  const many = compact({ ...scene, links: Array(7).fill(scene.links[0]) as never });
  assert.deepEqual(
    many.scene.links[0].over.map(([, kind]) => kind),
    ['warn']
  );
});

// -- the dialog ------------------------------------------------------------------------------------

const wish = (changes: Partial<Wish>): Wish => ({
  where: 'here',
  count: '4',
  path: '',
  list: '',
  name: 'x',
  backend: '',
  checked: false,
  ...changes
});

test('what was typed becomes what the server takes', () => {
  const hosts = (changes: Partial<Wish>): unknown => parseWish(wish(changes), [], english).hosts;
  assert.equal(hosts({}), 4);
  assert.equal(hosts({ count: '0' }), null);
  assert.equal(hosts({ count: '2.5' }), null);
  assert.equal(hosts({ count: '' }), null);
  assert.equal(hosts({ where: 'file', path: ' hosts.json ' }), 'hosts.json');
  assert.equal(hosts({ where: 'file' }), null);
  assert.deepEqual(hosts({ where: 'list', list: 'm1, m2\nm3\n' }), ['m1', 'm2', 'm3']);
  assert.equal(hosts({ where: 'list', list: ' \n' }), null);
});

test('a name that is taken or missing is said before the server is asked', () => {
  const problem = (name: string): string => parseWish(wish({ name }), ['demo'], english).problem;
  assert.equal(problem('x'), '');
  assert.match(problem('demo'), /already/);
  assert.match(problem('  '), /name/);
});
