// How the pictures lie: planes, side by side or alternately in one place, and which slice.

import { $, element, press, state } from "./page.js";

const TURN = 750; // ms a picture is shown while two blink
const SHORT = { lr: "LR", sr: "SR", error: "Error", other: "File" }; // names on narrow screens
const narrow = matchMedia("(max-width: 700px)");
const still = matchMedia("(prefers-reduced-motion: reduce)");

let planes = narrow.matches ? "axial" : "all";
let pair = ""; // with the SR scan: the picture that is shown alternately
let front = "sr"; // the picture that is shown if there is one at a time
let turning = 0;

export function choosePlanes(name) {
  planes = name;
  lay();
}

// Side by side, or alternately with the SR scan.
export function compare(with_) {
  pair = with_;
  front = "sr";
  lay();
  if (pair && !still.matches) start();
}

// The other one of a pair; of all if there is no pair.
export function flip() {
  stop();
  turn();
}

function turn() {
  const shown = pair ? [pair, "sr"] : visible();
  show(shown[(shown.indexOf(front) + 1) % shown.length]);
}

function start() {
  turning = setInterval(turn, TURN);
  lay();
}

function stop() {
  clearInterval(turning);
  turning = 0;
  $("halt").textContent = "▶ Blink";
}

function visible() {
  return [...$("panes").children].filter((figure) => !figure.hidden).map((figure) => figure.id);
}

function show(id) {
  front = id;
  for (const figure of $("panes").children) figure.classList.toggle("front", figure.id === id);
  press($("tabs").children, (button) => button.dataset.pane === id);
}

// Everything as it is chosen now; to be called when panes come or go.
export function lay() {
  const one = narrow.matches || pair !== "";
  document.querySelector("main").classList.toggle("flip", one);
  if (!pair) stop();
  $("halt").hidden = !pair;
  if (turning) $("halt").textContent = "❚❚ Stop";
  press($("layout").children, (button) => button.dataset.pair === pair);
  press($("planes").children, (button) => button.dataset.planes === planes);
  const ids = visible();
  $("tabs").replaceChildren(...ids.map((id) => {
    const name = $(id).querySelector("b").textContent;
    const button = element("button", narrow.matches ? SHORT[id] ?? name.split(" ").at(-1) : name);
    button.dataset.pane = id;
    button.addEventListener("click", () => {
      stop();
      show(id);
    });
    return button;
  }));
  show(ids.includes(front) ? front : "sr");
  const { clientWidth, clientHeight } = $("panes");
  for (const pane of Object.values(state.panes)) pane.planes(planes, one && clientWidth > clientHeight);
  showSlice();
}

export function showSlice() {
  const { name, index, count } = state.panes.sr.slice;
  $("sliced").textContent = name[0].toUpperCase() + name.slice(1);
  $("slice").max = Math.max(count - 1, 0);
  $("slice").value = index;
  $("slice").disabled = count === 0;
  const text = count ? `${index + 1} of ${count}` : "";
  $("slice").setAttribute("aria-valuetext", text);
  $("count").textContent = text;
}

$("slice").addEventListener("input", () => state.panes.sr.goto($("slice").valueAsNumber));
$("halt").addEventListener("click", () => (turning ? stop() : start()));
for (const button of $("planes").children) button.addEventListener("click", () => choosePlanes(button.dataset.planes));
for (const button of $("layout").children) button.addEventListener("click", () => {
  compare(button.dataset.pair === pair ? "" : button.dataset.pair); // narrow screens have no Side by side
});
narrow.addEventListener("change", lay);
