/** DICOM to greys, in the standard's order: port of data_pipeline/decode/dicom.py.
 *
 * Modality values, then window, then polarity, as one table over the at most 65,536 stored values.
 */

import { decodePixels, type Layout } from "./codecs";
import { type DicomFile, type Elements, parseDicom, PIXEL_DATA } from "./dicom_file";
import { checkSize, type Grey, largest, Refused, rint, type Samples } from "./grey";
import { SHUTTER_TAGS, shutter, standardView, turned } from "./geometry";
import { histogram, percentiles, shownRange, stretch } from "./percentiles";
import { squarePixels } from "./resize";

const [SOP_CLASS, MODALITY, INTENT] = [0x00080016, 0x00080060, 0x00080068];
const [STUDY_DESCRIPTION, SERIES_DESCRIPTION] = [0x00081030, 0x0008103e];
const [SPECIES, SPECIES_CODE, BREED] = [0x00102201, 0x00102202, 0x00102292];
const [BODY_PART, PROTOCOL, PROCESSING] = [0x00180015, 0x00181030, 0x00181400];
const IMAGER_SPACING = 0x00181164;
const [SAMPLES, PHOTOMETRIC, PLANAR] = [0x00280002, 0x00280004, 0x00280006];
const [FRAMES, ROWS, COLUMNS] = [0x00280008, 0x00280010, 0x00280011];
const [SPACING, PIXEL_ASPECT] = [0x00280030, 0x00280034];
const [ALLOCATED, STORED, HIGH_BIT, SIGNED] = [0x00280100, 0x00280101, 0x00280102, 0x00280103];
const [PADDING, PADDING_LIMIT] = [0x00280120, 0x00280121];
const [CENTER, WIDTH] = [0x00281050, 0x00281051];
const [VIEW, ORIENTATION] = [0x00185101, 0x00200020];
const [INTERCEPT, SLOPE, WINDOW_FUNCTION] = [0x00281052, 0x00281053, 0x00281056];
const [MODALITY_LUT, VOI_LUT] = [0x00283000, 0x00283010];
const [LUT_DESCRIPTOR, LUT_DATA] = [0x00283002, 0x00283006];
const [PRESENTATION_SHAPE, OVERLAY_BIT] = [0x20500020, 0x60000102];

const WANTED = new Set([
  SOP_CLASS, MODALITY, INTENT, STUDY_DESCRIPTION, SERIES_DESCRIPTION, SPECIES, BREED, BODY_PART,
  PROTOCOL, PROCESSING, IMAGER_SPACING, SAMPLES, PHOTOMETRIC, PLANAR, FRAMES, ROWS, COLUMNS,
  SPACING, PIXEL_ASPECT, ALLOCATED, STORED, HIGH_BIT, SIGNED, PADDING, CENTER, WIDTH, INTERCEPT,
  SLOPE, WINDOW_FUNCTION, PRESENTATION_SHAPE, OVERLAY_BIT, PIXEL_DATA, PADDING_LIMIT, VIEW,
  ORIENTATION, ...SHUTTER_TAGS,
]);
const SEQUENCES = new Set([MODALITY_LUT, VOI_LUT, SPECIES_CODE]);

// Plain radiographs, and what a viewer exports one as. Everything else is refused by its name.
const RADIOGRAPHY = new Set(["CR", "DX", "DR", "RG", "OT", "SC", ""]);
const OTHER_MODALITIES: Record<string, string> = {
  MG: "a mammogram",
  BMD: "a bone densitometry",
  CT: "a CT slice",
  MR: "an MR slice",
  US: "an ultrasound image",
  NM: "a nuclear medicine image",
  PT: "a PET slice",
  XA: "an angiogram",
  RF: "a fluoroscopy image",
  IO: "a dental image",
  PX: "a panoramic dental image",
  ES: "an endoscopy image",
  XC: "a photograph",
  GM: "a microscopy image",
  SM: "a microscopy image",
  OP: "an ophthalmic photograph",
  PR: "a presentation state, which holds no image",
  SR: "a report, which holds no image",
  KO: "a list of key images, which holds no image",
  DOC: "a document",
  SEG: "a segmentation",
  ECG: "an electrocardiogram",
};
const MAMMOGRAPHY = ["1.2.840.10008.5.1.4.1.1.1.2", "1.2.840.10008.5.1.4.1.1.13.1.3"];
const DENTAL = "1.2.840.10008.5.1.4.1.1.1.3";
const RAW = "1.2.840.10008.5.1.4.1.1.1.1.1"; // Digital X-ray for processing.
const ANIMAL = /\b(canine|feline|equine|bovine|avian|veterinar\w*)\b/i;

