/** The image: window and level, zoom and pan, and the saliency over it. */

import type { Display, Region } from "./decode";

export interface SaliencyMap {
  data: Float32Array;
  width: number;
  height: number;
}

const MAX_ZOOM = 16;
// The map is drawn so many times finer than its cells, interpolated between their centres.
const FINER = 24;
const STEP = 1 / 32;

export class Viewer {
  /** Drag moves the image rather than changing the window. */
  panning = false;
  onchange: () => void = () => {};
  private display: Display | null = null;
  private region: Region = { x: 0, y: 0, width: 1, height: 1 };
  private range: [number, number] = [0, 255];
  private inverted = false;
  private zoom = 1;
  private offset = { x: 0, y: 0 };
  private opacity = 0;
  private picture = document.createElement("canvas");
  private heat: HTMLCanvasElement | null = null;
  private stale = false;
  private scheduled = false;
  private pointers = new Map<number, { x: number; y: number }>();

  constructor(private stage: HTMLElement, private canvas: HTMLCanvasElement) {
    new ResizeObserver(() => this.schedule()).observe(stage);
    stage.addEventListener("pointerdown", (event) => this.press(event));
    stage.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"] as const)
      stage.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    stage.addEventListener("contextmenu", (event) => this.display && event.preventDefault());
    stage.addEventListener("dblclick", () => this.reset());
    stage.addEventListener("keydown", (event) => this.key(event));
    stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  show(display: Display, region: Region): void {
    this.display = display;
    this.region = region;
    this.heat = null;
    this.picture.width = display.stored.width;
    this.picture.height = display.stored.height;
    this.reset();
  }

  clear(): void {
    this.display = this.heat = null;
    this.stale = false;
    this.schedule();
  }

  /** Values shown as mid-grey, and how many lie between black and white. */
  get level(): number {
    return (this.range[0] + this.range[1]) / 2;
  }

  get window(): number {
    return this.range[1] - this.range[0];
  }

  setWindow(level: number, window: number): void {
    const width = Math.max(window, this.span() / 4096);
    this.range = [level - width / 2, level + width / 2];
    this.redraw();
  }

  invert(): void {
    this.inverted = !this.inverted;
    this.redraw();
  }

  reset(): void {
    if (!this.display) return;
    this.range = [...this.display.range];
    this.inverted = this.display.inverted;
    this.zoom = 1;
    this.offset = { x: 0, y: 0 };
    this.redraw();
  }

  /** Zooms by a factor; the point at `x, y`, from the stage's centre, stays where it is. */
  zoomBy(factor: number, x = 0, y = 0): void {
    const zoom = Math.min(Math.max(this.zoom * factor, 1), MAX_ZOOM);
    const ratio = zoom / this.zoom;
    this.zoom = zoom;
    this.offset = { x: x - (x - this.offset.x) * ratio, y: y - (y - this.offset.y) * ratio };
    this.schedule();
  }

  pan(x: number, y: number): void {
    this.offset = { x: this.offset.x + x, y: this.offset.y + y };
    this.schedule();
  }

  setSaliency(map: SaliencyMap | null): void {
    this.heat = map && heat(map);
    this.schedule();
  }

  setOpacity(opacity: number): void {
    this.opacity = opacity;
    this.schedule();
  }

  private span(): number {
    const [low, high] = this.display?.range ?? [0, 255];
    return Math.max(high - low, 1e-6);
  }

  private press(event: PointerEvent): void {
    if (!this.display) return;
    this.stage.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (event.button === 1) event.preventDefault();
  }

  private move(event: PointerEvent): void {
    const last = this.pointers.get(event.pointerId);
    if (!last) return;
    const now = { x: event.clientX, y: event.clientY };
    const [dx, dy] = [now.x - last.x, now.y - last.y];
    if (this.pointers.size === 2) {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)![1];
      const apart = (p: { x: number; y: number }) => Math.hypot(p.x - other.x, p.y - other.y);
      const box = this.stage.getBoundingClientRect();
      const x = (now.x + other.x) / 2 - box.left - box.width / 2;
      const y = (now.y + other.y) / 2 - box.top - box.height / 2;
      this.zoomBy(apart(now) / Math.max(apart(last), 1), x, y);
      this.pan(dx / 2, dy / 2);
    } else if (this.panning || event.shiftKey || event.buttons & 6) this.pan(dx, dy);
    else {
      const unit = this.span() / 300;
      this.setWindow(this.level + dy * unit, this.window + dx * unit);
    }
    this.pointers.set(event.pointerId, now);
  }

  private wheel(event: WheelEvent): void {
    if (!this.display) return;
    event.preventDefault();
    const box = this.stage.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
    this.zoomBy(Math.exp(-event.deltaY / 400), x, y);
  }

