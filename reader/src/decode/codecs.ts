/** Pixel data of every transfer syntax to stored values: port of data_pipeline/decode/codecs.py. */

import { Decoder as LosslessDecoder } from "jpeg-lossless-decoder-js";
import * as file from "./dicom_file";
import { type Grey, greyOfRgb, Refused, type Samples } from "./grey";
import { decodeJpeg, jpegHeader } from "./jpeg";
import { type Codec, decodeFrame } from "./wasm";

const RLE = "1.2.840.10008.1.2.5";
const JPEG = ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"];
const JPEG_LOSSLESS = ["1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"];
const WASM: Record<string, Codec> = {
  "1.2.840.10008.1.2.4.80": "jpegLs",
  "1.2.840.10008.1.2.4.81": "jpegLs",
  "1.2.840.10008.1.2.4.90": "jpeg2000",
  "1.2.840.10008.1.2.4.91": "jpeg2000",
  "1.2.840.10008.1.2.4.201": "htj2k",
  "1.2.840.10008.1.2.4.202": "htj2k",
  "1.2.840.10008.1.2.4.203": "htj2k",
};
const NATIVE = [
  "", file.IMPLICIT_LITTLE, file.EXPLICIT_LITTLE, file.DEFLATED, file.EXPLICIT_BIG,
];

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
  const whole = (values: Samples, compression: string): Stored => {
    const { data: greys, color } = grey(values, layout);
    const full = { data: greys, width: layout.columns, height: layout.rows };
    return { full, reduced: full, color, compression };
  };
  if (!dicom.encapsulated) {
    if (!NATIVE.includes(syntax))
      throw new Refused("its pixel data is not compressed as its header says");
    return whole(native(data, layout, dicom.littleEndian), "uncompressed");
  }
  if (NATIVE.includes(syntax))
    throw new Refused("its pixel data is compressed, and its header does not say how");
  const frame = file.singleFrame(data);
  if (syntax === RLE) return whole(rle(frame, layout), "run-length");
  if (JPEG.includes(syntax)) {
    const header = jpegHeader(frame);
    if (header?.precision !== 8)
      throw new Refused("JPEG of 12 bits cannot be decoded by this page");
    sameSize(header, layout);
    return { ...(await decodeJpeg(frame, header, least)), compression: "JPEG" };
  }
  if (JPEG_LOSSLESS.includes(syntax)) return whole(lossless(frame, layout), "JPEG Lossless");
  const codec = WASM[syntax];
  if (!codec) throw new Refused("its transfer syntax is unknown or for video");
  if (codec === "jpeg2000" && !ends(frame))
    throw new Refused("its JPEG 2000 data is cut short");
  const names = { jpeg: "JPEG", jpeg2000: "JPEG 2000", jpegLs: "JPEG-LS", htj2k: "HTJ2K" };
  const decoded = await decodeFrame(codec, frame);
  sameSize(decoded, layout);
  if (decoded.componentCount !== layout.samples)
    throw new Refused(`its ${names[codec]} data contradicts its header`);
  let values = decoded.data;
  if (codec !== "jpeg2000" || decoded.isSigned) values = masked(values, layout);
  if (decoded.componentCount === 3 && codec === "jpeg2000") {
    // The codec has undone the colour transform already.
    const { data: greys, color } = greyOfRgb(values as Uint8Array, layout.rows * layout.columns);
    const full = { data: greys, width: layout.columns, height: layout.rows };
    return { full, reduced: full, color, compression: names[codec] };
  }
  return whole(values, names[codec]);
}

function sameSize(picture: { width: number; height: number }, layout: Layout): void {
  if (picture.width !== layout.columns || picture.height !== layout.rows)
    throw new Refused(
      `its picture has ${picture.width}x${picture.height} pixels, its header says ` +
        `${layout.columns}x${layout.rows}`,
    );
}

/** Whether a codestream, without padding, ends with the end marker. */
function ends(frame: Uint8Array): boolean {
  let at = frame.length;
  while (at > 0 && frame[at - 1] === 0) at--;
  return frame[at - 2] === 0xff && frame[at - 1] === 0xd9;
}

/** The used bits of every value, in the type that the header declares. */
function masked(values: Samples, layout: Layout): Samples {
  const mask = 2 ** layout.stored - 1;
  const out = layout.allocated === 8 ? new Uint8Array(values.length) : new Uint16Array(values.length);
  for (let i = 0; i < out.length; i++) out[i] = values[i]! & mask;
  return out;
}

function native(data: Uint8Array, layout: Layout, littleEndian: boolean): Samples {
  const count = layout.rows * layout.columns * layout.samples;
  if (layout.photometric.startsWith("YBR_FULL_422"))
    throw new Refused("its colours are stored at half resolution without compression");
  const size = (count * layout.allocated) / 8;
  if (data.length < size) {
    const group = (n: number) => n.toLocaleString("en-US");
    throw new Refused(`its pixel data is cut short: ${group(data.length)} of ${group(size)} bytes`);
  }
  let values: Samples;
  if (layout.allocated === 8) values = data.slice(0, count);
  else {
    const bytes = data.slice(0, size);
    if (!littleEndian)
      for (let i = 0; i < size; i += 2) [bytes[i], bytes[i + 1]] = [bytes[i + 1]!, bytes[i]!];
    values = new Uint16Array(bytes.buffer);
  }
  if (layout.samples === 1 || !layout.planar) return values;
  const pixels = count / 3;
  return values.map((_, i) => values[(i % 3) * pixels + Math.floor(i / 3)]!);
}

/** Greys of stored values, one or three a pixel, and whether they show colour. */
function grey(values: Samples, layout: Layout): { data: Samples; color: boolean } {
  if (layout.samples === 1) return { data: values, color: false };
  const count = layout.rows * layout.columns;
  if (!layout.photometric.startsWith("YBR")) return greyOfRgb(values as Uint8Array, count);
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

function lossless(frame: Uint8Array, layout: Layout): Samples {
  const header = jpegHeader(frame);
  if (!header) throw new Refused("its JPEG Lossless data is damaged");
  sameSize(header, layout);
  if (header.components !== layout.samples)
    throw new Refused("its JPEG Lossless data contradicts its header");
  const decoder = new LosslessDecoder();
  const decoded = decoder.decompress(frame.buffer, frame.byteOffset, frame.length);
  const values = header.precision <= 8 ? new Uint8Array(decoded) : new Uint16Array(decoded);
  return masked(values, layout);
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
  if (layout.samples === 1) return decoded[0]!;
  return Uint8Array.from({ length: 3 * count }, (_, i) => decoded[i % 3]![Math.floor(i / 3)]!);
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
