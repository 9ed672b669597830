// The page: a list of scans, three panes, what is known about the scan in hand, and the reader's mark.
// Everything from the server goes into the page as text, never as markup.

import { compact, openPanes, PLANES } from "./panes.js";

const $ = (id) => document.getElementById(id);
const BINS = 128;
const REACH = 1.25; // of the window's white, where the histogram ends
const PAUSE = 800; // ms without a key after which a note is saved
const FLOOR = 0.03; // of it, below which is background

let scans = []; // {key, name, mark}
let current = null; // {scan, details}
let loading = new AbortController();
let saving = Promise.resolve();
let typing = 0;
export const panes = await openPanes(document.querySelectorAll("#panes figure"));

async function ask(address, options) {
  const answer = await fetch(address, options);
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Error(said.error ?? `The server answered ${answer.status}.`);
}

function element(tag, text, properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text }, properties);
}

// ---- the list

async function list() {
  const found = await (await ask("scans")).json();
  scans = found.scans;
  const rows = scans.map((scan) => {
    const row = element("li", scan.name, { tabIndex: 0 });
    row.dataset.key = scan.key;
    row.addEventListener("click", () => show(scan));
    row.addEventListener("keydown", (event) => event.key === "Enter" && show(scan));
    return row;
  });
  for (const [name, why] of Object.entries(found.failed)) {
    const row = element("li", name, { className: "failed" });
    row.append(element("small", why));
    rows.push(row);
  }
  $("scans").replaceChildren(...rows);
  document.title = `udean: ${found.folder}`;
  document.querySelector("h1").title = found.folder;
  scans.forEach(paint);
  tally();
  return found.problem;
}

function row(scan) {
  return $("scans").querySelector(`[data-key="${scan.key}"]`);
}

function paint(scan) {
  row(scan).className = scan.mark?.rating ?? "";
}

function tally() {
  const marked = scans.filter((scan) => scan.mark?.rating).length;
  $("tally").textContent = `${marked} of ${scans.length} marked`;
}

function filter() {
  const words = $("filter").value.toLowerCase().split(/\s+/);
  for (const row of $("scans").children) {
    row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  }
}

function neighbour(step) {
  const shown = scans.filter((scan) => !row(scan).hidden);
  const at = shown.indexOf(current?.scan);
  const next = shown[at < 0 ? 0 : at + step];
  if (next) show(next);
}

// ---- one scan

export async function show(scan, volume = 0) {
  loading.abort();
  const mine = (loading = new AbortController());
  const signal = mine.signal;
  if (current?.scan !== scan) saveNote();
  const before = panes.sr.ready ? panes.sr.scene.crosshairPos : [0.5, 0.5, 0.5];
  current = { scan, details: null };
  document.body.dataset.state = "loading";
  for (const row of $("scans").querySelectorAll("[aria-current]")) row.removeAttribute("aria-current");
  row(scan).setAttribute("aria-current", "true");
  row(scan).scrollIntoView({ block: "nearest" });
  history.replaceState(null, "", `#${scan.key}`);
  $("name").textContent = scan.name;
  showMark();
  for (const [id, pane] of Object.entries(panes)) {
    pane.clear();
    say(id, "…");
  }
  $("warnings").replaceChildren();
  $("facts").replaceChildren();
  $("histogram").replaceChildren();
  try {
    const details = await (await ask(`scans/${scan.key}/${volume}`, { signal })).json();
    current.details = details;
    describe(details);
    if (details.window) {
      $("low").value = position(details.window[0]);
      $("high").value = position(details.window[1]);
    }
    await Promise.all(Object.entries(panes).map(async ([id, pane]) => {
      if (id !== "sr" && details.problem) {
        say(id, details.problem);
        return;
      }
      const buffer = await read(id, id, signal);
      if (signal.aborted) return;
      await pane.show(buffer, `${id}.nii`, details.window ?? [NaN, NaN]);
      say(id, "");
    }));
    if (signal.aborted) return;
    for (const pane of Object.values(panes)) if (pane.ready) pane.align(panes.sr);
    panes.sr.scene.crosshairPos = before;
    panes.sr.drawScene();
    panes.sr.createOnLocationChange();
    if (details.window) plot();
    await cover();
    if (!signal.aborted) document.body.dataset.state = "shown";
  } catch (error) {
    if (signal.aborted) return;
    warn(error.message, true);
    for (const [id, pane] of Object.entries(panes)) if (!pane.ready) say(id, "not shown");
    document.body.dataset.state = "failed";
  }
}

