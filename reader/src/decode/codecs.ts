/** Pixel data of every transfer syntax to stored values: port of data_pipeline/decode/codecs.py. */

import { Decoder as LosslessDecoder } from "jpeg-lossless-decoder-js";
import * as file from "./dicom_file";
import { type Grey, greyOfRgb, joined, Refused, type Samples } from "./grey";
import { decodeJpeg, isPlain, jpegHeader } from "./jpeg";
import { type Codec, decodeFrame } from "./wasm";

const RLE = "1.2.840.10008.1.2.5";
const NATIVE = [
  "", file.IMPLICIT_LITTLE, file.EXPLICIT_LITTLE, file.DEFLATED, file.EXPLICIT_BIG,
];
const [LOSSLESS, JPEG_LS] = [0xc3, 0xf7]; // SOF markers.
const JPEG_2000 = [0xff, 0x4f, 0xff, 0x51]; // SOC and SIZ.
const [CAP, COD, SOT] = [0xff50, 0xff52, 0xff90];

/** How the pixel data is laid out, checked. */
export interface Layout {
  rows: number;
  columns: number;
  samples: 1 | 3;
  photometric: string;
  /** Colours one after the other rather than pixel by pixel. */
  planar: boolean;
  /** Bits a value takes, 8 or 16, and those that are used. */
  allocated: number;
  stored: number;
  highBit: number;
  signed: boolean;
}

export interface Stored {
  /** Stored values, unsigned; of a colour picture its luminance. */
  full: Grey;
  /** The same, decoded at reduced scale where the codec can. */
  reduced: Grey;
  color: boolean;
  compression: string;
}

/** @param least the least that the shorter side may have after reduction. */
export async function decodePixels(
  dicom: file.DicomFile, layout: Layout, least: number,
): Promise<Stored> {
  const data = dicom.elements.get(file.PIXEL_DATA)!;
  const syntax = dicom.transferSyntax;
  const whole = (values: Samples, compression: string, planar = false, rgb = false): Stored => {
    const { data: greys, color } = grey(values, layout, planar, rgb);
    const full = { data: greys, width: layout.columns, height: layout.rows };
    return { full, reduced: full, color, compression };
  };
  if (!dicom.encapsulated) {
    if (!NATIVE.includes(syntax))
      throw new Refused("its pixel data is not compressed as its header says");
    return whole(native(data, layout, dicom), "uncompressed", layout.planar);
  }
  if (NATIVE.includes(syntax))
    throw new Refused("its pixel data is compressed, and its header does not say how");
  const frame = file.singleFrame(data);
  if (syntax === RLE) return whole(rle(frame, layout), "run-length", true);
  // The stream decides, because declared transfer syntaxes are often wrong.
  if (frame[0] === 0xff && frame[1] === 0xd8) {
    const header = jpegHeader(frame);
    const plain = isPlain(header);
    checkFrame(header, plain ? layout.samples : header.components, layout);
    if (plain) return { ...(await decodeJpeg(frame, header, least)), compression: "JPEG" };
    if (header.precision > layout.allocated)
      throw new Refused(`its JPEG data has ${header.precision} bits, its header ${layout.allocated}`);
    if (header.marker === LOSSLESS) return whole(lossless(frame, header.precision), "JPEG Lossless");
    if (header.marker !== JPEG_LS)
      throw new Refused("JPEG of 12 bits, which this page does not read; convert it first");
    // Without its end, CharLS looks for it for many seconds.
    const decoded = ends(frame) ? await decodeFrame("jpegLs", frame).catch(() => null) : null;
    if (!decoded) throw new Refused("its JPEG-LS data is damaged or cut short");
    const { data: values, planar } = decoded;
    return whole(values, "JPEG-LS", planar);
  }
  const start = frame.findIndex((_, at) => at < 4096 && JPEG_2000.every((byte, i) => frame[at + i] === byte));
  if (start < 0)
    throw new Refused("its pixel data is neither JPEG, JPEG-LS, JPEG 2000 nor run-length encoded");
  const { high, transformed, stream } = jpeg2000(frame.subarray(start));
  const codec: Codec = high ? "htj2k" : "jpeg2000";
  const name = high ? "HTJ2K" : "JPEG 2000";
  const decoded = await decodeFrame(codec, stream).catch(() => {
    throw new Refused(`its ${name} data is damaged`);
  });
  checkFrame(decoded, decoded.componentCount, layout);
  if (decoded.bitsPerSample > layout.allocated)
    throw new Refused(`its ${name} data has ${decoded.bitsPerSample} bits, its header ${layout.allocated}`);
  let values = decoded.data;
  const mask = 2 ** layout.stored - 1;
  if (decoded.isSigned) values = values.map((value) => value & mask);
  const rgb = transformed || ["YBR_ICT", "YBR_RCT"].includes(layout.photometric);
  return whole(values, name, false, rgb);
}

/** Compares width, height and samples of a stream with the header. */
function checkFrame(
  { width, height }: { width: number; height: number }, count: number, layout: Layout,
): void {
  if (width !== layout.columns || height !== layout.rows || count !== layout.samples)
    throw new Refused(
      `its compressed image has ${width}x${height} pixels of ${count} samples, its header says ` +
        `${layout.columns}x${layout.rows} of ${layout.samples}`,
    );
}

/** Reads the main header of a JPEG 2000 codestream (T.800 annex A) and checks that it is whole.
 *
 * OpenJPEG decodes the beginning of a stream without a word. The end marker alone may be missing.
 */
