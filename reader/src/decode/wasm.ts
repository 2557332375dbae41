/** The compressed pixel formats that WebAssembly builds of the reference libraries decode. */

import type { Samples } from "./grey";

interface FrameInfo {
  width: number;
  height: number;
  bitsPerSample: number;
  componentCount: number;
  isSigned: boolean;
}

interface Decoder {
  getEncodedBuffer(length: number): Uint8Array;
  getDecodedBuffer(): ArrayLike<number>;
  decode(): void;
  getFrameInfo(): FrameInfo;
  getInterleaveMode?(): number;
  delete(): void;
}

type Factory = (options: { locateFile: () => string; print: () => void; printErr: () => void }) =>
  Promise<Record<string, new () => Decoder>>;

const CODECS = {
  jpeg: {
    decoder: "JPEGDecoder",
    load: () => import("@cornerstonejs/codec-libjpeg-turbo-8bit/decodewasmjs"),
    wasm: () => import("@cornerstonejs/codec-libjpeg-turbo-8bit/decodewasm"),
  },
  jpeg2000: {
    decoder: "J2KDecoder",
    load: () => import("@cornerstonejs/codec-openjpeg/decodewasmjs"),
    wasm: () => import("@cornerstonejs/codec-openjpeg/decodewasm"),
  },
  jpegLs: {
    decoder: "JpegLSDecoder",
    load: () => import("@cornerstonejs/codec-charls/decodewasmjs"),
    wasm: () => import("@cornerstonejs/codec-charls/decodewasm"),
  },
  htj2k: {
    decoder: "HTJ2KDecoder",
    load: () => import("@cornerstonejs/codec-openjph"),
    wasm: () => import("@cornerstonejs/codec-openjph/wasm"),
  },
};

export type Codec = keyof typeof CODECS;

export interface Frame extends FrameInfo {
  /** Signed values as two's complement. */
  data: Samples;
  /** Colours one after the other rather than interleaved. */
  planar: boolean;
}

const loaded = new Map<Codec, Promise<new () => Decoder>>();

async function load(codec: Codec): Promise<new () => Decoder> {
  const [module, wasm] = await Promise.all([CODECS[codec].load(), CODECS[codec].wasm()]);
  const url = new URL(wasm.default, import.meta.url).href;
  const factory = module.default as unknown as Factory;
  const silent = () => {};
  const library = await factory({ locateFile: () => url, print: silent, printErr: silent });
  return library[CODECS[codec].decoder]!;
}

/** Decodes one compressed picture. Raises whatever the library raises for a damaged one. */
export async function decodeFrame(codec: Codec, encoded: Uint8Array): Promise<Frame> {
  if (!loaded.has(codec)) loaded.set(codec, load(codec));
  const decoder = new (await loaded.get(codec)!)();
  try {
    decoder.getEncodedBuffer(encoded.length).set(encoded);
    decoder.decode();
    const info = decoder.getFrameInfo();
    // A copy, and no clamped array: the buffer lies in the library's memory.
    const bytes = Uint8Array.from(decoder.getDecodedBuffer());
    const data = info.bitsPerSample <= 8 ? bytes : new Uint16Array(bytes.buffer);
    const { width, height, bitsPerSample, componentCount, isSigned } = info;
    const planar = decoder.getInterleaveMode?.() === 0;
    if (data.length < width * height * componentCount) throw new Error("cut short");
    return { data, width, height, bitsPerSample, componentCount, isSigned, planar };
  } finally {
    decoder.delete();
  }
}
