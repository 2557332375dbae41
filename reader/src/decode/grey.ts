/** Grey images, the refusal of a file, and rounding as NumPy does it. */

/** Must equal `DECODER_VERSION` of data_pipeline/decode/radiograph.py. */
export const DECODER_VERSION = 3;

export const MAX_PIXELS = 50_000_000;
export const MAX_FILE_BYTES = 256 * 2 ** 20;
export const TOO_LARGE = `it has more pixels than the limit of ${MAX_PIXELS / 1e6} million`;

/** A decoder's refusal. The message is the reason, without any text from the file. */
export class Refused extends Error {}

export type Samples = Uint8Array | Uint16Array;

/** Greys, bright = dense, over the full range of the array's type; row by row. */
export interface Grey {
  data: Samples;
  width: number;
  height: number;
}

export const fullRange = (data: Samples): number => (data instanceof Uint8Array ? 255 : 65535);

/** Samples of the same type as `like`. */
export const samples = (like: Samples, length: number): Samples =>
  like instanceof Uint8Array ? new Uint8Array(length) : new Uint16Array(length);

/** Pieces of bytes as one. */
export function joined(parts: Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => (bytes.set(part, at), at + part.length), 0);
  return bytes;
}

/** The largest sample. */
export function largest(data: Samples): number {
  let most = 0;
  for (let i = 0; i < data.length; i++) if (data[i]! > most) most = data[i]!;
  return most;
}

/** Refuses a size that no image has, before anything of that size is allocated. */
export function checkSize(height: number, width: number): void {
  if (height < 1 || width < 1)
    throw new Refused(`its header gives an impossible size (${width}x${height} pixels)`);
  if (height * width > MAX_PIXELS) throw new Refused(TOO_LARGE);
}

/** Rounds half to even, as `numpy.rint` and Python's `round`. */
export function rint(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  if (rest !== 0.5) return rest < 0.5 ? floor : floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}

/** Luminance as Pillow computes it (ITU-R 601-2, 16-bit fixed point). */
export const luminance = (red: number, green: number, blue: number): number =>
  (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;

// Mean spread of red, green and blue, in grey levels, above which a picture shows colour.
const MAX_COLOR = 10;

/** Greys of interleaved RGB, and whether it shows colour rather than greys stored as colour. */
export function greyOfRgb(rgb: Uint8Array, count: number): { data: Uint8Array; color: boolean } {
  const data = new Uint8Array(count);
  let spread = 0;
  for (let i = 0, at = 0; i < count; i++, at += 3) {
    const [r, g, b] = [rgb[at]!, rgb[at + 1]!, rgb[at + 2]!];
    data[i] = luminance(r, g, b);
    spread += Math.max(r, g, b) - Math.min(r, g, b);
  }
  return { data, color: spread / count > MAX_COLOR };
}
