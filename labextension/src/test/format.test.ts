import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  bytesText,
  durationText,
  memoryText,
  numberText,
  percentText,
  ranksText,
  rateText
} from '../format.js';

const table = <T>(format: (value: T) => string, expected: [T, string][]): void => {
  for (const [value, words] of expected) {
    assert.equal(format(value), words);
  }
};

test('bytes are counted in decimal units', () => {
  table(bytesText, [
    [0, '0 B'],
    [512, '512 B'],
    [65536, '65.5 kB'],
    [999_960, '1.0 MB'],
    [12.3e9, '12.3 GB'],
    [1.5e12, '1500.0 GB']
  ]);
});

test('memory is counted in binary units under decimal names', () => {
  table(memoryText, [
    [512 * 2 ** 30, '512 GB'],
    [1.25 * 2 ** 30, '1.3 GB'],
    [9.96 * 2 ** 30, '10 GB']
  ]);
});

test('numbers have three digits that count', () => {
  table(numberText, [
    [0, '0'],
    [0.0123, '0.012'],
    [0.085, '0.085'],
    [0.5, '0.500'],
    [8.214, '8.21'],
    [41.26, '41.3'],
    [1250, '1,250']
  ]);
});

test('rates are decimal', () => {
  table(rateText, [
    [8.21e9, '8.21 GB/s'],
    [950e6, '950 MB/s'],
    [2e3, '2.00 kB/s']
  ]);
});

test('durations do not jump about in width', () => {
  table(durationText, [
    [-3, '0 s'],
    [8.9, '8 s'],
    [60, '1 min 00 s'],
    [200, '3 min 20 s'],
    [7500, '2 h 05 min'],
    [86400 * 3 + 4 * 3600, '3 d 4 h']
  ]);
});

test('percent and ranks', () => {
  assert.equal(percentText(97.6), '98 %');
  table(ranksText, [
    [[], ''],
    [[3], '3'],
    [[7, 0, 1, 2, 3], '0-3, 7'],
    [[0, 2], '0, 2']
  ]);
});
