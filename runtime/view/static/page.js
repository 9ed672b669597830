// What all parts of the page share. Everything from the server goes into it as text, never as markup.

export const $ = (id) => document.getElementById(id);

export const state = {
  scans: [], // {key, name, mark}
  current: null, // {scan, details}
  loading: new AbortController(), // of the scan in hand
  remarks: [], // on the reader's own file
  panes: {}, // by figure; all look at the same place
};

export function element(tag, text, properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text }, properties);
}

export function press(buttons, chosen) {
  for (const button of buttons) button.setAttribute("aria-pressed", String(chosen(button)));
}

// In a pane, where its picture will be.
export function say(id, text) {
  $(id).querySelector("p").textContent = text;
}

export function warn(text, problem) {
  $("warnings").append(element("p", text, { className: problem ? "problem" : "" }));
}

export function compact(value) {
  return Number.isFinite(value) ? String(Number(value.toPrecision(4))) : "";
}
