/** The few elements of a DICOM file that a picture needs: port of data_pipeline/decode/dicom_file.py.
 *
 * Names, addresses and comments are skipped over and never become text.
 */

import { inflateSync } from "fflate";
import { joined, Refused } from "./grey";

export const IMPLICIT_LITTLE = "1.2.840.10008.1.2";
export const EXPLICIT_LITTLE = "1.2.840.10008.1.2.1";
export const DEFLATED = "1.2.840.10008.1.2.1.99";
export const EXPLICIT_BIG = "1.2.840.10008.1.2.2";
export const PIXEL_DATA = 0x7fe00010;

const TRANSFER_SYNTAX = 0x00020010;
const [ITEM, ITEM_END, SEQUENCE_END] = [0xfffee000, 0xfffee00d, 0xfffee0dd];
const UNDEFINED = 0xffffffff;
// These value representations have a length of four bytes, the others one of two (PS3.5, 7.1.2).
const LONG = new Set("OB OD OF OL OV OW SQ SV UC UN UR UT UV".split(" "));
const MAX_INFLATED_BYTES = 160 * 2 ** 20;
const MAX_ELEMENTS = 200_000;
const MAX_FRAGMENTS = 100_000;

export type Elements = Map<number, Uint8Array>;

export const ascii = (bytes: Uint8Array): string => String.fromCharCode(...bytes);

/** The text without the padding and white space around it. */
const bare = (bytes: Uint8Array): string => ascii(bytes).replace(/^[ \0\t\r\n]+|[ \0\t\r\n]+$/g, "");

export class DicomFile {
  constructor(
    readonly transferSyntax: string,
    readonly littleEndian: boolean,
    readonly elements: Elements,
    /** Tag of a sequence -> elements of its first item. */
    readonly items: Map<number, Elements>,
    readonly encapsulated: boolean,
    /** The pixel data is a series of 16-bit words (OW), whatever the size of a pixel. */
    readonly words: boolean,
  ) {}

  text(tag: number): string {
    return bare((this.elements.get(tag) ?? new Uint8Array()).subarray(0, 1024));
  }

  /** The first 16-bit unsigned value; null if absent. */
  number(tag: number): number | null {
    const value = this.elements.get(tag);
    return value && value.length >= 2 ? this.word(value, 0) : null;
  }

  word(value: Uint8Array, at: number): number {
    const [a, b] = [value[at]!, value[at + 1]!];
    return this.littleEndian ? a | (b << 8) : (a << 8) | b;
  }

  /** The values of a decimal string; those that are no number are left out. */
  decimals(tag: number): number[] {
    return this.text(tag)
      .split("\\")
      .filter((part) => /^\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*$/i.test(part))
      .map(Number)
      .filter((value) => Math.abs(value) < 1e12);
  }
}

/** Parses a file as far as the pixel data; keeps `wanted` elements, first items of `sequences`. */
export function parseDicom(
  data: Uint8Array, wanted: Set<number>, sequences: Set<number>,
): DicomFile {
  let start = ascii(data.subarray(128, 132)) === "DICM" ? 132 : 0;
  let syntax = "";
  if (data[start] === 2 && data[start + 1] === 0) {
    for (const { tag, valueAt, length, end } of elementsOf(data, start, false, true)) {
      if (tag >>> 16 !== 2) break;
      start = end;
      if (tag === TRANSFER_SYNTAX)
        syntax = ascii(data.subarray(valueAt, valueAt + length)).replace(/^[\0 ]+|[\0 ]+$/g, "");
    }
  }
  if (syntax === DEFLATED) [data, start] = [inflate(data.subarray(start)), 0];
  const { implicit, little } = encoding(data, start, syntax);
  const elements: Elements = new Map();
  const items = new Map<number, Elements>();
  let encapsulated = false;
  let words = false;
  for (const { tag, representation, valueAt, length, end } of elementsOf(data, start, implicit, little)) {
    if (tag === PIXEL_DATA) [encapsulated, words] = [length === UNDEFINED, representation === "OW"];
    if (wanted.has(tag))
      elements.set(tag, data.subarray(valueAt, length === UNDEFINED ? undefined : end));
    else if (sequences.has(tag)) items.set(tag, firstItem(data, valueAt, implicit, little));
  }
  return new DicomFile(syntax, little, elements, items, encapsulated, words);
}

/** Whether the data set is of implicit representation, and its byte order.
 *
 * Its first element decides over what is declared: wrong declarations are common.
 */
function encoding(
  data: Uint8Array, start: number, syntax: string,
): { implicit: boolean; little: boolean } {
  let little = syntax !== EXPLICIT_BIG;
  if (data.length < start + 6) return { implicit: syntax === IMPLICIT_LITTLE, little };
  if (!syntax && data[start] === 0 && data[start + 1] !== 0) little = false;
  return { implicit: !isRepresentation(ascii(data.subarray(start + 4, start + 6))), little };
}