async function read(what, pane, signal) {
  const { scan, details } = current;
  const answer = await ask(`scans/${scan.key}/${details.volume}/${what}.nii`, { signal });
  const data = new Uint8Array(Number(answer.headers.get("Content-Length")));
  let filled = 0;
  for await (const piece of pieces(answer.body.getReader())) {
    data.set(piece, filled);
    filled += piece.length;
    if (panes[pane].ready === false) say(pane, `${Math.floor((100 * filled) / data.length)} %`);
  }
  if (filled < data.length) throw new Error("The server broke off: is it still running?");
  return data.buffer;
}

async function* pieces(reader) {
  for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
}

function say(id, text) {
  $(id).querySelector("p").textContent = text;
}

function warn(text, problem) {
  $("warnings").append(element("p", text, { className: problem ? "problem" : "" }));
}

function describe(details) {
  if (details.problem) warn(details.problem, true);
  for (const warning of details.warnings) warn(warning, false);
  $("facts").replaceChildren(...Object.entries(details.facts).map(([name, value]) => {
    const line = element("tr", "");
    line.append(element("th", name), element("td", value));
    return line;
  }));
  $("sidecar").textContent = JSON.stringify(details.sidecar, null, 2);
  $("series").hidden = details.volumes === 1;
  $("volume").max = details.volumes;
  $("volume").value = details.volume + 1;
  $("volumes").textContent = details.volumes;
}

// ---- difference, window, histogram

async function cover() {
  const what = $("overlay").value;
  const { details } = current ?? {};
  panes.sr.uncover();
  panes.lr.uncover();
  $("scale").hidden = !what || !details?.error;
  if ($("scale").hidden) return;
  $("least").textContent = compact(-details.error);
  $("most").textContent = `+${compact(details.error)}`;
  const id = what === "difference" ? "sr" : "lr";
  const { signal } = loading;
  const buffer = await read(what, id, signal);
  if (!signal.aborted && $("overlay").value === what) await panes[id].lay(buffer, `${what}.nii`, details.error);
}

function range() {
  const [low, high] = current.details.window;
  return [low, low + (high - low) * REACH];
}

function position(value) {
  const [low, high] = range();
  return Math.round(((value - low) / (high - low)) * 1000);
}

function chosen() {
  const [low, high] = range();
  return ["low", "high"].map((id) => low + ((high - low) * $(id).value) / 1000);
}

function setWindow() {
  if (!current?.details?.window) return;
  if (Number($("low").value) >= Number($("high").value)) $("low").value = $("high").value - 1;
  for (const pane of Object.values(panes)) pane.window(...chosen());
  shade();
}

function plot() {
  const [low, high] = range();
  const floor = low + FLOOR * (high - low);
  const lines = Object.entries(panes).filter(([, pane]) => pane.ready)
    .map(([id, pane]) => [id, pane.histogram(floor, high, BINS)]);
  const top = Math.max(...lines.flatMap(([, counts]) => [...counts])) || 1;
  const start = 256 * FLOOR;
  $("histogram").replaceChildren(svg("rect", { y: 0, height: 80 }), ...lines.map(([id, counts]) => svg("polyline", {
    class: id,
    points: [...counts].map((count, n) => {
      const x = start + ((n + 0.5) / BINS) * (256 - start);
      return `${x.toFixed(1)},${(77 - 74 * Math.sqrt(count / top)).toFixed(1)}`;
    }).join(" "),
  })));
  shade();
}

function shade() {
  const [low, high] = ["low", "high"].map((id) => 0.256 * $(id).value);
  const rect = $("histogram").querySelector("rect");
  rect?.setAttribute("x", low);
  rect?.setAttribute("width", high - low);
  document.querySelector("#legend output").textContent = chosen().map(compact).join(" – ");
}

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// ---- the mark

function showMark() {
  const mark = current.scan.mark;
  for (const button of $("ratings").children) {
    button.setAttribute("aria-pressed", String(button.dataset.rating === mark?.rating));
  }
  if (document.activeElement !== $("note")) $("note").value = mark?.note ?? "";
  $("saved").className = "";
  $("saved").textContent = mark ? `saved ${mark.timestamp.replace("T", " ").replace("Z", " UTC")}` : "";
}

function posted(scan, change, more = {}) {
  const { rating = "", note = "" } = { ...scan.mark, ...change };
  return ask(`scans/${scan.key}/0/mark`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ rating, note }),
    ...more,
  });
}

