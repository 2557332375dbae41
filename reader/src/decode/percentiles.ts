/** Port of data_pipeline/decode/percentiles.py: greys for an image without a useful window. */

import type { Samples } from "./grey";

/** How often each value occurs. */
export function histogram(stored: Samples, length: number): Float64Array {
  const counts = new Float64Array(length);
  for (let i = 0; i < stored.length; i++) counts[stored[i]!]!++;
  return counts;
}

/** Percentiles of an image from the counts of its values. */
export function percentiles(
  values: Float64Array, counts: Float64Array, wanted: [number, number],
): [number, number] {
  const order = Uint32Array.from(values, (_, i) => i);
  let sorted = true;
  for (let i = 1; i < values.length && sorted; i++) sorted = values[i - 1]! <= values[i]!;
  if (!sorted) order.sort((a, b) => values[a]! - values[b]! || a - b);
  const total = counts.reduce((sum, count) => sum + count, 0);
  return wanted.map((percent) => {
    const rank = (percent / 100) * total;
    let cumulative = 0;
    for (const i of order) {
      cumulative += counts[i]!;
      if (cumulative >= rank) return values[i]!;
    }
    return values[order[order.length - 1]!]!;
  }) as [number, number];
}

/** The values shown as black and as white: the 0.5th and 99.5th percentile.
 *
 * Where both are one value, all values that occur.
 */
export function shownRange(values: Float64Array, counts: Float64Array): [number, number] {
  let [low, high] = percentiles(values, counts, [0.5, 99.5]);
  if (low === high) {
    low = Infinity;
    high = -Infinity;
    values.forEach((value, i) => {
      if (counts[i]! > 0) [low, high] = [Math.min(low, value), Math.max(high, value)];
    });
  }
  return [low, high];
}

/** Greys 0 to 1 of every value. */
export const stretch = (values: Float64Array, [low, high]: [number, number]): Float64Array =>
  values.map((value) => Math.min(Math.max((value - low) / Math.max(high - low, 1e-9), 0), 1));
