import assert from 'node:assert/strict';
import { test } from 'node:test';

import { mergePatch } from '../patch.js';

test('every example of RFC 7396, appendix A', () => {
  const examples: [unknown, unknown, unknown][] = [
    [{ a: 'b' }, { a: 'c' }, { a: 'c' }],
    [{ a: 'b' }, { b: 'c' }, { a: 'b', b: 'c' }],
    [{ a: 'b' }, { a: null }, {}],
    [{ a: 'b', b: 'c' }, { a: null }, { b: 'c' }],
    [{ a: ['b'] }, { a: 'c' }, { a: 'c' }],
    [{ a: 'c' }, { a: ['b'] }, { a: ['b'] }],
    [{ a: { b: 'c' } }, { a: { b: 'd', c: null } }, { a: { b: 'd' } }],
    [{ a: [{ b: 'c' }] }, { a: [1] }, { a: [1] }],
    [['a', 'b'], ['c', 'd'], ['c', 'd']],
    [{ a: 'b' }, ['c'], ['c']],
    [{ a: 'foo' }, null, null],
    [{ a: 'foo' }, 'bar', 'bar'],
    [{ e: null }, { a: 1 }, { e: null, a: 1 }],
    [[1, 2], { a: 'b', c: null }, { a: 'b' }],
    [{}, { a: { bb: { ccc: null } } }, { a: { bb: {} } }]
  ];
  for (const [target, patch, expected] of examples) {
    assert.deepEqual(mergePatch(target, patch), expected);
  }
});

test('what a patch does not touch stays the same object, so that its row stays drawn', () => {
  const before = { ranks: { 0: { cpu: 1, memory: { used: 5 } }, 1: { cpu: 2 } }, models: {} };
  const after = mergePatch(before, { ranks: { 0: { cpu: 9 } } }) as typeof before;
  assert.notEqual(after, before);
  assert.notEqual(after.ranks[0], before.ranks[0]);
  assert.equal(after.ranks[0].memory, before.ranks[0].memory);
  assert.equal(after.ranks[1], before.ranks[1]);
  assert.equal(after.models, before.models);
  assert.deepEqual(before.ranks[0], { cpu: 1, memory: { used: 5 } });
});

test('a patch that says nothing new changes nothing', () => {
  const before = { busy: { ranks: [0, 1] }, words: '' };
  assert.equal(mergePatch(before, { busy: { ranks: [0, 1] }, gone: null }), before);
});

test('a variable may have the name of a property that every object has', () => {
  const patch = JSON.parse('{"models": {"__proto__": {"layers": 4}, "constructor": {"layers": 2}}}');
  const after = mergePatch({ models: {} }, patch) as { models: Record<string, unknown> };
  assert.deepEqual(Object.keys(after.models), ['__proto__', 'constructor']);
  assert.equal(({} as { layers?: number }).layers, undefined);
});