const SQUARE = 0.01;
const MAX_PIXEL_ASPECT = 4;
const MAX_SATURATED = 0.9;
const MIN_CONTRAST = 0.1;

/** What the viewer needs to change the window: values, and how they are shown at first. */
export interface Display {
  stored: Grey;
  /** The value of every stored value. */
  values: Float64Array;
  /** Values first shown as black and as white, before any inversion. */
  range: [number, number];
  inverted: boolean;
  /** Stored values outside the image, always black. */
  padding: number[];
  /** 1 inside the display shutter, 0 where the image is black; null without one. */
  inside: Uint8Array | null;
  /** A pixel's height over its width. */
  aspect: number;
}

export interface Decoded {
  /** Greys as Python's decoder gives them to the network. */
  image: Grey;
  display: Display;
  format: string;
  bits: number;
  notes: string[];
}

/** The display of greys that are what they are: 8-bit images. */
export function plainDisplay(stored: Grey): Display {
  const values = Float64Array.from({ length: 256 }, (_, i) => i);
  return { stored, values, range: [0, 255], inverted: false, padding: [], inside: null, aspect: 1 };
}

export async function readDicom(
  data: Uint8Array, shortestSide: (height: number, width: number) => number,
): Promise<Decoded> {
  const dicom = parseDicom(data, WANTED, SEQUENCES);
  refuseForeign(dicom);
  if (!dicom.elements.has(PIXEL_DATA))
    throw new Refused("it has a header but no pixel data, or is cut short before it");
  const layout = layoutOf(dicom);
  const notes: string[] = [];
  if (dicom.text(INTENT).toUpperCase() === "FOR PROCESSING" || dicom.text(SOP_CLASS) === RAW)
    notes.push("raw detector data (FOR PROCESSING), not as a viewer shows an image");
  const aspect = pixelAspect(dicom, notes);
  const least = aspect === 1 ? shortestSide(layout.rows, layout.columns) : Infinity;
  const { full, reduced, color, compression } = await decodePixels(dicom, layout, least);
  const size = { width: layout.columns, height: layout.rows };
  const inside = shutter(dicom, reduced, size, notes);
  let image: Grey;
  let display: Display;
  let bits = layout.stored;
  if (layout.samples === 3) {
    image = reduced;
    display = plainDisplay(full);
    if (color) notes.push("in colour");
  } else {
    ({ image, display, bits } = render(dicom, layout, reduced, inside, notes));
    if (full !== reduced) display.stored = shifted(full, layout);
  }
  if (inside) {
    image = { ...image, data: image.data.map((value, i) => (inside[i] ? value : 0)) };
    display.inside = full === reduced ? inside : shutter(dicom, full, size, []);
  }
  if (aspect !== 1) {
    image = squarePixels(image, aspect);
    display.aspect = aspect;
  }
  const turn = standardView(
    dicom.text(ORIENTATION).toUpperCase(), code(dicom.text(VIEW)), code(dicom.text(BODY_PART)), notes,
  );
  if (turn) {
    image = turned(image, turn);
    if (display.inside)
      display.inside = turned({ ...display.stored, data: display.inside }, turn).data as Uint8Array;
    display.stored = turned(display.stored, turn);
    if (turn.turns % 2) display.aspect = 1 / display.aspect;
  }
  return { image, display, format: `DICOM, ${compression}`, bits, notes };
}

/** A coded value (VR CS, PS3.5 6.2); empty for free text, which may contain a name. */
const code = (text: string): string =>
  /^[A-Z0-9_ ]{1,16}$/.test(text.toUpperCase()) ? text.toUpperCase() : "";

