// Quantities as people read them; the same style as engine/units.py.

/** "512 B", "65.5 kB", "12.3 GB": decimal units, as macOS and MLX count. */
export function bytesText(count: number): string {
  for (const [unit, scale] of [
    ['GB', 1e9],
    ['MB', 1e6],
    ['kB', 1e3]
  ] as const) {
    if (count >= 0.99995 * scale) {
      return `${(count / scale).toFixed(1)} ${unit}`;
    }
  }
  return `${count.toFixed(0)} B`;
}

/** "512 GB": memory is sold in binary units under decimal names. */
export function memoryText(count: number): string {
  const size = count / 2 ** 30;
  return size >= 9.95 ? `${size.toFixed(0)} GB` : `${size.toFixed(1)} GB`;
}

/** Three digits that count: "0.085", "8.21", "41.3", "1,250". */
export function numberText(value: number): string {
  if (value === 0) {
    return '0';
  }
  for (const [least, places] of [
    [99.95, 0],
    [9.995, 1],
    [0.9995, 2],
    [0.09995, 3]
  ] as const) {
    if (value >= least) {
      return value.toLocaleString('en-US', {
        minimumFractionDigits: places,
        maximumFractionDigits: places
      });
    }
  }
  return String(Number(value.toPrecision(2)));
}

/** Bytes/s: "8.21 GB/s", "950 MB/s", in decimal units. */
export function rateText(rate: number): string {
  for (const [unit, scale] of [
    ['GB/s', 1e9],
    ['MB/s', 1e6]
  ] as const) {
    if (rate >= 0.9995 * scale) {
      return `${numberText(rate / scale)} ${unit}`;
    }
  }
  return `${numberText(rate / 1e3)} kB/s`;
}

/** How long something lasts: "8 s", "3 min 20 s", "2 h 05 min", "3 d 4 h". */
export function durationText(seconds: number): string {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (value: number): string => String(value).padStart(2, '0');
  if (whole < 60) {
    return `${whole} s`;
  }
  if (whole < 3600) {
    return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  }
  if (whole < 86400) {
    return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
  }
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

export const percentText = (value: number): string => `${Math.round(value)} %`;

/** "0-3, 7": a few ranks in words. */
export function ranksText(ranks: readonly number[]): string {
  const sorted = [...ranks].sort((a, b) => a - b);
  const runs: [number, number][] = [];
  for (const rank of sorted) {
    const last = runs[runs.length - 1];
    if (last && rank === last[1] + 1) {
      last[1] = rank;
    } else {
      runs.push([rank, rank]);
    }
  }
  return runs.map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`)).join(', ');
}