// One after the other, each a change of what is saved by then: a click on Good ends a note and rates at once.
function save(scan, change) {
  saving = saving.then(async () => {
    const answer = await posted(scan, change);
    scan.mark = (await answer.json()).mark;
    paint(scan);
    tally();
    if (current.scan === scan) showMark();
  }).catch((error) => {
    $("saved").className = "problem";
    $("saved").textContent = `${scan.name} is not marked. ${error.message}`;
  });
}

function rate(rating) {
  if (current) save(current.scan, { rating, note: $("note").value });
}

function noted() {
  return current && $("note").value.trim() !== (current.scan.mark?.note ?? "");
}

function saveNote() {
  clearTimeout(typing);
  if (noted()) save(current.scan, { note: $("note").value });
}

function typed() {
  clearTimeout(typing);
  typing = setTimeout(saveNote, PAUSE);
}

// The page is going: nothing that waits would be heard.
function leave() {
  if (noted()) posted(current.scan, { note: $("note").value }, { keepalive: true }).catch(() => {});
}

// ---- hands

function planes(name) {
  for (const button of $("slices").children) {
    button.setAttribute("aria-pressed", String(button.dataset.planes === name));
  }
  for (const pane of Object.values(panes)) pane.setSliceType(PLANES[name]);
}

function smooth() {
  for (const pane of Object.values(panes)) pane.setInterpolation(!$("smooth").checked);
}

function cycle() {
  const select = $("overlay");
  select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
  covered();
}

function covered() {
  cover().catch((error) => error.name !== "AbortError" && warn(error.message, true));
}

const KEYS = {
  n: () => neighbour(1), ArrowRight: () => neighbour(1),
  p: () => neighbour(-1), ArrowLeft: () => neighbour(-1),
  ArrowUp: () => panes.sr.ready && panes.sr.step(1),
  ArrowDown: () => panes.sr.ready && panes.sr.step(-1),
  g: () => rate("good"), b: () => rate("bad"), u: () => rate("unsure"),
  x: () => { $("note").value = ""; rate(""); },
  m: () => $("note").focus(),
  d: cycle,
  s: () => $("smooth").click(),
  1: () => planes("axial"), 2: () => planes("coronal"), 3: () => planes("sagittal"), 4: () => planes("all"),
  "+": () => panes.sr.zoom(1.25), "=": () => panes.sr.zoom(1.25), "-": () => panes.sr.zoom(0.8),
  0: () => panes.sr.zoom(0),
  "/": () => $("filter").focus(),
  "?": () => $("keys").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.target === $("note") && event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    $("note").blur();
  } else if (event.key === "Escape") {
    document.activeElement.blur();
  }
  if (event.target.matches("textarea, select, input:not([type=checkbox])") || $("keys").open) return;
  if (event.target.matches("canvas")) event.stopPropagation(); // NiiVue has keys of its own
  if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
}, true);

for (const pane of Object.values(panes)) {
  pane.canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    pane.zoom(event.deltaY < 0 ? 1.1 : 1 / 1.1);
  }, { capture: true, passive: false });
  pane.onIntensityChange = ({ cal_min: low, cal_max: high }) => {
    if (!current?.details?.window) return;
    $("low").value = position(low);
    $("high").value = position(high);
    setWindow();
  };
}
const showPlace = panes.sr.onLocationChange;
panes.sr.onLocationChange = (location) => {
  showPlace(location);
  $("place").textContent = `${[...location.mm].slice(0, 3).map((mm) => mm.toFixed(1)).join(", ")} mm`;
};
$("scans").addEventListener("keydown", (event) => event.key === "Enter" && event.stopPropagation());
$("filter").addEventListener("input", filter);
$("note").addEventListener("blur", saveNote);
$("note").addEventListener("input", typed);
window.addEventListener("pagehide", leave);
$("overlay").addEventListener("change", covered);
$("smooth").addEventListener("change", smooth);
$("low").addEventListener("input", setWindow);
$("high").addEventListener("input", setWindow);
$("volume").addEventListener("change", () => show(current.scan, $("volume").valueAsNumber - 1 || 0));
$("help").addEventListener("click", () => $("keys").showModal());
$("keys").addEventListener("click", () => $("keys").close());
for (const button of $("ratings").children) button.addEventListener("click", () => rate(button.dataset.rating));
for (const button of $("slices").children) button.addEventListener("click", () => planes(button.dataset.planes));

planes("all");
try {
  const problem = await list();
  const wanted = scans.find((scan) => `#${scan.key}` === location.hash) ?? scans[0];
  if (wanted) await show(wanted);
  if (problem) warn(problem, true);
} catch (error) {
  warn(error.message, true);
}
