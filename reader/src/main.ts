/** The page: opens files, asks the worker, shows what it answers. */

import { BadExport, checkModel, type Facts, type ModelFile, type Outputs, type Reply, type Request } from "./contract";
import type { Display } from "./decode";
import {
  ageText, element, percent, ranked, showAbout, showAge, showConditions, showOutlier, title,
} from "./results";
import { Viewer } from "./viewer";

const base = new URL(".", document.baseURI).href;
const THUMBNAIL = 112;
// The last resort, for a decoder that never answers.
const PATIENCE_MS = 60_000;

const stage = element("stage");
const viewer = new Viewer(stage, element<HTMLCanvasElement>("canvas"));
const opacity = element<HTMLInputElement>("opacity");
let model: ModelFile;
let worker: Worker;
let ready = false;
let latest = 0;
let waiting: Uint8Array | null = null;
let patience = 0;
let facts: { file: Facts; display: Display } | null = null;
const thumbnails = new Map<number, HTMLCanvasElement>();

const ask = (request: Request) => {
  const transfer = "data" in request ? [request.data.buffer as ArrayBuffer] : [];
  worker.postMessage(request, transfer);
};
/** Announces what happens; what the reading shows anyway is for screen readers alone. */
function status(text: string, shown = true): void {
  element("status").textContent = text;
  element("status").classList.toggle("visually-hidden", !shown);
}

function problem(text: string): void {
  element("problem").textContent = text;
  element("problem").hidden = !text;
  if (text) status("");
}

function startWorker(): void {
  ready = false;
  worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }: MessageEvent<Reply>) => answer(data);
  worker.onerror = () => fail("The page's program does not start in this browser.");
  ask({ type: "start", model, base });
}

function fail(reason: string): void {
  element("progress").hidden = true;
  problem(reason);
}

function answer(reply: Reply): void {
  if (reply.type === "loading") {
    const progress = element<HTMLProgressElement>("progress");
    if (reply.total) progress.value = reply.done / reply.total;
    const mebibytes = (bytes: number) => Math.round(bytes / 2 ** 20);
    if (reply.total > 2 ** 22)
      status(`Loading the model, ${mebibytes(reply.done)} of ${mebibytes(reply.total)} MiB`);
  } else if (reply.type === "ready") {
    ready = true;
    element("progress").hidden = true;
    document.body.dataset.ready = "true";
    if (waiting) read(waiting);
    else status("Ready");
    void drawExamples();
  } else if (reply.type === "failed") fail(`The model cannot be used: ${reply.reason}.`);
  else if (reply.type === "thumbnail") drawThumbnail(reply.id, reply.square);
  else if (reply.id === latest) {
    clearTimeout(patience);
    if (reply.type === "image") showImage(reply);
    else if (reply.type === "refused") refuse(reply.reason);
    else showOutputs(reply.outputs, reply.decodeMs + reply.modelMs);
  }
}

function read(data: Uint8Array): void {
  waiting = null;
  problem("");
  latest++;
  if (!ready) {
    waiting = data;
    return;
  }
  status("Reading the image");
  document.body.dataset.busy = "true";
  clearTimeout(patience);
  patience = setTimeout(() => {
    worker.terminate();
    refuse("its decoder did not answer");
    startWorker();
  }, PATIENCE_MS);
  ask({ type: "read", id: latest, data });
}

function refuse(reason: string): void {
  delete document.body.dataset.busy;
  showStage(false);
  viewer.clear();
  problem(`This file cannot be read: ${reason}.`);
  document.dispatchEvent(new CustomEvent("refused", { detail: { reason } }));
}

/** Without an image the stage invites one; a reading follows when the model has answered. */
function showStage(image: boolean): void {
  element("tools").inert = !image;
  element("invitation").hidden = image;
  stage.classList.toggle("empty", !image);
  stage.setAttribute("aria-label", "No image");
  element("reading").hidden = true;
}

function showImage(reply: Extract<Reply, { type: "image" }>): void {
  facts = { file: reply.facts, display: reply.display };
  showStage(true);
  viewer.show(reply.display, reply.region);
  const { width, height } = reply.display.stored;
  stage.setAttribute("aria-label", `Radiograph, ${width} by ${height} pixels`);
}

function showOutputs(outputs: Outputs, ms: number): void {
  delete document.body.dataset.busy;
  const choose = (index: number) => {
    const { saliency } = outputs;
    if (!saliency) return;
    const cells = saliency.width * saliency.height;
    const data = saliency.data.subarray(index * cells, (index + 1) * cells);
    viewer.setSaliency({ ...saliency, data });
    opacity.setAttribute("aria-label", `Saliency of ${title(model.classes[index]!)}, opacity`);
  };
  const unlike = showOutlier(model, outputs);
  showConditions(model, outputs, choose);
  showAge(model, outputs.age_months);
  element("saliency-field").hidden = !outputs.saliency;
  const rows = ranked(model, outputs.probabilities);
  if (rows[0]) choose(rows[0].index);
  const { file, display } = facts!;
  const { width, height } = display.stored;
  element("facts").textContent =
    `${file.format}, ${width} × ${height} pixels, ${file.bits} bits. Read in ${Math.round(ms)} ms.`;
  element("notes").replaceChildren(
    ...file.notes.map((note) => Object.assign(document.createElement("li"), { textContent: note })),
  );
  element("reading").hidden = false;
  element<HTMLDetailsElement>("about").open = false;
  const likely = model.multi_label ? rows.filter((row) => row.p >= 0.5) : rows.slice(0, 1);
  const named = likely.map((row) => `${title(model.classes[row.index]!)}, ${percent(row.p)}`);
  const none = rows.length ? ["No finding is likely"] : [];
  const first = named.length ? [`Most likely: ${named.join("; ")}`] : none;
  const age = outputs.age_months === null ? [] : [`Age ${ageText(outputs.age_months)}`];
  status(`${unlike ? "Unlike the training data. " : ""}${[...first, ...age].join(". ")}`, false);
  document.dispatchEvent(
    new CustomEvent("reading", {
      detail: {
        probabilities: [...outputs.probabilities],
        age_months: outputs.age_months,
        features: outputs.features && [...outputs.features],
        distance: outputs.distance,
        saliency: outputs.saliency && { ...outputs.saliency, data: [...outputs.saliency.data] },
        outlier: unlike,
        prediction_set: rows.filter((row) => row.inSet).map((row) => model.classes[row.index]),
        ms,
      },
    }),
  );
}

