/** JPEG: its header, its orientation, and decoding at the scale that Python's decoder takes. */

import { type Grey, greyOfRgb, Refused } from "./grey";
import { decodeFrame } from "./wasm";

export interface JpegHeader {
  /** Second byte of the SOF marker: 0xC3 is lossless, 0xF7 JPEG-LS. */
  marker: number;
  width: number;
  height: number;
  precision: number;
  components: number;
  exif: Uint8Array | null;
}

const WITHOUT_LENGTH = new Set([0x01, 0xd0, 0xd1, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8]);
const MAX_SCANS = 40;
const PROGRESSIVE = 0xc2;

/** Baseline, extended or progressive, of 8 bits. */
export const isPlain = (header: JpegHeader): boolean =>
  header.precision === 8 && [0xc0, 0xc1, PROGRESSIVE].includes(header.marker);

/** Reads the frame header of a JPEG or JPEG-LS stream (T.81 annex B). */
export function jpegHeader(data: Uint8Array): JpegHeader {
  let exif: Uint8Array | null = null;
  let header: JpegHeader | null = null;
  for (let at = 2; ; ) {
    if (data[at] !== 0xff || at + 4 > data.length)
      throw new Refused("its JPEG data is damaged or cut short");
    const marker = data[at + 1]!;
    if (marker === 0xff) {
      at++; // A fill byte.
      continue;
    }
    if (marker === 0xda) break; // The first scan.
    const length = WITHOUT_LENGTH.has(marker) ? 0 : (data[at + 2]! << 8) | data[at + 3]!;
    const body = data.subarray(at + 4, at + 2 + length);
    if (marker === 0xe1 && String.fromCharCode(...body.subarray(0, 4)) === "Exif")
      exif ??= body.subarray(6);
    const frame = (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) || marker === 0xf7;
    if (frame && !header)
      header = {
        marker,
        precision: body[0]!,
        height: (body[1]! << 8) | body[2]!,
        width: (body[3]! << 8) | body[4]!,
        components: body[5]!,
        exif: null,
      };
    at += 2 + length;
  }
  if (!header) throw new Refused("its JPEG data has no frame header");
  // Every scan of a progressive JPEG passes over the whole image, however little it holds.
  let scans = 0;
  if (header.marker === PROGRESSIVE)
    for (let at = data.indexOf(0xff); at >= 0; at = data.indexOf(0xff, at + 1))
      scans += Number(data[at + 1] === 0xda);
  if (scans > MAX_SCANS)
    throw new Refused(`its JPEG data has more than ${MAX_SCANS} progressive scans`);
  return { ...header, exif };
}

/** The orientation tag of Exif data, 1 without a valid one. */
export function exifOrientation(exif: Uint8Array | null): number {
  if (!exif || exif.length < 14) return 1;
  const view = new DataView(exif.buffer, exif.byteOffset, exif.length);
  const little = view.getUint8(0) === 0x49;
  const at = view.getUint32(4, little);
  if (at + 2 > exif.length) return 1;
  const count = view.getUint16(at, little);
  for (let i = 0; i < count && at + 14 + 12 * i <= exif.length; i++)
    if (view.getUint16(at + 2 + 12 * i, little) === 0x0112)
      return view.getUint16(at + 10 + 12 * i, little);
  return 1;
}

/** A JPEG of 8 bits as greys in full, whether it shows colour, and reduced by 1, 2, 4 or 8.
 *
 * libjpeg's reduced scales are means over blocks of 2, 4 or 8 pixels; a block at the edge is
 * filled up with the edge's pixels, as encoders fill it.
 *
 * @param least the least that the shorter side may have after reduction, as Pillow's `draft`.
 */
export async function decodeJpeg(
  data: Uint8Array, header: JpegHeader, least: number,
): Promise<{ full: Grey; reduced: Grey; color: boolean }> {
  if (![1, 3].includes(header.components))
    throw new Refused("a JPEG of this kind cannot be read by this page; convert it to PNG");
  const decoded = await decodeFrame("jpeg", data).catch(() => null);
  if (!decoded) throw new Refused("its JPEG data is damaged or cut short");
  const { width, height, componentCount, data: values } = decoded;
  if (width !== header.width || height !== header.height || values instanceof Uint16Array)
    throw new Refused("its JPEG data contradicts its header");
  const grey =
    componentCount === 1 ? { data: values, color: false } : greyOfRgb(values, width * height);
  const full = { data: grey.data, width, height };
  const scale = least / Math.min(width, height);
  const most = Math.min(
    Math.floor(width / Math.ceil(width * scale)), Math.floor(height / Math.ceil(height * scale)),
  );
  const step = [8, 4, 2].find((s) => most >= s) ?? 1;
  return { full, reduced: step === 1 ? full : reduce(full, step), color: grey.color };
}

function reduce(image: Grey, step: number): Grey {
  const width = Math.ceil(image.width / step);
  const height = Math.ceil(image.height / step);
  const data = new Uint8Array(width * height);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (let dy = 0; dy < step; dy++) {
        const row = Math.min(y * step + dy, image.height - 1) * image.width;
        for (let dx = 0; dx < step; dx++)
          sum += image.data[row + Math.min(x * step + dx, image.width - 1)]!;
      }
      data[y * width + x] = Math.floor(sum / (step * step) + 0.5);
    }
  return { data, width, height };
}

/** The image turned and mirrored as an Exif orientation says. */
export function oriented(image: Grey, orientation: number): Grey {
  if (orientation < 2 || orientation > 8) return image;
  const { width, height } = image;
  const swap = orientation >= 5;
  const [w, h] = swap ? [height, width] : [width, height];
  const data = image.data.slice();
  for (let y = 0; y < h; y++)
    for (let x = 0; x < w; x++) {
      let [sx, sy] = swap ? [y, x] : [x, y];
      if ([2, 3, 7, 8].includes(orientation)) sx = width - 1 - sx;
      if ([3, 4, 6, 7].includes(orientation)) sy = height - 1 - sy;
      data[y * w + x] = image.data[sy * width + sx]!;
    }
  return { data, width: w, height: h };
}
