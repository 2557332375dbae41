/** model.json, as reader/README.md describes it, and what the worker sends. */

import { DECODER_VERSION, type Decoded, type Display, type Preprocessing, type Region } from "./decode";

export interface ModelFile {
  format: 1;
  name: string;
  encoder: string;
  date?: string;
  license?: string;
  classes: string[];
  /** Several findings an image: probabilities do not add up to 1. */
  multi_label?: boolean;
  preprocessing: Preprocessing;
  age?: {
    /** Half width of the conformal interval; null or absent without one. */
    interval_months?: number | null;
    coverage?: number;
    /** Ages of the training patients. */
    range_months: [number, number];
  } | null;
  conformal?: { coverage: number; threshold: number; method: "lac" } | null;
  outliers?: { file: string; rows: number; cols: number; threshold: number } | null;
  thresholds?: Record<string, number> | null;
  /** The rule that chose the thresholds, such as youden or sensitivity:0.95. */
  threshold_rule?: string | null;
  /** Of the calibration, which belongs to the graph. */
  temperature?: number | number[] | null;
  metrics?: Record<string, unknown> | null;
  examples?: (string | { file: string; title: string })[];
}

/** A problem with the exported folder itself; the message says what to do. */
export class BadExport extends Error {}

export function checkModel(model: ModelFile): ModelFile {
  const version = model.preprocessing?.decoder_version ?? DECODER_VERSION;
  if (model.format !== 1)
    throw new BadExport(`model.json has format ${model.format}; this page reads format 1`);
  if (!Array.isArray(model.classes) || !model.preprocessing?.image_size)
    throw new BadExport("model.json lacks classes or preprocessing.image_size");
  // An older decoder differs in rare files alone.
  if (version > DECODER_VERSION)
    throw new BadExport(
      `model.json was written by decoder version ${version}, this page has version ` +
        `${DECODER_VERSION}; build the page anew: make reader`,
    );
  return model;
}

export interface Outputs {
  probabilities: Float32Array;
  age_months: number | null;
  features: Float32Array | null;
  /** Mahalanobis distance of the features; null without `outliers`. */
  distance: number | null;
  saliency: { data: Float32Array; width: number; height: number } | null;
}

export type Facts = Pick<Decoded, "format" | "bits" | "notes">;

export type Request =
  | { type: "start"; model: ModelFile; base: string }
  | { type: "read"; id: number; data: Uint8Array }
  | { type: "thumbnail"; id: number; data: Uint8Array; side: number };

export type Reply =
  | { type: "loading"; done: number; total: number }
  | { type: "ready"; threads: number }
  | { type: "failed"; reason: string }
  | { type: "image"; id: number; display: Display; region: Region; facts: Facts }
  | { type: "outputs"; id: number; outputs: Outputs; decodeMs: number; modelMs: number }
  | { type: "refused"; id: number; reason: string }
  | { type: "thumbnail"; id: number; square: Uint8Array };
