// Panes for browsers without WebGL2: the server draws a plane at a time.

const NAMES = ["axial", "coronal", "sagittal"];

export class Still {
  static draws = false;
  static #name = "all";
  static #parts = { axial: 0.5, coronal: 0.5, sagittal: 0.5 }; // of the way through the planes; the same in all panes
  canvas; // where the pictures are
  #address = "";
  #planes = null; // of each name: how many
  gain = 1;
  peers = [];

  static async open(figure) {
    const pane = new Still();
    pane.canvas = Object.assign(document.createElement("div"), { className: "stills" });
    pane.canvas.setAttribute("role", "group");
    figure.querySelector("div").prepend(pane.canvas);
    return pane;
  }

  get ready() {
    return this.#planes !== null;
  }

  clear() {
    this.#planes = null;
    this.#draw();
  }

  async load(address, details) {
    this.#address = address;
    this.#planes = details.planes;
    this.#draw();
  }

  #draw() {
    const names = Still.#name === "all" ? NAMES : [Still.#name];
    this.canvas.replaceChildren(...(this.ready ? names : []).map((name) => {
      const picture = new Image();
      picture.alt = `${name}, ${this.#index(name) + 1} of ${this.#planes[name].count}`;
      picture.src = `${this.#address}-${name}-${this.#index(name)}.png`;
      picture.style.setProperty("--aspect", this.#planes[name].aspect);
      const place = document.createElement("span");
      place.append(picture);
      return place;
    }));
  }

  #index(name) {
    const { count } = this.#planes[name];
    return Math.min(Math.floor(Still.#parts[name] * count), count - 1);
  }

  get slice() {
    const name = Still.#name === "all" ? "axial" : Still.#name;
    return this.ready ? { name, index: this.#index(name), count: this.#planes[name].count } : { name, index: 0, count: 0 };
  }

  goto(index) {
    const { name, count } = this.slice;
    if (!count) return;
    Still.#parts[name] = (Math.min(Math.max(index, 0), count - 1) + 0.5) / count;
    for (const pane of [this, ...this.peers]) pane.#draw();
    this.onLocationChange?.({});
  }

  planes(name) {
    Still.#name = name;
    this.#draw();
    this.onLocationChange?.({});
  }

  get sight() {
    return null;
  }

  look() {
    this.onLocationChange?.({});
  }

  // What only volumes can.
  align() {}
  smooth() {}
  window() {}
  zoom() {}
  uncover() {}
}