function refuseForeign(dicom: DicomFile): void {
  const modality = dicom.text(MODALITY).toUpperCase();
  const sopClass = dicom.text(SOP_CLASS);
  if (
    modality === "MG" ||
    MAMMOGRAPHY.some((uid) => sopClass.startsWith(uid)) ||
    dicom.text(BODY_PART).toUpperCase() === "BREAST"
  )
    throw new Refused("a mammogram (modality MG), not a plain radiograph");
  if (sopClass.startsWith(DENTAL)) throw new Refused("a dental image, not a plain radiograph");
  if (!RADIOGRAPHY.has(modality)) {
    const name = OTHER_MODALITIES[modality];
    throw new Refused(
      name
        ? `${name} (${modality}), not a plain radiograph`
        : "its modality is not that of a plain radiograph (CR, DX, RG)",
    );
  }
  const descriptions = [PROCESSING, PROTOCOL, STUDY_DESCRIPTION, SERIES_DESCRIPTION, BODY_PART];
  const species = dicom.text(SPECIES).toLowerCase();
  if (
    descriptions.some((tag) => ANIMAL.test(dicom.text(tag))) ||
    (species && !species.startsWith("human") && !species.startsWith("homo sapiens")) ||
    dicom.text(BREED)
  )
    throw new Refused("a veterinary image: its header says that it shows an animal");
  const [frames] = dicom.decimals(FRAMES);
  if (frames !== undefined && frames > 1)
    throw new Refused(`it holds ${rint(frames)} frames; a radiograph is one`);
}

function layoutOf(dicom: DicomFile): Layout {
  const [rows, columns] = [dicom.number(ROWS), dicom.number(COLUMNS)];
  if (rows === null || columns === null)
    throw new Refused("its header gives no size (Rows, Columns)");
  checkSize(rows, columns);
  const allocated = dicom.number(ALLOCATED) || 16;
  const stored = dicom.number(STORED) || allocated;
  const highBit = dicom.number(HIGH_BIT) ?? stored - 1;
  if (allocated !== 8 && allocated !== 16)
    throw new Refused(`its pixels take ${allocated} bits; 8 and 16 can be read`);
  if (stored > allocated || highBit < stored - 1 || highBit >= allocated)
    throw new Refused(`its header contradicts itself: ${stored} bits stored in ${allocated}`);
  const count = dicom.number(SAMPLES) || 1;
  const photometric =
    dicom.text(PHOTOMETRIC).toUpperCase() || (count === 3 ? "RGB" : "MONOCHROME2");
  const expected = count === 1 ? ["MONOCHROME1", "MONOCHROME2"] : ["RGB", "YBR"];
  if ((count !== 1 && count !== 3) || !expected.some((name) => photometric.startsWith(name))) {
    const name = /^[A-Z0-9_ ]{1,16}$/.test(photometric) ? photometric : "unknown";
    throw new Refused(`its pixels are ${count} x ${name}; greys, RGB and YBR can be read`);
  }
  if (count === 3 && allocated !== 8) throw new Refused("its colours have more than 8 bits");
  return {
    rows, columns, samples: count, photometric, planar: dicom.number(PLANAR) === 1,
    allocated, stored, highBit, signed: dicom.number(SIGNED) === 1,
  };
}

/** A pixel's height over its width (PS3.3 C.7.6.3.1.7), 1 unless clearly another. */
function pixelAspect(dicom: DicomFile, notes: string[]): number {
  const pair = [SPACING, IMAGER_SPACING, PIXEL_ASPECT]
    .map((tag) => dicom.decimals(tag))
    .find((numbers) => numbers.length === 2 && Math.min(...numbers) > 0);
  const aspect = pair ? pair[0]! / pair[1]! : 1;
  if (Math.abs(aspect - 1) <= SQUARE) return 1;
  if (aspect < 1 / MAX_PIXEL_ASPECT || aspect > MAX_PIXEL_ASPECT) {
    notes.push("pixels of impossible proportions; taken as square");
    return 1;
  }
  notes.push("pixels are not square; stretched to the image's proportions");
  return aspect;
}

/** Stored values with the unused low bits shifted out. */
function shifted(stored: Grey, layout: Layout): Grey {
  const shift = layout.highBit + 1 - layout.stored;
  return shift ? { ...stored, data: stored.data.map((value) => value >> shift) } : stored;
}

