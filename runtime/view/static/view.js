// The page: one scan at a time in its panes, what is known about it, and the keys.

import { choosePlanes, compare, flip, lay, showSlice } from "./layout.js";
import { drawer, list, neighbour, point } from "./list.js";
import { rate, saveNote, showMark, unmark } from "./marks.js";
import { $, compact, element, say, state, warn } from "./page.js";
import { ask } from "./server.js";
import { plot, setWindow } from "./window.js";

const SHOWN = ["lr", "tricubic", "sr"];

const Pane = document.createElement("canvas").getContext("webgl2")
  ? (await import("./panes.js")).Pane
  : (await import("./still.js")).Still;
export const { panes } = state;

// A pane in a figure; opened when it is first needed.
async function open(id) {
  if (panes[id]) return panes[id];
  const pane = await Pane.open($(id));
  const value = $(id).querySelector("output");
  pane.onLocationChange = ({ values, mm }) => {
    value.textContent = values?.[0] ? compact(values[0].value) : "";
    if (id !== "sr") return;
    showSlice();
    $("place").textContent = mm ? `${[...mm].slice(0, 3).map((part) => part.toFixed(1)).join(", ")} mm` : "";
  };
  pane.onIntensityChange = ({ cal_min: low, cal_max: high }) => {
    if (id !== "error") setWindow([low / pane.gain, high / pane.gain]);
  };
  panes[id] = pane;
  for (const one of Object.values(panes)) one.peers = Object.values(panes).filter((other) => other !== one);
  return pane;
}

export async function show(scan, volume = 0) {
  state.loading.abort();
  const { signal } = (state.loading = new AbortController());
  if (state.current?.scan !== scan) {
    saveNote();
    remove();
  }
  const sight = panes.sr.sight;
  state.current = { scan, details: null };
  document.body.dataset.state = "loading";
  point(scan);
  history.replaceState(null, "", `#${scan.key}`);
  $("name").textContent = scan.name;
  showMark();
  for (const [id, pane] of Object.entries(panes)) {
    if (id === "other") continue;
    pane.clear();
    say(id, "…");
  }
  $("warnings").replaceChildren();
  $("facts").replaceChildren();
  $("histogram").replaceChildren();
  try {
    const address = `scans/${scan.key}/${volume}`;
    const details = await (await ask(address, { signal })).json();
    state.current.details = details;
    describe(details);
    $("error").hidden = !details.error_map;
    lay();
    const wanted = details.error_map ? [...SHOWN, "error"] : SHOWN;
    await Promise.all(wanted.map(async (id) => {
      if ((id === "lr" || id === "tricubic") && details.problem) {
        say(id, details.problem);
        return;
      }
      const pane = await open(id);
      await pane.load(`${address}/${id}`, details, signal, (share) => say(id, `${Math.floor(100 * share)} %`));
      if (!signal.aborted) say(id, "");
    }));
    if (signal.aborted) return;
    lay();
    for (const pane of Object.values(panes)) if (pane.ready) pane.align(panes.sr);
    setWindow(details.window ?? []);
    panes.sr.look(sight);
    if (Pane.draws && details.window) plot();
    await cover();
    if (!signal.aborted) document.body.dataset.state = "shown";
  } catch (error) {
    if (signal.aborted) return;
    warn(error.message, true);
    for (const [id, pane] of Object.entries(panes)) if (!pane.ready) say(id, "not shown");
    document.body.dataset.state = "failed";
  }
}

function describe(details) {
  if (details.problem) warn(details.problem, true);
  for (const warning of [...details.warnings, ...state.remarks]) warn(warning, false);
  const facts = Object.entries(details.facts);
  $("facts").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  $("sidecar").textContent = JSON.stringify(details.sidecar, null, 2);
  $("series").hidden = details.volumes === 1;
  $("volume").max = details.volumes;
  $("volume").value = details.volume + 1;
  $("volumes").textContent = details.volumes;
  const interpolation = details.interpolation[0].toUpperCase() + details.interpolation.slice(1);
  for (const name of document.querySelectorAll(".interpolation")) {
    name.textContent = name.tagName === "B" ? interpolation : interpolation.split(" ").at(-1);
  }
  $("overlay").options[1].textContent = `SR − ${details.interpolation}`;
  $("overlay").options[2].textContent = `SR’s ${details.measurement} − scan’s`;
  document.querySelector("#error .ramp").textContent = details.error ? `0 – ${compact(details.error)}` : "";
  for (const [id, pane] of Object.entries(panes)) {
    pane.canvas.setAttribute("aria-label", `${$(id).querySelector("b").textContent} of ${details.name}`);
  }
}

