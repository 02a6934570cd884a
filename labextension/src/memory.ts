// A rank's memory as one bar: its arrays, the rest of its process, the rest of what is used.

import { memoryText } from './format.js';
import type { Trans } from './trans.js';
import type { Memory } from './types.js';

export interface MemoryBar {
  /** Parts of the whole, 0..1, that do not overlap. */
  arrays: number;
  process: number;
  used: number;
  /** "21.4 of 64 GB" */
  short: string;
  /** [name, value] of all that is known. */
  rows: [what: Part, bytes: number][];
}

export type Part = 'arrays' | 'peak' | 'cache' | 'limit' | 'process' | 'used' | 'wired' | 'total';

export function memoryBar(
  memory: Partial<Memory> | null | undefined,
  trans: Trans
): MemoryBar | null {
  if (!memory) {
    return null;
  }
  const order: Part[] = ['arrays', 'peak', 'cache', 'limit', 'process', 'used', 'wired', 'total'];
  const rows = order.flatMap((what): [Part, number][] => {
    const bytes = memory[what];
    return bytes == null ? [] : [[what, bytes]];
  });
  if (!rows.length) {
    return null;
  }
  const total = memory.total ?? 0;
  const part = (bytes: number | null | undefined, below: number): number =>
    total > 0 && bytes != null ? Math.min(1, Math.max(0, bytes / total)) - below : 0;
  const arrays = part(memory.arrays, 0);
  // Arrays of a GPU need not count as the process's own: then it adds nothing to them.
  const process = Math.max(0, part(memory.process, arrays));
  const used = Math.max(0, part(memory.used, arrays + process));
  const inUse = memory.used ?? memory.process ?? memory.arrays;
  const short =
    inUse == null
      ? memoryText(total)
      : total > 0
        ? trans.__('%1 of %2', memoryText(inUse).replace(/ GB$/, ''), memoryText(total))
        : memoryText(inUse);
  return { arrays, process, used, short, rows };
}