/** Whether a file can be DICOM: "DICM" after a preamble, or three plausible first elements. */
export function sniffDicom(data: Uint8Array): boolean {
  const head = data.subarray(0, 1024);
  if (ascii(head.subarray(128, 132)) === "DICM") return true;
  // Files without preamble begin with an element of a low group, in either byte order.
  if (!["2,0", "8,0", "0,2", "0,8"].includes(head.subarray(0, 2).join())) return false;
  const { implicit, little } = encoding(head, 0, "");
  let [last, seen] = [0, 0];
  for (const { tag, length } of elementsOf(head, 0, implicit, little)) {
    if (tag <= last || (!last && ![2, 8].includes(tag >>> 16)) || length > 4096) return false;
    last = tag;
    if (++seen === 3) break;
  }
  return last > 0;
}

const isRepresentation = (text: string): boolean => /^[A-Z]{2}$/.test(text);

interface Element {
  tag: number;
  /** Empty where it is implicit. */
  representation: string;
  valueAt: number;
  length: number;
  end: number;
}

/** Elements at the top level; ends at `stop`, an item's end, the pixel data, or a cut. */
function* elementsOf(
  data: Uint8Array, at: number, implicit: boolean, little: boolean, stop = data.length,
): Generator<Element> {
  stop = Math.min(stop, data.length);
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  let depth = 0;
  let opened: Omit<Element, "end"> | null = null;
  for (let seen = 1; at + 8 <= stop; seen++) {
    if (seen > MAX_ELEMENTS)
      throw new Refused(`its header has more than ${MAX_ELEMENTS} elements`);
    const group = view.getUint16(at, little);
    const tag = group * 0x10000 + view.getUint16(at + 2, little);
    let length = view.getUint32(at + 4, little);
    let valueAt = at + 8;
    let representation = "";
    if (group !== 0xfffe && !implicit) {
      representation = ascii(data.subarray(at + 4, at + 6));
      if (LONG.has(representation)) {
        if (at + 12 > stop) return;
        length = view.getUint32(at + 8, little);
        valueAt = at + 12;
      } else if (isRepresentation(representation)) length = view.getUint16(at + 6, little);
      // Otherwise this one element is written implicitly, as some writers do.
    }
    if (tag === ITEM_END || tag === SEQUENCE_END) {
      if (depth === 0) return;
      depth--;
      at = valueAt;
      if (depth === 0 && opened) {
        yield { ...opened, end: at };
        opened = null;
      }
      continue;
    }
    if (tag === PIXEL_DATA && depth === 0) {
      yield { tag, representation, valueAt, length, end: Math.min(valueAt + length, stop) };
      return;
    }
    if (length === UNDEFINED) {
      if (depth === 0) opened = { tag, representation, valueAt, length };
      depth++;
      at = valueAt;
      continue;
    }
    at = valueAt + length;
    if (depth === 0) yield { tag, representation, valueAt, length, end: Math.min(at, stop) };
  }
}

function firstItem(data: Uint8Array, at: number, implicit: boolean, little: boolean): Elements {
  const found: Elements = new Map();
  if (data.length < at + 8) return found;
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const tag = view.getUint16(at, little) * 0x10000 + view.getUint16(at + 2, little);
  if (tag !== ITEM) return found;
  const length = view.getUint32(at + 4, little);
  const stop = length === UNDEFINED ? undefined : at + 8 + length;
  for (const element of elementsOf(data, at + 8, implicit, little, stop))
    if (element.length !== UNDEFINED)
      found.set(element.tag, data.subarray(element.valueAt, element.end));
  return found;
}

function inflate(data: Uint8Array): Uint8Array {
  try {
    const inflated = inflateSync(data);
    if (inflated.length <= MAX_INFLATED_BYTES) return inflated;
  } catch {
    throw new Refused("its deflated data is damaged");
  }
  throw new Refused(`it inflates to more than ${MAX_INFLATED_BYTES / 2 ** 20} MiB`);
}

/** Joins the fragments of encapsulated pixel data to one compressed image (PS3.5 A.4).
 *
 * The last fragment may be cut short: the decoder finds out whether the image is whole.
 */
export function singleFrame(value: Uint8Array): Uint8Array {
  const view = new DataView(value.buffer, value.byteOffset, value.length);
  const fragments: Uint8Array[] = [];
  for (let at = 0; at + 8 <= value.length; ) {
    if (view.getUint16(at, true) * 0x10000 + view.getUint16(at + 2, true) !== ITEM) break;
    if (fragments.length === MAX_FRAGMENTS)
      throw new Refused(`its pixel data is in more than ${MAX_FRAGMENTS} fragments`);
    const length = view.getUint32(at + 4, true);
    fragments.push(value.subarray(at + 8, at + 8 + length));
    at += 8 + length;
  }
  // The first item is the offset table, which one frame does not need.
  const frame = joined(fragments.slice(1));
  if (!frame.length) throw new Refused("its pixel data is cut short");
  return frame;
}
