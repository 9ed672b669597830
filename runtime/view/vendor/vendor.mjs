// Writes NiiVue, as its authors bundle it, and the licences of all that is in the bundle, to ../static.
// npm has compared the packages with package-lock.json before; run by `make vendor`.

import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { gzipSync } from "node:zlib";

const here = new URL(".", import.meta.url);
const at = (path) => new URL(path, here);
const packages = JSON.parse(readFileSync(at("package-lock.json"))).packages;

// The package has its minified module as an encoded string, to be put into pages.
const { esm } = await import(at("node_modules/@niivue/niivue/dist/index.min.js"));
writeFileSync(at("../static/niivue.js.gz"), gzipSync(decodeURIComponent(esm), { level: 9 }));

const texts = [];
for (const [folder, { version, license, optional }] of Object.entries(packages)) {
  if (!folder || optional) continue;
  const name = folder.replace("node_modules/", "");
  const file = readdirSync(at(folder)).find((entry) => /^licen[cs]e/i.test(entry));
  // NiiVue's package lacks its licence, which lies in its repository.
  const text = readFileSync(file ? at(`${folder}/${file}`) : at(`${name.split("/").at(-1)}.LICENSE`), "utf8");
  texts.push(`${name} ${version} (${license})\n\n${text.trim()}\n`);
}
const about = "niivue.js.gz is NiiVue's own minified module, https://github.com/niivue/niivue, unchanged.\nIt holds these packages.\n";
writeFileSync(at("../static/niivue.LICENSE"), [about, ...texts].join(`\n${"-".repeat(80)}\n\n`));
