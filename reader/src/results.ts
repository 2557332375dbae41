/** The reading: conditions with the conformal set, age on a growth scale, the outlier warning. */

import type { ModelFile, Outputs } from "./contract";

export const element = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;

/** A new element with a class and text or children. */
function make(tag: string, className: string, ...content: (string | Node)[]): HTMLElement {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...content);
  return node;
}

export const title = (name: string): string => name.replaceAll("_", " ");

/** Percent with one decimal, never 0.0 or 100.0 for what is neither. */
export function percent(p: number): string {
  if (p > 0 && p < 0.001) return "< 0.1 %";
  if (p < 1 && p > 0.999) return "> 99.9 %";
  return `${(100 * p).toFixed(1)} %`;
}

/** An age as a clinician writes it: days, months, or years and months. */
export function ageText(months: number): string {
  const plural = (n: number, unit: string) => `${n} ${unit}${n === 1 ? "" : "s"}`;
  if (months < 1) return plural(Math.round(Math.max(months, 0) * 30.4375), "day");
  if (months < 23.5) return plural(months < 10 ? Number(months.toFixed(1)) : Math.round(months), "month");
  const whole = Math.round(months);
  const [years, rest] = [Math.floor(whole / 12), whole % 12];
  return rest && years < 10
    ? `${plural(years, "year")} ${plural(rest, "month")}`
    : plural(Math.round(months / 12), "year");
}

/** A range of ages in one unit: days, months or years. */
function rangeText(low: number, high: number): string {
  const [factor, unit] = high < 1 ? [30.4375, "days"] : high < 36 ? [1, "months"] : [1 / 12, "years"];
  const short = (value: number) => String(value < 10 ? Number(value.toFixed(1)) : Math.round(value));
  return `${short(low * factor)} to ${short(high * factor)} ${unit}`;
}

/** The classes by probability, and which belong to the conformal set: 1 − p ≤ threshold (LAC), and
    the most probable class in any case. */
export function ranked(model: ModelFile, probabilities: Float32Array) {
  const limit = model.conformal?.threshold;
  return [...probabilities]
    .map((p, index) => ({ index, p }))
    .sort((a, b) => b.p - a.p)
    .map((row, rank) => ({
      ...row, inSet: limit !== undefined && (rank === 0 || 1 - row.p <= limit),
    }));
}

/** Draws a bar a class; `onchoose` gets the class whose saliency to show. */
export function showConditions(
  model: ModelFile, outputs: Outputs, onchoose: (index: number) => void,
): void {
  const rows = ranked(model, outputs.probabilities);
  const list = element("bars");
  element("conditions").hidden = !rows.length; // A model of ages alone.
  if (model.multi_label)
    element("conditions").querySelector("legend")!.textContent = "Findings; several may be present";
  list.replaceChildren();
  const set = rows.filter((row) => row.inSet);
  const group = (label: string, members: typeof rows) => {
    if (!members.length) return;
    const box = make("div", members[0]!.inSet ? "group in-set" : "group");
    if (label) box.append(make("p", "group-label", label));
    box.append(...members.map((row) => bar(model, row, rows[0]!.index, outputs, onchoose)));
    list.append(box);
  };
  if (model.conformal) {
    const coverage = `${Math.round(100 * model.conformal.coverage)} %`;
    group(`${coverage} prediction set`, set);
    group("Outside the set", rows.filter((row) => !row.inSet));
  } else group("", rows);
  if (rows.some((row) => thresholdOf(model, row.index) !== undefined))
    list.append(make("p", "tick-legend", make("span", "tick-sample"), thresholdText(model)));
}

const thresholdOf = (model: ModelFile, index: number) => model.thresholds?.[model.classes[index]!];

/** What the marks on the bars are, with the rule that chose them. */
function thresholdText(model: ModelFile): string {
  const rule = model.threshold_rule;
  const [name, target] = (rule ?? "").split(":");
  const aim =
    name === "youden" ? "the largest sum of sensitivity and specificity"
    : target ? `a ${name} of ${percent(Number(target)).replace(".0", "")}`
    : "";
  return rule
    ? `Threshold by the rule ${rule}: ${aim && `${aim} `}on validation images`
    : "Threshold, chosen on validation images";
}

function bar(
  model: ModelFile, row: { index: number; p: number; inSet: boolean }, chosen: number,
  outputs: Outputs, onchoose: (index: number) => void,
): HTMLElement {
  const name = title(model.classes[row.index]!);
  const input = make("input", "") as HTMLInputElement;
  input.type = "radio";
  input.name = "condition";
  input.value = String(row.index);
  input.checked = row.index === chosen;
  input.disabled = !outputs.saliency;
  const described = row.inSet ? ", in the prediction set" : "";
  const threshold = thresholdOf(model, row.index);
  const reached = threshold === undefined ? ""
    : `, ${row.p >= threshold ? "at or above" : "below"} the threshold of ${percent(threshold)}`;
  input.setAttribute("aria-label", `${name}, ${percent(row.p)}${described}${reached}`);
  input.addEventListener("change", () => onchoose(row.index));
  const fill = make("span", "fill");
  fill.style.width = `${100 * row.p}%`;
  const track = make("span", "track", fill);
  if (threshold !== undefined) {
    const tick = make("span", "tick");
    tick.style.left = `${100 * threshold}%`;
    tick.title = `Threshold ${percent(threshold)}`;
    track.append(tick);
  }
  const label = make(
    "label", "bar", input, make("span", "name", name), track, make("span", "value", percent(row.p)),
  );
  label.dataset.condition = model.classes[row.index]!;
  return label;
}

