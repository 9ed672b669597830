// Which intensities are black and white, over a histogram of the volumes.

import { $, compact, state } from "./page.js";

const BINS = 128;
const REACH = 1.25; // of the window's white, where the histogram ends
const FLOOR = 0.03; // of it, below which is background
const PLOTTED = ["lr", "tricubic", "sr"];

function range() {
  const [low, high] = state.current.details.window;
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

// Panes that show intensities of the scan.
function grey() {
  return Object.entries(state.panes).filter(([id, pane]) => id !== "error" && pane.ready).map(([, pane]) => pane);
}

// To the intensities given, else to what the sliders say.
export function setWindow([low, high] = []) {
  if (!state.current?.details?.window) return;
  if (low !== undefined) {
    $("low").value = position(low);
    $("high").value = position(high);
  }
  if (Number($("low").value) >= Number($("high").value)) $("low").value = $("high").value - 1;
  for (const pane of grey()) pane.window(...chosen());
  shade();
}

export function plot() {
  const [low, high] = range();
  const floor = low + FLOOR * (high - low);
  const lines = PLOTTED.filter((id) => state.panes[id].ready)
    .map((id) => [id, state.panes[id].histogram(floor, high, BINS)]);
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
  const values = chosen().map(compact);
  ["low", "high"].forEach((id, n) => $(id).setAttribute("aria-valuetext", values[n]));
  document.querySelector("#legend output").textContent = values.join(" – ");
}

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

for (const id of ["low", "high"]) $(id).addEventListener("input", () => setWindow());