/** Stored values to greys at full range, bright = dense. */
function render(
  dicom: DicomFile, layout: Layout, unshifted: Grey, inside: Uint8Array | null,
  notes: string[],
): { image: Grey; display: Display; bits: number } {
  let stored = shifted(unshifted, layout);
  let bits = layout.stored;
  const maximum = largest(stored.data);
  if (maximum >= 2 ** bits) {
    // Bits above those declared: a sign, an overlay drawn into the pixels, or a wrong header.
    if (layout.signed || dicom.number(OVERLAY_BIT)) {
      const mask = 2 ** bits - 1;
      stored = { ...stored, data: stored.data.map((value) => value & mask) };
    } else {
      bits = 32 - Math.clz32(maximum);
      notes.push(`pixels use ${bits} bits, the header declares ${layout.stored}`);
    }
  }
  const raw = Float64Array.from({ length: 2 ** bits }, (_, i) =>
    layout.signed && i >= 2 ** (bits - 1) ? i - 2 ** bits : i,
  );
  const shown = inside ? stored.data.filter((_, i) => inside[i]) : stored.data;
  const counts = histogram(shown, 2 ** bits);
  let padding = paddingValues(dicom, layout, raw);
  const padded = padding.reduce((sum, value) => sum + counts[value]!, 0);
  if (padded < shown.length) for (const value of padding) counts[value] = 0;
  else if (counts.reduce((n, count) => n + Number(count > 0), 0) > 1) {
    notes.push("pixel padding ignored: it covers the whole image");
    padding = [];
  }
  const { values, bits: modalityBits } = modalityValues(dicom, layout, raw, bits);
  const { greys, range } = windowed(dicom, layout, values, counts, modalityBits, notes);
  const mono1 = layout.photometric.startsWith("MONOCHROME1");
  const inverse = dicom.text(PRESENTATION_SHAPE).toUpperCase() === "INVERSE";
  if (inverse && !mono1)
    notes.push("presentation shape INVERSE contradicts MONOCHROME2; inverted");
  const inverted = mono1 || inverse; // Once: the two tags state the same thing.
  const eight = stored.data instanceof Uint8Array && !dicom.items.has(MODALITY_LUT);
  const top = eight ? 255 : 65535;
  const table: Samples = eight ? new Uint8Array(greys.length) : new Uint16Array(greys.length);
  greys.forEach((grey, i) => {
    table[i] = rint(Math.min(Math.max(inverted ? 1 - grey : grey, 0), 1) * top);
  });
  for (const value of padding) table[value] = 0;
  const count = stored.data.length;
  const data = eight ? new Uint8Array(count) : new Uint16Array(count);
  for (let i = 0; i < count; i++) data[i] = table[stored.data[i]!]!;
  // A curve is no window: its greys are what the viewer then changes.
  const display: Display = range
    ? { stored, values, range, inverted, padding, inside: null, aspect: 1 }
    : { stored, values: greys.map((grey) => grey * 255), range: [0, 255], inverted, padding, inside: null, aspect: 1 };
  return { image: { ...stored, data }, display, bits };
}

/** The stored values that mark pixels outside the image (PS3.3 C.7.5.1.1.2).
 *
 * With a Pixel Padding Range Limit, all values between it and the Pixel Padding Value.
 */
function paddingValues(dicom: DicomFile, layout: Layout, raw: Float64Array): number[] {
  if (dicom.number(PADDING) === null) return [];
  let marks = [PADDING, PADDING_LIMIT].map((tag) => dicom.number(tag)).filter((end) => end !== null);
  if (layout.signed) {
    const half = raw.length / 2; // Some writers do not extend the sign to 16 bits.
    marks = marks.map((end) =>
      end >= 2 ** 15 ? end - 2 ** 16 : end >= half && end < 2 * half ? end - 2 * half : end,
    );
  }
  const [low, high] = [Math.min(...marks), Math.max(...marks)];
  return [...raw.keys()].filter((i) => raw[i]! >= low && raw[i]! <= high);
}

/** Values after the modality LUT or the rescale, and the bits that they span. */
function modalityValues(
  dicom: DicomFile, layout: Layout, raw: Float64Array, bits: number,
): { values: Float64Array; bits: number } {
  const lut = lookup(dicom, dicom.items.get(MODALITY_LUT), layout.signed);
  if (lut) return { values: raw.map(lut.entry), bits: lut.bits };
  const slope = (dicom.decimals(SLOPE)[0] ?? 1) || 1;
  const intercept = dicom.decimals(INTERCEPT)[0] ?? 0;
  return { values: raw.map((value) => value * slope + intercept), bits };
}

