// The reader's mark of a scan: a rating and a note, kept by the server.

import { $, press, state } from "./page.js";
import { ask } from "./server.js";
import { paint, tally } from "./list.js";

const PAUSE = 800; // ms without a key after which a note is saved

let saving = Promise.resolve();
let typing = 0;

export function showMark() {
  const mark = state.current.scan.mark;
  press($("ratings").children, (button) => button.dataset.rating === mark?.rating);
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
    if (state.current.scan === scan) showMark();
  }).catch((error) => {
    $("saved").className = "problem";
    $("saved").textContent = `${scan.name} is not marked. ${error.message}`;
  });
}

export function rate(rating) {
  if (state.current) save(state.current.scan, { rating, note: $("note").value });
}

export function unmark() {
  $("note").value = "";
  rate("");
}

function noted() {
  return state.current && $("note").value.trim() !== (state.current.scan.mark?.note ?? "");
}

export function saveNote() {
  clearTimeout(typing);
  if (noted()) save(state.current.scan, { note: $("note").value });
}

function typed() {
  clearTimeout(typing);
  typing = setTimeout(saveNote, PAUSE);
}

// The page is going: nothing that waits would be heard.
function leave() {
  if (noted()) posted(state.current.scan, { note: $("note").value }, { keepalive: true }).catch(() => {});
}

$("note").addEventListener("blur", saveNote);
$("note").addEventListener("input", typed);
window.addEventListener("pagehide", leave);
for (const button of $("ratings").children) button.addEventListener("click", () => rate(button.dataset.rating));
