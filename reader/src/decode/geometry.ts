/** Display shutter and patient orientation: port of data_pipeline/decode/geometry.py. */

import type { DicomFile } from "./dicom_file";
import { type Grey, samples } from "./grey";

const SHAPE = 0x00181600;
const EDGES = [0x00181602, 0x00181604, 0x00181606, 0x00181608]; // Left, right, upper, lower.
const [CENTER, RADIUS, VERTICES] = [0x00181610, 0x00181612, 0x00181620];
export const SHUTTER_TAGS = [SHAPE, ...EDGES, CENTER, RADIUS, VERTICES];
// A shutter that leaves less than this share of the image is a mistake.
const MIN_SHOWN = 0.01;

const OPPOSITE: Record<string, string> = { L: "R", R: "L", A: "P", P: "A", H: "F", F: "H" };
const EXTREMITY =
  /HAND|FINGER|THUMB|WRIST|FOREARM|ULNA|RADIUS|ELBOW|HUMERUS|ARM|FOOT|FEET|TOE|HEEL|CALCANEUS|ANKLE|TIBIA|FIBULA|LEG|KNEE|PATELLA|FEMUR|THIGH|EXTREMITY/;

/** 1 where a pixel lies inside the display shutter; null without one.
 *
 * @param image the decoded image, perhaps reduced.
 * @param size of the stored image, which the shutter refers to.
 */
export function shutter(
  dicom: DicomFile, image: Grey, size: { width: number; height: number }, notes: string[],
): Uint8Array | null {
  const shapes = dicom.text(SHAPE).toUpperCase().replaceAll(" ", "").split("\\");
  const { width, height } = image;
  const [unitX, unitY] = [size.width / width, size.height / height];
  const inside = new Uint8Array(width * height).fill(1);
  // Coordinates begin at 1, in the middle of the first pixel.
  const keep = (test: (x: number, y: number, column: number, row: number) => boolean) => {
    for (let row = 0, i = 0; row < height; row++)
      for (let column = 0; column < width; column++, i++)
        if (!test((column + 0.5) * unitX + 0.5, (row + 0.5) * unitY + 0.5, column, row))
          inside[i] = 0;
  };
  if (shapes.includes("RECTANGULAR")) {
    const [left, right, upper, lower] = EDGES.map((tag) => dicom.decimals(tag)[0] ?? NaN);
    keep((x, y) => y >= upper! && y <= lower! && x >= left! && x <= right!);
  }
  if (shapes.includes("CIRCULAR")) {
    const circle = [...dicom.decimals(CENTER), ...dicom.decimals(RADIUS)];
    const [row, column, radius] = circle.length === 3 ? circle : [NaN, NaN, NaN];
    keep((x, y) => {
      const half = Math.sqrt(Math.max(radius! ** 2 - (y - row!) ** 2, 0));
      return Math.abs(y - row!) <= radius! && Math.abs(x - column!) <= half;
    });
  }
  if (shapes.includes("POLYGONAL")) {
    const numbers = dicom.decimals(VERTICES);
    const points = Array.from({ length: numbers.length >> 1 }, (_, i) => ({
      x: Math.trunc((numbers[2 * i + 1]! - 0.5) / unitX - 0.5),
      y: Math.trunc((numbers[2 * i]! - 0.5) / unitY - 0.5),
    }));
    const spans = points.length >= 3 ? Array.from({ length: height }, (_, y) => crossings(points, y)) : [];
    keep((_x, _y, column, row) =>
      (spans[row] ?? []).some(([from, to]) => column >= from && column <= to));
  }
  const share = inside.reduce((sum, value) => sum + value, 0) / inside.length;
  if (share === 1) return null;
  if (share < MIN_SHOWN) {
    notes.push("display shutter ignored: it hides the whole image, or lacks its position");
    return null;
  }
  notes.push("display shutter: the image is black outside of it");
  return inside;
}

/** First and last column of every piece of a row inside a polygon, as Pillow draws it. */
function crossings(points: { x: number; y: number }[], y: number): [number, number][] {
  const xs: number[] = [];
  const pieces: [number, number][] = [];
  const lowest = Math.max(...points.map((point) => point.y));
  points.forEach((a, i) => {
    const b = points[(i + 1) % points.length]!;
    const [top, bottom] = [Math.min(a.y, b.y), Math.max(a.y, b.y)];
    if (y < top || y > bottom) return;
    if (top === bottom) pieces.push([Math.min(a.x, b.x), Math.max(a.x, b.x)]);
    else {
      const x = a.x + ((y - a.y) * (b.x - a.x)) / (b.y - a.y);
      xs.push(...(y === bottom && y < lowest ? [x, x] : [x]));
    }
  });
  xs.sort((a, b) => a - b);
  for (let i = 1; i < xs.length; i += 2)
    pieces.push([Math.floor(xs[i - 1]! + 0.5), Math.ceil(xs[i]! - 0.5)]);
  return pieces;
}

/** Counter-clockwise quarter turns, then mirroring, that lead to the standard view. */
export interface Turn {
  turns: number;
  mirrored: boolean;
}

/** How to turn an image to the standard view, by its Patient Orientation; null for not at all.
 *
 * Rows run to the patient's left and columns to the feet. Lateral images are turned and never
 * mirrored, decubitus images mirrored and never turned, extremities left as they are.
 */
export function standardView(
  orientation: string, view: string, bodyPart: string, notes: string[],
): Turn | null {
  const match = /^([LRAPHF])[LRAPHF]{0,2}\\([LRAPHF])[LRAPHF]{0,2}$/.exec(orientation);
  if (!match) return null;
  const [row, column] = [match[1]!, match[2]!];
  let turns = [column === "F", row === "H", column === "H", row === "F"].indexOf(true);
  if (turns < 0) return null;
  const rowThen = [row, column, OPPOSITE[row]!, OPPOSITE[column]!][turns]!;
  const mirrored = rowThen === "R";
  if (view === "LLD" || view === "RLD") turns = 0;
  if (rowThen === "H" || rowThen === "F" || !(turns || mirrored)) return null;
  if (EXTREMITY.test(bodyPart)) {
    notes.push(`patient orientation ${orientation} of an extremity; left as it is stored`);
    return null;
  }
  const done = [
    ...(turns ? [`turned by ${turns * 90} degrees`] : []), ...(mirrored ? ["mirrored"] : []),
  ].join(" and ");
  notes.push(`patient orientation ${orientation}; ${done} to the standard view`);
  return { turns, mirrored };
}

/** The image after a turn. */
export function turned<T extends Grey>(image: T, { turns, mirrored }: Turn): T {
  const { width, height } = image;
  const [w, h] = turns % 2 ? [height, width] : [width, height];
  const data = samples(image.data, image.data.length);
  for (let y = 0, i = 0; y < h; y++)
    for (let x = 0; x < w; x++, i++) {
      const u = mirrored ? w - 1 - x : x;
      const [sx, sy] = [
        [u, y], [width - 1 - y, u], [width - 1 - u, height - 1 - y], [y, height - 1 - u],
      ][turns]!;
      data[i] = image.data[sy! * width + sx!]!;
    }
  return { ...image, data, width: w, height: h };
}
