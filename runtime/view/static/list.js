// The scans of the folder, and those that failed.

import { $, element, state } from "./page.js";
import { ask } from "./server.js";

// Fill the list; `show` is called with a scan that is chosen. Returns what is wrong with the marks, or "".
export async function list(show) {
  const found = await (await ask("scans")).json();
  state.scans = found.scans;
  const rows = state.scans.map((scan) => {
    const row = element("li", "");
    row.dataset.key = scan.key;
    row.append(element("button", scan.name));
    row.firstChild.addEventListener("click", () => {
      show(scan);
      drawer(false);
    });
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
  state.scans.forEach(paint);
  tally();
  return found.problem;
}

function row(scan) {
  return $("scans").querySelector(`[data-key="${scan.key}"]`);
}

// The scan in hand.
export function point(scan) {
  for (const other of $("scans").querySelectorAll("[aria-current]")) other.removeAttribute("aria-current");
  row(scan).setAttribute("aria-current", "true");
  row(scan).scrollIntoView({ block: "nearest" });
}

export function paint(scan) {
  const rating = scan.mark?.rating ?? "";
  row(scan).className = rating;
  row(scan).firstChild.setAttribute("aria-label", rating ? `${scan.name}, ${rating}` : scan.name);
}

export function tally() {
  const marked = state.scans.filter((scan) => scan.mark?.rating).length;
  $("tally").textContent = `${marked} of ${state.scans.length} marked`;
}

function filter() {
  const words = $("filter").value.toLowerCase().split(/\s+/);
  for (const row of $("scans").children) {
    row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  }
}

// The one that many rows before or after the scan in hand, if there is one.
export function neighbour(step) {
  const shown = state.scans.filter((scan) => !row(scan).hidden);
  const at = shown.indexOf(state.current?.scan);
  return shown[at < 0 ? 0 : at + step];
}

// On narrow screens the list is a drawer.
export function drawer(open) {
  $("nav").classList.toggle("open", open);
  $("menu").setAttribute("aria-expanded", String(open));
  if (open) $("filter").focus();
}

$("filter").addEventListener("input", filter);
$("menu").addEventListener("click", () => drawer($("menu").getAttribute("aria-expanded") !== "true"));
document.querySelector("main").addEventListener("pointerdown", (event) => {
  if (event.target !== $("menu")) drawer(false);
});