const examples = (): { file: string; title: string }[] =>
  (model.examples ?? []).map((example, i) =>
    typeof example === "string" ? { file: example, title: `Example ${i + 1}` } : example,
  );

async function fetchExample(file: string): Promise<Uint8Array | null> {
  const response = await fetch(new URL(file, base)).catch(() => null);
  return response?.ok ? new Uint8Array(await response.arrayBuffer()) : null;
}

function listExamples(): void {
  examples().forEach(({ file, title: name }, i) => {
    const button = document.createElement("button");
    button.type = "button";
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = THUMBNAIL;
    canvas.setAttribute("aria-hidden", "true");
    thumbnails.set(-1 - i, canvas);
    const caption = document.createElement("span");
    caption.textContent = name;
    button.append(canvas, caption);
    button.addEventListener("click", async () => {
      const data = await fetchExample(file);
      if (data) read(data);
      else problem(`${file} is missing from the folder of this page.`);
    });
    element("examples").append(button);
  });
}

async function drawExamples(): Promise<void> {
  for (const [i, { file }] of examples().entries()) {
    const data = await fetchExample(file);
    if (data) ask({ type: "thumbnail", id: -1 - i, data, side: THUMBNAIL });
  }
}

function drawThumbnail(id: number, square: Uint8Array): void {
  const context = thumbnails.get(id)!.getContext("2d")!;
  const image = context.createImageData(THUMBNAIL, THUMBNAIL);
  square.forEach((grey, i) => image.data.set([grey, grey, grey, 255], 4 * i));
  context.putImageData(image, 0, 0);
}

async function open(files: FileList | null | undefined): Promise<void> {
  const file = files?.[0];
  if (!file) return;
  try {
    read(new Uint8Array(await file.arrayBuffer()));
  } catch {
    problem("This file cannot be opened: it may be a folder, or no longer there.");
  }
}

function connect(): void {
  const file = element<HTMLInputElement>("file");
  file.addEventListener("change", async () => {
    await open(file.files);
    file.value = ""; // The same file can be opened again.
  });
  const dragging = (on: boolean) => document.body.classList.toggle("dragging", on);
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    dragging(true);
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget || dragging(false));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    dragging(false);
    void open(event.dataTransfer?.files);
  });
  document.addEventListener("paste", (event) => void open(event.clipboardData?.files));

  const level = element<HTMLInputElement>("level");
  const width = element<HTMLInputElement>("window");
  const short = (value: number) => String(Number(value.toPrecision(4)));
  viewer.onchange = () => {
    if (document.activeElement !== level) level.value = short(viewer.level);
    if (document.activeElement !== width) width.value = short(viewer.window);
  };
  for (const input of [level, width])
    input.addEventListener("input", () => {
      if (level.value !== "" && Number(width.value) > 0)
        viewer.setWindow(Number(level.value), Number(width.value));
    });
  const click = (id: string, action: () => void) => element(id).addEventListener("click", action);
  click("zoom-in", () => viewer.zoomBy(1.25));
  click("zoom-out", () => viewer.zoomBy(0.8));
  click("invert", () => viewer.invert());
  click("reset", () => viewer.reset());
  click("pan", () => {
    viewer.panning = !viewer.panning;
    element("pan").setAttribute("aria-pressed", String(viewer.panning));
    stage.classList.toggle("panning", viewer.panning);
  });
  opacity.addEventListener("input", () => {
    viewer.setOpacity(Number(opacity.value) / 100);
    element("opacity-value").textContent = `${opacity.value} %`;
  });
}

async function main(): Promise<void> {
  document.body.classList.remove("not-running");
  connect();
  try {
    const response = await fetch(new URL("model.json", base)).catch(() => null);
    if (!response?.ok) throw new BadExport("model.json cannot be loaded; it belongs beside reader.html");
    model = checkModel(await response.json());
  } catch (error) {
    const reason = error instanceof BadExport ? error.message : "model.json is damaged";
    fail(`The model cannot be used: ${reason}.`);
    return;
  }
  element("model-name").textContent = model.name;
  document.title = `${model.name} – infantxray reader`;
  const date = model.date ? `, ${model.date}` : "";
  const noun = model.multi_label ? "findings" : "conditions";
  const answers = model.classes.length ? `${model.classes.length} ${noun}` : "ages alone";
  element("model-line").textContent = `${model.encoder}, ${answers}${date}`;
  showAbout(model);
  listExamples();
  startWorker();
}

void main();