async function cover() {
  const what = $("overlay").value;
  const { scan, details } = state.current ?? {};
  panes.sr.uncover();
  panes.lr.uncover();
  $("scale").hidden = !what || !details?.error;
  if ($("scale").hidden) return;
  $("least").textContent = compact(-details.error);
  $("most").textContent = `+${compact(details.error)}`;
  const pane = panes[what === "difference" ? "sr" : "lr"];
  const { signal } = state.loading;
  const address = `scans/${scan.key}/${details.volume}/${what}`;
  await pane.lay(address, details.error, signal, () => $("overlay").value === what);
}

function covered() {
  cover().catch((error) => error.name !== "AbortError" && warn(error.message, true));
}

function cycle() {
  const select = $("overlay");
  select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
  covered();
}

// ---- a file of the reader's

export async function add(file) {
  if (!file || !Pane.draws || !panes.sr.ready) return;
  const title = $("other").querySelector("b");
  title.textContent = file.name;
  $("other").hidden = false;
  const pane = await open("other");
  lay();
  say("other", "…");
  try {
    const said = await pane.read(file, panes.sr, state.current.details.window?.[1] ?? NaN);
    say("other", "");
    state.remarks = said.map((remark) => `${file.name}: ${remark}`);
    for (const remark of state.remarks) warn(remark, false);
    pane.align(panes.sr);
    setWindow();
    lay();
    panes.sr.look(panes.sr.sight);
  } catch {
    pane.clear();
    say("other", `${file.name} is not a volume that this page can read.`);
  }
}

function remove() {
  panes.other?.clear();
  state.remarks = [];
  $("other").hidden = true;
  $("file").value = "";
}

function dragged(event) {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  $("drop").hidden = event.type !== "dragover";
  if (event.type === "drop") add(event.dataTransfer.files[0]);
}

// ---- hands

function go(step) {
  const scan = neighbour(step);
  if (scan) show(scan);
}

function step(slices) {
  panes.sr.goto(panes.sr.slice.index + slices);
}

function smooth() {
  for (const pane of Object.values(panes)) pane.smooth($("smooth").checked);
}

function mirror() {
  if (!Pane.draws) return;
  const on = !panes.sr.opts.isRadiologicalConvention;
  for (const pane of Object.values(panes)) {
    pane.opts.sagittalNoseLeft = on;
    pane.setRadiologicalConvention(on);
  }
}

const KEYS = {
  n: () => go(1), ArrowRight: () => go(1),
  p: () => go(-1), ArrowLeft: () => go(-1),
  ArrowUp: () => step(1), ArrowDown: () => step(-1),
  g: () => rate("good"), b: () => rate("bad"), u: () => rate("unsure"),
  x: unmark,
  m: () => $("note").focus(),
  d: () => Pane.draws && cycle(),
  s: () => $("smooth").click(),
  1: () => choosePlanes("axial"), 2: () => choosePlanes("coronal"), 3: () => choosePlanes("sagittal"),
  4: () => choosePlanes("all"),
  a: () => compare(""), l: () => compare("lr"), t: () => compare("tricubic"), " ": flip,
  o: () => $("file").click(),
  r: mirror,
  "+": () => panes.sr.zoom(1.25), "=": () => panes.sr.zoom(1.25), "-": () => panes.sr.zoom(0.8),
  0: () => panes.sr.zoom(0),
  "/": () => {
    drawer(true);
    $("filter").focus();
  },
  "?": () => $("keys").showModal(),
};

document.addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (target === $("note") && key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    $("note").blur();
  } else if (key === "Escape") {
    document.activeElement.blur();
    drawer(false);
  }
  if (target.matches("textarea, select, input:not([type=checkbox])") || $("keys").open) return;
  if (target.matches("canvas")) event.stopPropagation(); // NiiVue has keys of its own
  if (key === " " && target.matches("button, input, summary")) return;
  if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(KEYS, key)) return;
  event.preventDefault();
  KEYS[key]();
}, true);

$("overlay").addEventListener("change", covered);
$("smooth").addEventListener("change", smooth);
$("volume").addEventListener("change", () => show(state.current.scan, $("volume").valueAsNumber - 1 || 0));
$("help").addEventListener("click", () => $("keys").showModal());
$("open").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => add($("file").files[0]));
$("remove").addEventListener("click", () => {
  remove();
  lay();
});
for (const kind of ["dragover", "dragleave", "drop"]) document.addEventListener(kind, dragged);

if (!Pane.draws) {
  $("still").hidden = false;
  document.querySelector("main").classList.add("still");
  for (const id of ["overlay", "intensities", "open"]) $(id).hidden = true;
}
try {
  for (const id of SHOWN) await open(id);
  lay();
  const problem = await list(show);
  const wanted = state.scans.find((scan) => `#${scan.key}` === location.hash) ?? state.scans[0];
  if (wanted) await show(wanted);
  if (problem) warn(problem, true);
} catch (error) {
  warn(error.message, true);
}