/** A lookup table and the bits of its entries; null without a usable one. */
function lookup(
  dicom: DicomFile, item: Elements | undefined, signed: boolean,
): { entry: (value: number) => number; bits: number } | null {
  const descriptor = item?.get(LUT_DESCRIPTOR);
  const data = item?.get(LUT_DATA) ?? new Uint8Array();
  if (!descriptor || descriptor.length < 6) return null;
  const count = dicom.word(descriptor, 0) || 65536;
  let first = dicom.word(descriptor, 2);
  let bits = dicom.word(descriptor, 4);
  if (signed && first >= 2 ** 15) first -= 2 ** 16;
  let entries: number[];
  if (data.length >= 2 * count)
    entries = Array.from({ length: count }, (_, i) => dicom.word(data, 2 * i));
  else if (data.length >= count && bits <= 8) {
    // Two entries a word; in big-endian words the second comes first.
    const swap = !dicom.littleEndian && data.length % 2 === 0 ? 1 : 0;
    entries = Array.from({ length: count }, (_, i) => data[i ^ swap]!);
  } else return null;
  // Declared bits are often wrong by the time they reach a file: never below what is there.
  const largest = entries.reduce((most, entry) => Math.max(most, entry), 0);
  bits = Math.max(bits >= 1 && bits <= 16 ? bits : 1, 32 - Math.clz32(largest));
  const entry = (value: number) => entries[Math.min(Math.max(rint(value) - first, 0), count - 1)]!;
  return { entry, bits };
}

interface Windowed {
  greys: Float64Array;
  /** Values shown as black and white; null where no straight line leads from one to the other. */
  range: [number, number] | null;
}

/** Greys 0 to 1 of every value: VOI LUT, else the first window, else what shows the image. */
function windowed(
  dicom: DicomFile, layout: Layout, values: Float64Array, counts: Float64Array, bits: number,
  notes: string[],
): Windowed {
  const least = values.reduce((low, value) => Math.min(low, value), Infinity);
  const lut = lookup(dicom, dicom.items.get(VOI_LUT), least < 0);
  const given: Windowed | null = lut
    ? { greys: values.map((value) => lut.entry(value) / (2 ** lut.bits - 1)), range: null }
    : storedWindow(dicom, values);
  if (given && shows(given.greys, counts)) return given;
  if (given) {
    const source = lut ? "lookup table" : "window";
    notes.push(`stored ${source} shows almost nothing; window by percentiles instead`);
  } else if (layout.allocated === 8 && bits <= 8) {
    // Eight bits without a window are display values already.
    const most = values.reduce((high, value) => Math.max(high, value), -Infinity);
    return { greys: stretch(values, [least, most]), range: [least, most] };
  }
  const range = shownRange(values, counts);
  return { greys: stretch(values, range), range };
}

/** The first stored window, by its function (PS3.3 C.11.2.1.2); null without a valid one. */
function storedWindow(dicom: DicomFile, values: Float64Array): Windowed | null {
  const [center] = dicom.decimals(CENTER);
  const [width] = dicom.decimals(WIDTH);
  if (center === undefined || width === undefined) return null;
  const name = dicom.text(WINDOW_FUNCTION).toUpperCase();
  const clipped = (grey: (value: number) => number) =>
    values.map((value) => Math.min(Math.max(grey(value), 0), 1));
  if (name === "SIGMOID" && width > 0) {
    const curve = (value: number) =>
      1 / (1 + Math.exp(Math.min(Math.max((-4 * (value - center)) / width, -700), 700)));
    return { greys: values.map(curve), range: null };
  }
  if (name === "LINEAR_EXACT" && width > 0)
    return {
      greys: clipped((value) => (value - center) / width + 0.5),
      range: [center - width / 2, center + width / 2],
    };
  if (width < 1) return null;
  const middle = center - 0.5;
  if (width === 1)
    return { greys: values.map((value) => Number(value > middle)), range: [middle, middle + 1e-3] };
  return {
    greys: clipped((value) => (value - middle) / (width - 1) + 0.5),
    range: [middle - (width - 1) / 2, middle + (width - 1) / 2],
  };
}

/** Whether the image, given as counts of every value, is neither saturated nor flat. */
function shows(greys: Float64Array, counts: Float64Array): boolean {
  let [present, total, saturated] = [0, 0, 0];
  counts.forEach((count, i) => {
    present += Number(count > 0);
    total += count;
    if (greys[i]! <= 0 || greys[i]! >= 1) saturated += count;
  });
  if (present < 3) return true; // Nothing to see whatever the window.
  const [low, high] = percentiles(greys, counts, [1, 99]);
  return saturated / total <= MAX_SATURATED && high - low >= MIN_CONTRAST;
}
