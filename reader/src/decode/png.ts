/** PNG to the greys that Pillow makes of it. */

import { unzlibSync } from "fflate";
import { checkSize, type Grey, joined, luminance, Refused } from "./grey";

const [GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA] = [0, 2, 3, 4, 6];
const CHANNELS: Record<number, number> = {
  [GREY]: 1, [RGB]: 3, [PALETTE]: 1, [GREY_ALPHA]: 2, [RGB_ALPHA]: 4,
};
// Adam7: first column and row of every pass, and the steps between them.
const PASSES = [
  [0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2],
] as const;

export interface Png {
  image: Grey;
  bits: number;
  color: boolean;
  exif: Uint8Array | null;
}

export function decodePng(data: Uint8Array): Png {
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const width = view.getUint32(16);
  const height = view.getUint32(20);
  const [depth, kind, , , interlaced] = data.subarray(24, 29) as unknown as number[];
  checkSize(height, width);
  const channels = CHANNELS[kind!];
  if (!channels || ![1, 2, 4, 8, 16].includes(depth!)) throw new Refused("its PNG data is damaged");
  if (depth === 16 && kind !== GREY)
    throw new Refused("it has 16 bits in each of several channels; convert it to 16-bit grey");
  const parts: Uint8Array[] = [];
  let palette: Uint8Array | null = null;
  let transparency: Uint8Array | null = null;
  let exif: Uint8Array | null = null;
  for (let at = 8; at + 12 <= data.length; ) {
    const length = view.getUint32(at);
    const name = String.fromCharCode(...data.subarray(at + 4, at + 8));
    const body = data.subarray(at + 8, at + 8 + length);
    if (name === "IDAT") parts.push(body);
    else if (name === "PLTE") palette = body;
    else if (name === "tRNS") transparency = body;
    else if (name === "eXIf") exif = body;
    else if (name === "acTL" && view.getUint32(at + 8) > 1)
      throw new Refused(`it holds ${view.getUint32(at + 8)} pictures; a radiograph is one`);
    else if (name === "IEND") break;
    at += 12 + length;
  }
  const values = unpack(inflated(joined(parts)), width, height, depth!, channels, interlaced === 1);
  const image = (pixels: Grey["data"]) => ({ data: pixels, width, height });
  if (depth === 16) return { image: image(values), bits: 16, color: false, exif };
  if (kind === GREY && !transparency) {
    const scale = 255 / (2 ** depth! - 1);
    return { image: image(scale === 1 ? values : values.map((v) => v * scale)), bits: 8, color: false, exif };
  }
  const grey = new Uint8Array(width * height);
  let spread = 0;
  for (let i = 0; i < grey.length; i++) {
    let [r, g, b, a] = pixel(values, i, kind!, depth!, palette, transparency);
    if (a < 255) [r, g, b] = [overBlack(r, a), overBlack(g, a), overBlack(b, a)];
    grey[i] = luminance(r, g, b);
    spread += Math.max(r, g, b) - Math.min(r, g, b);
  }
  return { image: image(grey), bits: 8, color: spread / grey.length > 10, exif };
}

function inflated(packed: Uint8Array): Uint8Array {
  try {
    return unzlibSync(packed);
  } catch {
    throw new Refused("its PNG data is damaged or cut short");
  }
}

/** Red, green, blue and alpha of a pixel. */
function pixel(
  values: Grey["data"], i: number, kind: number, depth: number,
  palette: Uint8Array | null, transparency: Uint8Array | null,
): [number, number, number, number] {
  if (kind === PALETTE) {
    const at = values[i]!;
    const [r, g, b] = [0, 1, 2].map((c) => palette?.[3 * at + c] ?? 0) as [number, number, number];
    return [r, g, b, transparency?.[at] ?? 255];
  }
  if (kind === GREY || kind === GREY_ALPHA) {
    const wide = kind === GREY_ALPHA;
    const v = values[wide ? 2 * i : i]!;
    const hidden = transparency && v === transparency[1];
    const grey = (v * 255) / (2 ** depth - 1);
    return [grey, grey, grey, wide ? values[2 * i + 1]! : hidden ? 0 : 255];
  }
  const at = i * (kind === RGB ? 3 : 4);
  const [r, g, b] = [values[at]!, values[at + 1]!, values[at + 2]!];
  const t = transparency;
  const hidden = t && r === t[1] && g === t[3] && b === t[5];
  return [r, g, b, kind === RGB ? (hidden ? 0 : 255) : values[at + 3]!];
}

/** Pillow's `alpha_composite` over opaque black. */
function overBlack(value: number, alpha: number): number {
  const product = value * alpha * 128 + 0x4000;
  return ((product >> 8) + product) >> 15;
}

/** Unfiltered samples, interleaved; 16 bits in the machine's order, fewer than 8 one a byte. */
function unpack(
  raw: Uint8Array, width: number, height: number, depth: number, channels: number,
  interlaced: boolean,
): Uint8Array | Uint16Array {
  const out = depth === 16
    ? new Uint16Array(width * height * channels) : new Uint8Array(width * height * channels);
  const step = Math.max(1, (depth * channels) >> 3);
  let at = 0;
  for (const [x0, y0, dx, dy] of interlaced ? PASSES : ([[0, 0, 1, 1]] as const)) {
    const columns = Math.ceil((width - x0) / dx);
    const rows = Math.ceil((height - y0) / dy);
    if (columns < 1 || rows < 1) continue;
    const length = Math.ceil((columns * channels * depth) / 8);
    if (at + rows * (length + 1) > raw.length)
      throw new Refused("its PNG data is damaged or cut short");
    let above: Uint8Array = new Uint8Array(length);
    for (let row = 0; row < rows; row++) {
      const line = raw.subarray(at + 1, at + 1 + length);
      unfilter(raw[at]!, line, above, step);
      above = line;
      at += length + 1;
      for (let column = 0; column < columns; column++)
        for (let c = 0; c < channels; c++) {
          const n = column * channels + c;
          const target = ((y0 + row * dy) * width + x0 + column * dx) * channels + c;
          if (depth === 16) out[target] = (line[2 * n]! << 8) | line[2 * n + 1]!;
          else if (depth === 8) out[target] = line[n]!;
          else {
            const bit = n * depth;
            out[target] = (line[bit >> 3]! >> (8 - depth - (bit & 7))) & (2 ** depth - 1);
          }
        }
    }
  }
  return out;
}

function unfilter(kind: number, line: Uint8Array, above: Uint8Array, step: number): void {
  if (kind > 4) throw new Refused("its PNG data is damaged");
  if (kind === 0) return;
  for (let i = 0; i < line.length; i++) {
    const a = i >= step ? line[i - step]! : 0;
    const b = above[i]!;
    let guess = kind === 1 ? a : kind === 2 ? b : (a + b) >> 1;
    if (kind === 4) {
      const c = i >= step ? above[i - step]! : 0;
      const [da, db, dc] = [Math.abs(b - c), Math.abs(a - c), Math.abs(a + b - 2 * c)];
      guess = da <= db && da <= dc ? a : db <= dc ? b : c;
    }
    line[i] = line[i]! + guess;
  }
}
