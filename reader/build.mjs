// Builds the page into infantxray/export_assets/built: reader.html and the folder reader/.
import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const built = join(here, "..", "infantxray", "export_assets", "built");
const assets = join(built, "reader");

rmSync(built, { recursive: true, force: true });
mkdirSync(assets, { recursive: true });
const { metafile } = await build({
  absWorkingDir: here,
  entryPoints: { main: "src/main.ts", worker: "src/worker.ts", style: "src/style.css" },
  outdir: assets,
  bundle: true,
  splitting: true,
  format: "esm",
  target: "es2022",
  minify: true,
  metafile: true,
  legalComments: "none",
  conditions: ["onnxruntime-web-use-extern-wasm"],
  // Reached under Node.js alone.
  external: ["fs", "path"],
  loader: { ".wasm": "file", ".woff2": "file" },
  assetNames: "[name]",
  chunkNames: "chunk-[hash]",
});
copyFileSync(join(here, "src", "index.html"), join(built, "reader.html"));
const ort = "node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.mjs";
// Some hosts send .mjs with a type that browsers do not run.
copyFileSync(join(here, ort), join(assets, "ort-wasm-simd-threaded.js"));

const packages = new Set(
  Object.keys(metafile.inputs).map((path) => /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path)?.[1]),
);
const notices = [...packages].filter(Boolean).sort().map((name) => {
  const folder = join(here, "node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
  const text = file ? `\n\n${readFileSync(join(folder, file), "utf8").trim()}` : "";
  return `${name} ${version}, ${license}, https://www.npmjs.com/package/${name}${text}\n`;
});
writeFileSync(join(assets, "licenses.txt"), notices.join(`\n${"-".repeat(80)}\n`));
