/** Decodes files and runs the network, beside the page so that it stays responsive. */

import * as ort from "onnxruntime-web/wasm";
import ortWasm from "onnxruntime-web/ort-wasm-simd-threaded.wasm";
import { BadExport, type ModelFile, type Outputs, type Reply, type Request } from "./contract";
import { decodeFile, joined, Refused, shortestSide, toSquare } from "./decode";
import { shiftedImages, shiftsFor, stitched } from "./saliency";

let model: ModelFile;
let session: Promise<ort.InferenceSession>;
let outliers: Float32Array | null = null;

const send = (reply: Reply, transfer: Transferable[] = []) => self.postMessage(reply, { transfer });

self.onmessage = async ({ data: request }: MessageEvent<Request>) => {
  if (request.type === "start") {
    model = request.model;
    session = start(request.base);
    try {
      await session;
      send({ type: "ready", threads: ort.env.wasm.numThreads ?? 1 });
    } catch (error) {
      const reason = error instanceof BadExport ? error.message : `model.onnx does not run: ${error}`;
      send({ type: "failed", reason });
    }
    return;
  }
  const { id } = request;
  try {
    if (request.type === "read") await read(id, request.data);
    else {
      const { image } = await decodeFile(request.data, () => 2 * request.side);
      const preprocessing = { image_size: request.side, resize: "crop", trim_borders: false } as const;
      send({ type: "thumbnail", id, square: toSquare(image, preprocessing).square });
    }
  } catch (error) {
    const reason = error instanceof Refused ? error.message : `the model failed on it: ${error}`;
    send({ type: "refused", id, reason });
  }
};

async function start(base: string): Promise<ort.InferenceSession> {
  const fetched = (name: string) => download(new URL(name, base).href, name);
  ort.env.wasm.wasmPaths = {
    mjs: new URL("ort-wasm-simd-threaded.js", import.meta.url).href,
    wasm: new URL(ortWasm, import.meta.url).href,
  };
  // Threads need the headers COOP and COEP, which a plain static host does not send.
  ort.env.wasm.numThreads = self.crossOriginIsolated
    ? Math.min(4, navigator.hardwareConcurrency || 1)
    : 1;
  if (model.outliers) {
    const { file, rows, cols } = model.outliers;
    const bytes = await fetched(file);
    if (bytes.length !== 4 * cols * (rows + 1))
      throw new BadExport(`${file} has ${bytes.length} bytes; expected ${4 * cols * (rows + 1)}`);
    outliers = new Float32Array(bytes.buffer);
  }
  const created = await ort.InferenceSession.create(await fetched("model.onnx"), {
    executionProviders: ["wasm"],
    graphOptimizationLevel: "all",
    logSeverityLevel: 3, // Errors.
  });
  // The first run allocates: it is not left to the first image.
  await answer(created, new Uint8Array(model.preprocessing.image_size ** 2));
  return created;
}

async function download(url: string, name: string): Promise<Uint8Array> {
  const response = await fetch(url).catch(() => null);
  if (!response?.ok || !response.body)
    throw new BadExport(`${name} cannot be loaded; it belongs beside reader.html`);
  const total = Number(response.headers.get("Content-Length")) || 0;
  const parts: Uint8Array[] = [];
  let done = 0;
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    done += part.value.length;
    send({ type: "loading", done, total });
  }
  return joined(parts);
}

async function read(id: number, data: Uint8Array): Promise<void> {
  const began = performance.now();
  const preprocessing = model.preprocessing;
  const decoded = await decodeFile(data, (height, width) => shortestSide(preprocessing, height, width));
  const { square, region } = toSquare(decoded.image, preprocessing);
  const decodedAt = performance.now();
  const { display, format, bits, notes } = decoded;
  // The network may have been given the picture at reduced scale or stretched.
  const [unitX, unitY] = [
    display.stored.width / decoded.image.width, display.stored.height / decoded.image.height,
  ];
  const shown = {
    x: region.x * unitX, y: region.y * unitY,
    width: region.width * unitX, height: region.height * unitY,
  };
  send({ type: "image", id, display, region: shown, facts: { format, bits, notes } });
  const outputs = await answer(await session, square);
  const modelMs = performance.now() - decodedAt;
  send({ type: "outputs", id, outputs, decodeMs: decodedAt - began, modelMs });
}

/** Runs the network on one or more squares, one after another in `squares`. */
function run(network: ort.InferenceSession, squares: Uint8Array): Promise<ort.InferenceSession.ReturnType> {
  const size = model.preprocessing.image_size;
  const input = network.inputMetadata[0]!;
  const float = input.isTensor && input.type === "float32";
  const shape = [squares.length / size ** 2, size, size, 1];
  const image = float
    ? new ort.Tensor("float32", Float32Array.from(squares), shape)
    : new ort.Tensor("uint8", squares, shape);
  return network.run({ [input.name]: image });
}

async function answer(network: ort.InferenceSession, square: Uint8Array): Promise<Outputs> {
  const results = await run(network, square);
  const values = (name: string) => (results[name]?.data as Float32Array | undefined) ?? null;
  // A model of ages alone has none.
  const probabilities = values("probabilities") ?? new Float32Array(0);
  if (probabilities.length !== model.classes.length)
    throw new BadExport(
      `model.onnx gives ${probabilities.length} probabilities for ${model.classes.length} classes`,
    );
  const features = values("features");
  return {
    probabilities,
    age_months: model.age ? (values("age_months")?.[0] ?? null) : null,
    features,
    distance: features && outliers ? mahalanobis(features, outliers) : null,
    saliency: await saliency(network, square, results.saliency),
  };
}

/** The maps of the conditions; of images moved by parts of a cell where they have few cells. */
async function saliency(
  network: ort.InferenceSession, square: Uint8Array, map: ort.Tensor | undefined,
): Promise<Outputs["saliency"]> {
  if (!map) return null;
  const [height, width] = map.dims.slice(-2) as [number, number];
  const maps = { data: map.data as Float32Array, height, width };
  const shifts = height === width ? shiftsFor(height) : 1;
  if (shifts === 1) return maps;
  const moved = shiftedImages(square, model.preprocessing.image_size, height, shifts);
  const found = (await run(network, moved)).saliency!;
  return stitched({ ...maps, data: found.data as Float32Array }, shifts);
}

/** ‖W (x − mean)‖; the mean comes first, then the rows of W. */
function mahalanobis(features: Float32Array, meanAndRows: Float32Array): number {
  const count = features.length;
  const rows = meanAndRows.length / count - 1;
  if (!Number.isInteger(rows)) throw new BadExport("outliers does not fit the model's features");
  let sum = 0;
  for (let row = 1; row <= rows; row++) {
    let product = 0;
    for (let i = 0; i < count; i++)
      product += meanAndRows[row * count + i]! * (features[i]! - meanAndRows[i]!);
    sum += product * product;
  }
  return Math.sqrt(sum);
}
