/** From an image of any size to the network's square: port of data_pipeline/decode/preprocessing.py.
 *
 * Resizing is Pillow's antialiased BILINEAR, in its arithmetic: 22-bit fixed point for 8 bits,
 * float32 between the passes for 16 bits.
 */

import { checkSize, fullRange, type Grey, rint, samples, type Samples } from "./grey";

export interface Preprocessing {
  image_size: number;
  resize: "pad" | "squash" | "crop";
  trim_borders: boolean;
  decoder_version?: number;
}

/** The part of the image, in its pixels, that the network's square covers. */
export interface Region {
  x: number;
  y: number;
  width: number;
  height: number;
}

/** How small the shorter side of the image may be decoded, where the codec can reduce. */
export function shortestSide(p: Preprocessing, height: number, width: number): number {
  const side = (p.trim_borders ? 10 : 2) * p.image_size;
  if (p.resize !== "pad") return side;
  return Math.max(1, Math.ceil((side * Math.min(height, width)) / Math.max(height, width)));
}

/** Resizes an image to `[S, S]` of 8 bits, and says which part of the image the square covers. */
export function toSquare(image: Grey, p: Preprocessing): { square: Uint8Array; region: Region } {
  const size = p.image_size;
  let [x, y] = [0, 0];
  if (p.trim_borders) {
    const [top, bottom] = margins(image, false);
    const [left, right] = margins(image, true);
    [x, y] = [left, top];
    image = cut(image, left, top, image.width - left - right, image.height - top - bottom);
  }
  let inner = { width: size, height: size };
  if (p.resize === "pad") {
    const scale = size / Math.max(image.height, image.width);
    inner = {
      width: Math.max(1, rint(image.width * scale)),
      height: Math.max(1, rint(image.height * scale)),
    };
  } else if (p.resize === "crop") {
    const side = Math.min(image.height, image.width);
    const left = Math.floor((image.width - side) / 2);
    const top = Math.floor((image.height - side) / 2);
    [x, y] = [x + left, y + top];
    image = cut(image, left, top, side, side);
  }
  const resized = resize8(image, inner.width, inner.height);
  const left = Math.floor((size - inner.width) / 2);
  const top = Math.floor((size - inner.height) / 2);
  const square = new Uint8Array(size * size);
  for (let row = 0; row < inner.height; row++) {
    const from = row * inner.width;
    square.set(resized.subarray(from, from + inner.width), (top + row) * size + left);
  }
  const [unitX, unitY] = [image.width / inner.width, image.height / inner.height];
  const region = {
    x: x - left * unitX,
    y: y - top * unitY,
    width: size * unitX,
    height: size * unitY,
  };
  return { square, region };
}

/** An image whose pixels are `aspect` times as high as wide, enlarged to square pixels. */
export function squarePixels(image: Grey, aspect: number): Grey {
  const height = aspect > 1 ? rint(image.height * aspect) : image.height;
  const width = aspect > 1 ? image.width : rint(image.width / aspect);
  checkSize(height, width);
  if (image.data instanceof Uint8Array)
    return { data: resize8(image, width, height), width, height };
  const data = new Uint16Array(width * height);
  resizeFloat(image, width, height).forEach((value, i) => (data[i] = clip(value, 65535)));
  return { data, width, height };
}

const clip = (value: number, maximum: number): number =>
  Math.min(Math.max(rint(value), 0), maximum);

/** Resizes to 8 bits. */
function resize8(image: Grey, width: number, height: number): Uint8Array {
  if (image.data instanceof Uint8Array) {
    const across = pass8(image.data, image.width, image.height, width, true);
    return pass8(across, width, image.height, height, false);
  }
  const scale = Math.fround(255 / fullRange(image.data));
  const out = new Uint8Array(width * height);
  const resized = resizeFloat(image, width, height);
  for (let i = 0; i < out.length; i++) out[i] = clip(Math.fround(resized[i]! * scale), 255);
  return out;
}

function resizeFloat(image: Grey, width: number, height: number): Float32Array {
  const across = passFloat(image.data, image.width, image.height, width, true);
  return passFloat(across, width, image.height, height, false);
}

interface Filter {
  first: Int32Array;
  count: Int32Array;
  weights: Float64Array;
  most: number;
}

