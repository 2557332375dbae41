/** One file -> one correct grey image, or one clear refusal: port of data_pipeline/decode. */

import { type Decoded, plainDisplay, readDicom } from "./dicom";
import { sniffDicom } from "./dicom_file";
import { checkSize, type Grey, largest, MAX_FILE_BYTES, Refused, rint } from "./grey";
import { decodeJpeg, exifOrientation, isPlain, jpegHeader, oriented } from "./jpeg";
import { histogram, shownRange, stretch } from "./percentiles";
import { decodePng } from "./png";

export type { Decoded, Display } from "./dicom";
export { DECODER_VERSION, joined, Refused } from "./grey";
export { type Preprocessing, type Region, shortestSide, toSquare } from "./resize";

const FOREIGN: [number, string, string][] = [
  [0, "\0\x05\x16\x07", "an AppleDouble file of macOS"],
  [0, "\0\x05\x16\0", "an AppleSingle file of macOS"],
  [0, "\0\0\0\x01Bud1", "a .DS_Store file of macOS"],
  [0, "PK\x03\x04", "a ZIP archive; unpack it first"],
  [0, "\x1f\x8b", "a gzip archive; unpack it first"],
  [0, "version https://git-lfs", "a Git LFS pointer; fetch the file itself"],
  [0, "<", "a web page or XML text, often a failed download"],
  [0, "GIF8", "a GIF image"],
  [0, "BM", "a BMP image"],
  [0, "%PDF", "a PDF document"],
  [0, "RIFF", "a WebP image, a video or sound"],
  [4, "ftyp", "a HEIC or AVIF image, or a video"],
  [0, "\0\0\0\x0cjP  ", "a JPEG 2000 image outside DICOM"],
  [0, "\xff\x4f\xff\x51", "a JPEG 2000 stream outside DICOM"],
];
const TIFF = ["II*\0", "MM\0*", "II+\0", "MM\0+"];

/** Decodes the content of a file.
 *
 * @param shortestSide given height and width, how small the shorter side may be decoded.
 * @throws Refused for every file that is no radiograph, with the reason.
 */
export async function decodeFile(
  data: Uint8Array, shortestSide: (height: number, width: number) => number,
): Promise<Decoded> {
  try {
    return await decodeContent(data, shortestSide);
  } catch (error) {
    if (error instanceof Refused) throw error;
    // The library's message can quote the header, and with it a name.
    throw new Refused("damaged or not what its format says");
  }
}

async function decodeContent(
  data: Uint8Array, shortestSide: (height: number, width: number) => number,
): Promise<Decoded> {
  if (!data.length) throw new Refused("the file is empty");
  if (data.length > MAX_FILE_BYTES)
    throw new Refused(`the file is larger than ${MAX_FILE_BYTES / 2 ** 20} MiB`);
  const head = String.fromCharCode(...data.subarray(0, 132));
  if (head.startsWith("\x89PNG\r\n\x1a\n")) return readPng(data);
  if (head.startsWith("\xff\xd8\xff")) return readJpeg(data, shortestSide);
  if (TIFF.some((start) => head.startsWith(start)))
    throw new Refused("a TIFF image, which this page does not read; convert it to PNG");
  if (head.slice(128) === "DICM") return readDicom(data, shortestSide);
  for (const [at, signature, name] of FOREIGN)
    if (head.startsWith(signature, at)) throw new Refused(`not a radiograph but ${name}`);
  if (sniffDicom(data)) return readDicom(data, shortestSide);
  throw new Refused("neither DICOM, PNG nor JPEG");
}

function readPng(data: Uint8Array): Decoded {
  const png = decodePng(data);
  const stored = oriented(png.image, exifOrientation(png.exif));
  const notes = png.color ? ["in colour"] : [];
  if (stored.data instanceof Uint8Array)
    return { image: stored, display: plainDisplay(stored), format: "PNG", bits: png.bits, notes };
  return { ...sixteenBits(stored), format: "PNG", bits: 16, notes };
}

/** Greys of a detector's 10 to 16 bits, which nothing in the file tells apart: by percentiles. */
function sixteenBits(stored: Grey): Pick<Decoded, "image" | "display"> {
  const maximum = largest(stored.data);
  const values = Float64Array.from({ length: maximum + 1 }, (_, i) => i);
  const range = shownRange(values, histogram(stored.data, maximum + 1));
  const table = Uint16Array.from(stretch(values, range), (grey) => rint(grey * 65535));
  const image = { ...stored, data: Uint16Array.from(stored.data, (value) => table[value]!) };
  return { image, display: { stored, values, range, inverted: false, padding: [], inside: null, aspect: 1 } };
}

async function readJpeg(
  data: Uint8Array, shortestSide: (height: number, width: number) => number,
): Promise<Decoded> {
  const header = jpegHeader(data);
  checkSize(header.height, header.width);
  if (!isPlain(header))
    throw new Refused("a JPEG of this kind cannot be read by this page; convert it to PNG");
  const least = shortestSide(header.height, header.width);
  const { full, reduced, color } = await decodeJpeg(data, header, least);
  const turn = exifOrientation(header.exif);
  return {
    image: oriented(reduced, turn),
    display: plainDisplay(oriented(full, turn)),
    format: "JPEG",
    bits: 8,
    notes: color ? ["in colour"] : [],
  };
}