export function showOutlier(model: ModelFile, outputs: Outputs): boolean {
  const limit = model.outliers?.threshold;
  const unlike = limit !== undefined && outputs.distance !== null && outputs.distance > limit;
  const box = element("outlier");
  box.hidden = !unlike;
  element("reading").classList.toggle("doubtful", unlike);
  box.replaceChildren();
  if (unlike)
    box.append(
      make("strong", "", "This does not look like the training data."),
      ` Its distance in the model's features is ${outputs.distance!.toFixed(1)}, the threshold is ` +
        `${limit.toFixed(1)}. Do not rely on the values below.`,
    );
  return unlike;
}

const TICKS = [0, 1, 3, 6, 12, 24, 48, 72, 120, 180, 240, 360, 600, 960];
const tickText = (months: number): string =>
  months === 0 ? "birth" : months < 12 ? `${months} mo` : `${months / 12} y`;
const SVG = "http://www.w3.org/2000/svg";

/** The age with its interval on a scale whose steps widen as growth slows. */
export function showAge(model: ModelFile, months: number | null): void {
  element("age").hidden = months === null || !model.age;
  if (months === null || !model.age) return;
  const half = model.age.interval_months ?? null;
  const [least, most] = model.age.range_months;
  const low = half === null ? months : Math.max(months - half, 0);
  const high = half === null ? months : Math.max(months + half, 0);
  const coverage = Math.round(100 * (model.age.coverage ?? model.conformal?.coverage ?? 0.9));
  element("age-value").textContent = ageText(months);
  const outside = months < least || months > most;
  element("age-interval").textContent =
    (half === null ? "" : `${coverage} % interval: ${rangeText(low, high)}`) +
    (outside ? `${half === null ? "" : ". "}Outside the ages of training.` : "");
  element("age-scale").replaceChildren(scale(months, [low, high], [least, most]));
}

function scale(
  months: number, interval: [number, number], trained: [number, number],
): SVGSVGElement {
  const [width, height, left, right] = [400, 64, 14, 14];
  const end = Math.max(trained[1], interval[1], 1) * 1.04;
  // The square root spreads the first months, in which a child changes most.
  const x = (age: number) =>
    left + (width - left - right) * Math.sqrt(Math.min(Math.max(age, 0), end) / end);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `Growth scale: ${ageText(months)}, from ${rangeText(...interval)}`);
  const draw = (tag: string, attributes: Record<string, string | number>, text = "") => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
    node.textContent = text;
    svg.append(node);
  };
  const span = (class_: string, [from, to]: [number, number], y: number, h: number) =>
    draw("rect", { class: class_, x: x(from), y, width: Math.max(x(to) - x(from), 1), height: h, rx: h / 2 });
  span("base", [0, end], 24, 8);
  span("trained", trained, 24, 8);
  span("interval", interval, 20, 16);
  draw("line", { class: "point", x1: x(months), x2: x(months), y1: 12, y2: 44 });
  let last = -Infinity;
  for (const tick of TICKS.filter((age) => age <= end)) {
    if (x(tick) - last < 36) continue;
    last = x(tick);
    draw("line", { class: "mark", x1: last, x2: last, y1: 34, y2: 40 });
    draw("text", { class: "tick", x: last, y: 57, "text-anchor": "middle" }, tickText(tick));
  }
  return svg;
}

const METRICS: Record<string, string> = {
  accuracy: "Accuracy",
  recall: "Recall (macro)",
  precision: "Precision (macro)",
  f1: "F1 (macro)",
  roc_auc: "ROC AUC (macro)",
  age_mae_months: "Age MAE (months)",
  n: "Test images",
};

export function showAbout(model: ModelFile): void {
  const list = element("about-list");
  const { image_size: size, resize } = model.preprocessing;
  const rows: [string, string | undefined][] = [
    ["Encoder", model.encoder],
    ["Date", model.date],
    ["Licence", model.license],
    ["Input", `${size} × ${size} pixels, ${resize}`],
    ["Metrics", model.metrics && model.temperature ? "test images, before calibration" : undefined],
    ...Object.entries(model.metrics ?? {})
      .filter(([name, value]) => name in METRICS && typeof value === "number")
      .map(([name, value]): [string, string] => {
        const number = value as number;
        return [METRICS[name]!, Number.isInteger(number) ? number.toLocaleString("en") : number.toPrecision(3)];
      }),
  ];
  for (const [name, value] of rows)
    if (value) list.append(make("dt", "", name), make("dd", "", value));
}