function jpeg2000(stream: Uint8Array): { high: boolean; transformed: boolean; stream: Uint8Array } {
  const view = new DataView(stream.buffer, stream.byteOffset, stream.length);
  const cut = new Refused("its JPEG 2000 data is cut short");
  let [high, transformed] = [false, false];
  let at = 2;
  for (; at + 4 <= stream.length && view.getUint16(at) !== SOT; at += 2 + view.getUint16(at + 2)) {
    if (view.getUint16(at) === CAP) high = true;
    if (view.getUint16(at) === COD) transformed = stream[at + 8] === 1;
  }
  while (at + 12 <= stream.length && view.getUint16(at) === SOT) {
    const length = view.getUint32(at + 6);
    if (length === 0 ? !ends(stream) : at + length > stream.length) throw cut;
    at += length || stream.length;
  }
  if (at <= 2 || at < stream.length - 2 && !ends(stream)) throw cut;
  return { high, transformed, stream: ends(stream) ? stream : joined([stream, Uint8Array.of(0xff, 0xd9)]) };
}

/** Whether a codestream, without padding, ends with the end marker. */
function ends(stream: Uint8Array): boolean {
  let at = stream.length;
  while (at > 0 && stream[at - 1] === 0) at--;
  return stream[at - 2] === 0xff && stream[at - 1] === 0xd9;
}

function native(data: Uint8Array, layout: Layout, dicom: file.DicomFile): Samples {
  const count = layout.rows * layout.columns * layout.samples;
  if (layout.photometric.startsWith("YBR_FULL_422"))
    throw new Refused("its colours are stored at half resolution without compression");
  const size = (count * layout.allocated) / 8;
  if (data.length < size) {
    const group = (n: number) => n.toLocaleString("en-US");
    throw new Refused(`its pixel data is cut short: ${group(data.length)} of ${group(size)} bytes`);
  }
  // Big-endian words hold two pixels of 8 bits, the first in the lower byte (PS3.5 8.1.1, 7.3).
  const even = size + (size % 2);
  const swap = !dicom.littleEndian && (layout.allocated === 16 || (dicom.words && data.length >= even));
  const bytes = data.slice(0, swap ? even : size);
  if (swap)
    for (let i = 0; i < even; i += 2) [bytes[i], bytes[i + 1]] = [bytes[i + 1]!, bytes[i]!];
  return layout.allocated === 8 ? bytes.subarray(0, count) : new Uint16Array(bytes.buffer);
}

/** Greys of stored values, one or three a pixel, and whether they show colour.
 *
 * @param rgb the colours are RGB, whatever the header says.
 */
function grey(
  values: Samples, layout: Layout, planar: boolean, rgb: boolean,
): { data: Samples; color: boolean } {
  const count = layout.rows * layout.columns;
  if (values.length < layout.samples * count)
    throw new Refused("its compressed data contradicts its header");
  if (layout.samples === 1) return { data: values, color: false };
  const planes = values;
  if (planar) values = planes.map((_, i) => planes[(i % 3) * count + Math.floor(i / 3)]!);
  if (rgb || !layout.photometric.startsWith("YBR")) return greyOfRgb(values as Uint8Array, count);
  const data = new Uint8Array(count);
  let spread = 0;
  const byte = (x: number) => Math.min(Math.max(Math.round(x), 0), 255);
  for (let i = 0; i < count; i++) {
    const y = values[3 * i]!;
    const [cb, cr] = [values[3 * i + 1]! - 128, values[3 * i + 2]! - 128];
    const [r, g, b] = [byte(y + 1.402 * cr), byte(y - 0.344136 * cb - 0.714136 * cr), byte(y + 1.772 * cb)];
    // Pillow takes the luminance of YCbCr as it stands.
    data[i] = y;
    spread += Math.max(r, g, b) - Math.min(r, g, b);
  }
  return { data, color: spread / count > 10 };
}

function lossless(frame: Uint8Array, precision: number): Samples {
  try {
    const decoder = new LosslessDecoder();
    const decoded = decoder.decompress(frame.buffer, frame.byteOffset, frame.length);
    return precision <= 8 ? new Uint8Array(decoded) : new Uint16Array(decoded);
  } catch {
    throw new Refused("its JPEG Lossless data is damaged or cut short");
  }
}

/** PackBits segments (PS3.5 annex G), one a byte of a value, most significant first. */
function rle(frame: Uint8Array, layout: Layout): Samples {
  const planes = (layout.samples * layout.allocated) / 8;
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
  if (frame.length < 64 || view.getUint32(0, true) !== planes)
    throw new Refused("its run-length data contradicts its header");
  const count = layout.rows * layout.columns;
  const decoded: Uint8Array[] = [];
  for (let plane = 0; plane < planes; plane++) {
    const begin = view.getUint32(4 + 4 * plane, true);
    const end = plane + 1 < planes ? view.getUint32(8 + 4 * plane, true) : frame.length;
    const segment = frame.subarray(begin, end);
    // Two bytes give at most 128: what cannot be true is refused before it takes memory.
    if (segment.length * 64 < count)
      throw new Refused("its run-length data is too short for its size");
    decoded.push(unpackBits(segment, count));
  }
  if (layout.allocated === 16)
    return Uint16Array.from(decoded[0]!, (high, i) => (high << 8) | decoded[1]![i]!);
  return joined(decoded);
}

function unpackBits(segment: Uint8Array, length: number): Uint8Array {
  const out = new Uint8Array(length);
  let at = 0;
  let filled = 0;
  while (at < segment.length - 1 && filled < length) {
    const code = segment[at]!;
    if (code < 128) {
      const run = segment.subarray(at + 1, Math.min(at + 2 + code, at + 1 + length - filled));
      out.set(run, filled);
      filled += run.length;
      at += 2 + code;
    } else if (code > 128) {
      out.fill(segment[at + 1]!, filled, filled + 257 - code);
      filled += 257 - code;
      at += 2;
    } else at++;
  }
  if (filled < length) throw new Refused("its run-length data is cut short");
  return out;
}