/** Weights of the triangle filter, its support widened when reducing. */
function triangle(from: number, to: number): Filter {
  const scale = from / to;
  const widen = Math.max(scale, 1);
  const most = Math.ceil(widen) * 2 + 1;
  const filter: Filter = {
    first: new Int32Array(to),
    count: new Int32Array(to),
    weights: new Float64Array(to * most),
    most,
  };
  for (let out = 0; out < to; out++) {
    const center = (out + 0.5) * scale;
    const first = Math.max(Math.trunc(center - widen + 0.5), 0);
    const count = Math.min(Math.trunc(center + widen + 0.5), from) - first;
    let sum = 0;
    for (let i = 0; i < count; i++) {
      const distance = Math.abs((i + first - center + 0.5) * (1 / widen));
      const weight = distance < 1 ? 1 - distance : 0;
      filter.weights[out * most + i] = weight;
      sum += weight;
    }
    for (let i = 0; i < count; i++) filter.weights[out * most + i]! *= sum ? 1 / sum : 1;
    filter.first[out] = first;
    filter.count[out] = count;
  }
  return filter;
}

type Sum = (start: number, step: number, count: number, weights: number) => number;

/** Applies a filter to every row (`across`) or column. */
function filtered<T extends Uint8Array | Float32Array>(
  out: T, width: number, height: number, filter: Filter, across: boolean, sum: Sum,
): T {
  const to = filter.first.length;
  const columns = across ? to : width;
  const rows = across ? height : to;
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const at = across ? column : row;
      const first = filter.first[at]!;
      const start = across ? row * width + first : first * width + column;
      out[row * columns + column] = sum(start, across ? 1 : width, filter.count[at]!, at * filter.most);
    }
  }
  return out;
}

const PRECISION = 22;

function pass8(
  data: Uint8Array, width: number, height: number, to: number, across: boolean,
): Uint8Array {
  if (to === (across ? width : height)) return data;
  const filter = triangle(across ? width : height, to);
  const fixed = Int32Array.from(filter.weights, (w) => Math.trunc(0.5 + w * 2 ** PRECISION));
  const out = new Uint8Array(across ? to * height : width * to);
  return filtered(out, width, height, filter, across, (start, step, count, weights) => {
    let total = 1 << (PRECISION - 1);
    for (let i = 0; i < count; i++) total += data[start + i * step]! * fixed[weights + i]!;
    return Math.min(total >> PRECISION, 255);
  });
}

function passFloat(
  data: Samples | Float32Array, width: number, height: number, to: number, across: boolean,
): Float32Array {
  if (to === (across ? width : height)) return Float32Array.from(data);
  const filter = triangle(across ? width : height, to);
  const out = new Float32Array(across ? to * height : width * to);
  return filtered(out, width, height, filter, across, (start, step, count, weights) => {
    let total = 0;
    for (let i = 0; i < count; i++) total += data[start + i * step]! * filter.weights[weights + i]!;
    return total;
  });
}

function cut(image: Grey, left: number, top: number, width: number, height: number): Grey {
  const data = samples(image.data, width * height);
  for (let row = 0; row < height; row++) {
    const from = (top + row) * image.width + left;
    data.set(image.data.subarray(from, from + width), row * width);
  }
  return { data, width, height };
}

/** How many rows, or columns, are margin at the beginning and at the end.
 *
 * A line is margin while 98 % of it lies within 4 % of the full range of the outermost line's
 * median; at most two fifths of the lines.
 */
function margins(image: Grey, columns: boolean): [number, number] {
  const { data, width, height } = image;
  const lines = columns ? width : height;
  const length = columns ? height : width;
  const tolerance = 0.04 * fullRange(data);
  const value = (line: number, i: number) =>
    columns ? data[i * width + line]! : data[line * width + i]!;
  const count = (line: (n: number) => number): number => {
    const sorted = Float64Array.from({ length }, (_, i) => value(line(0), i)).sort();
    const middle = length >> 1;
    const level = length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
    const limit = Math.floor((2 * lines) / 5);
    for (let n = 0; n < limit; n++) {
      let near = 0;
      for (let i = 0; i < length; i++)
        if (Math.abs(value(line(n), i) - level) <= tolerance) near++;
      if (near / length < 0.98) return n;
    }
    return limit;
  };
  return [count((n) => n), count((n) => lines - 1 - n)];
}
