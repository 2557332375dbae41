/**
 * Finer saliency of small images by shift-and-stitch (Long et al., CVPR 2015, section 3.2): the
 * network also reads the image moved by parts of a cell, and the cells of all maps interleave.
 */

export interface Maps {
  /** One map after another. */
  data: Float32Array;
  width: number;
  height: number;
}

/** Maps with fewer cells a side show only a corner, as in `saliency.default_level` of Python. */
const LEAST_CELLS = 6;

/** How many positions a side a map of so many cells needs. */
export const shiftsFor = (cells: number): number => Math.ceil(LEAST_CELLS / cells);

/**
 * Squares whose cells lie at each position, row by row; the border is repeated.
 *
 * The map of the square of (i, j) has its cell (a, b) where the stitched map has the cell
 * (a * shifts + i, b * shifts + j).
 */
export function shiftedImages(
  square: Uint8Array, size: number, cells: number, shifts: number,
): Uint8Array {
  const result = new Uint8Array(shifts * shifts * square.length);
  const inside = (at: number) => Math.min(Math.max(at, 0), size - 1);
  const move = (i: number) => Math.round(((i - (shifts - 1) / 2) * size) / (cells * shifts));
  let at = 0;
  for (let i = 0; i < shifts; i++)
    for (let j = 0; j < shifts; j++)
      for (let y = 0; y < size; y++) {
        const row = inside(y + move(i)) * size;
        for (let x = 0; x < size; x++) result[at++] = square[row + inside(x + move(j))]!;
      }
  return result;
}

/** Interleaves the maps of `shiftedImages`: all conditions of the first square, then the next. */
export function stitched({ data, width, height }: Maps, shifts: number): Maps {
  const cells = width * height;
  const conditions = data.length / (cells * shifts * shifts);
  const result = new Float32Array(data.length);
  let at = 0;
  for (let i = 0; i < shifts; i++)
    for (let j = 0; j < shifts; j++)
      for (let k = 0; k < conditions; k++)
        for (let a = 0; a < height; a++)
          for (let b = 0; b < width; b++) {
            const row = k * height * shifts + a * shifts + i;
            result[row * width * shifts + b * shifts + j] = data[at++]!;
          }
  return { data: result, width: width * shifts, height: height * shifts };
}