  private key(event: KeyboardEvent): void {
    if (!this.display || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target !== this.stage) return;
    const step = this.span() * STEP;
    const actions: Record<string, () => void> = {
      ArrowLeft: () => this.pan(24, 0),
      ArrowRight: () => this.pan(-24, 0),
      ArrowUp: () => this.pan(0, 24),
      ArrowDown: () => this.pan(0, -24),
      "+": () => this.zoomBy(1.25),
      "=": () => this.zoomBy(1.25),
      "-": () => this.zoomBy(0.8),
      "0": () => this.reset(),
      i: () => this.invert(),
      "[": () => this.setWindow(this.level, this.window - step),
      "]": () => this.setWindow(this.level, this.window + step),
      ",": () => this.setWindow(this.level - step, this.window),
      ".": () => this.setWindow(this.level + step, this.window),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  private redraw(): void {
    this.stale = true;
    this.onchange();
    this.schedule();
  }

  private schedule(): void {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      if (this.stale) this.rewindow();
      this.stale = false;
      this.draw();
    });
  }

  /** Draws the picture's pixels anew through the window. */
  private rewindow(): void {
    const { stored, values, padding, inside } = this.display!;
    const [low, high] = this.range;
    const table = Uint32Array.from(values, (value) => {
      const grey = Math.min(Math.max((value - low) / (high - low), 0), 1);
      const shown = Math.round((this.inverted ? 1 - grey : grey) * 255);
      return 0xff000000 | (shown << 16) | (shown << 8) | shown;
    });
    for (const value of padding) table[value] = 0xff000000;
    const context = this.picture.getContext("2d")!;
    const image = context.createImageData(stored.width, stored.height);
    const pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < pixels.length; i++)
      pixels[i] = inside && !inside[i] ? 0xff000000 : table[stored.data[i]!]!;
    context.putImageData(image, 0, 0);
  }

  private draw(): void {
    const density = window.devicePixelRatio || 1;
    const [width, height] = [this.stage.clientWidth, this.stage.clientHeight];
    this.canvas.width = Math.round(width * density);
    this.canvas.height = Math.round(height * density);
    if (!this.display) return;
    const { stored, aspect } = this.display;
    const tall = stored.height * aspect;
    const fit = Math.min(width / stored.width, height / tall);
    const scale = fit * this.zoom;
    // Part of the image always stays in view.
    const reach = { x: (stored.width * scale) / 2, y: (tall * scale) / 2 };
    this.offset.x = Math.min(Math.max(this.offset.x, -reach.x), reach.x);
    this.offset.y = Math.min(Math.max(this.offset.y, -reach.y), reach.y);
    const context = this.canvas.getContext("2d")!;
    context.setTransform(density, 0, 0, density, 0, 0);
    context.translate(width / 2 + this.offset.x, height / 2 + this.offset.y);
    context.scale(scale, scale * aspect);
    context.translate(-stored.width / 2, -stored.height / 2);
    context.imageSmoothingEnabled = scale < 4;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.picture, 0, 0);
    if (!this.heat || !this.opacity) return;
    context.beginPath();
    context.rect(0, 0, stored.width, stored.height);
    context.clip();
    context.imageSmoothingEnabled = true;
    context.globalAlpha = this.opacity;
    const { x, y, width: w, height: h } = this.region;
    context.drawImage(this.heat, x, y, w, h);
  }
}

/** The positive part of a map, scaled to its maximum, as a picture: from clear to amber to white. */
function heat(map: SaliencyMap): HTMLCanvasElement {
  const most = map.data.reduce((a, b) => Math.max(a, b), 0) || 1;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [map.width * FINER, map.height * FINER];
  const context = canvas.getContext("2d")!;
  const image = context.createImageData(canvas.width, canvas.height);
  const at = (x: number, y: number) => {
    const column = Math.min(Math.max(x, 0), map.width - 1);
    const row = Math.min(Math.max(y, 0), map.height - 1);
    return Math.max(map.data[row * map.width + column]!, 0) / most;
  };
  for (let y = 0, i = 0; y < canvas.height; y++)
    for (let x = 0; x < canvas.width; x++, i += 4) {
      const [u, v] = [(x + 0.5) / FINER - 0.5, (y + 0.5) / FINER - 0.5];
      const [left, top] = [Math.floor(u), Math.floor(v)];
      const [a, b] = [u - left, v - top];
      const value =
        (at(left, top) * (1 - a) + at(left + 1, top) * a) * (1 - b) +
        (at(left, top + 1) * (1 - a) + at(left + 1, top + 1) * a) * b;
      image.data.set([255, 96 + 144 * value * value, 24 + 120 * value ** 4, 255 * value ** 1.4], i);
    }
  context.putImageData(image, 0, 0);
  return canvas;
}
