// Panes that look at the same place of several volumes, whatever their grids; drawn by NiiVue.

import { download } from "./server.js";
import { DRAG_MODE, MULTIPLANAR_TYPE, Niivue, NVImage, SHOW_RENDER, SLICE_TYPE } from "./niivue.js";

const PLANES = {
  axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL, all: SLICE_TYPE.MULTIPLANAR,
};
const AXES = { sagittal: 0, coronal: 1, axial: 2 };
const LINE = 1.2; // pixels
const SOLID = 0.5; // of the difference scale, from where its colours hide what is below
const FADING = 1; // of NiiVue's kinds of colour maps: below cal_min the more transparent, the closer to 0
const MILLIMETRES = { 1: 1e3, 3: 1e-3 }; // of a header's metre and micron, which NiiVue takes for millimetres
const SAMPLES = 2e5; // voxels by which a file's brightness is judged
const BRIGHTEST = 0.999; // of them is white, as in the scan's own window
const ALIKE = 2; // times brighter or darker: the same units, so the same window
const ASKEW = Math.cos(Math.PI / 180); // of two axes that are no more parallel

export class Pane extends Niivue {
  static draws = true;
  #shift = [0, 0, 0]; // mm by which this volume's field of view begins after the leader's
  #leading = false;
  #name = "all";
  gain = 1; // by which a file of its own is brighter than the scan

  constructor() {
    super({
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.42, 0.71, 1, 1],
      crosshairWidthUnit: "mm",
      dragAndDropEnabled: false,
      fontColor: [0.9, 0.92, 0.95, 1],
      fontMinPx: 11,
      isNearestInterpolation: true,
      isRadiologicalConvention: true,
      loadingText: "",
      logLevel: "silent",
      mouseEventConfig: {
        leftButton: { primary: DRAG_MODE.crosshair, withShift: DRAG_MODE.pan },
        rightButton: DRAG_MODE.contrast,
        centerButton: DRAG_MODE.pan,
      },
      multiplanarLayout: MULTIPLANAR_TYPE.COLUMN,
      multiplanarPadPixels: 4,
      multiplanarShowRender: SHOW_RENDER.NEVER,
      sagittalNoseLeft: true,
    });
    this.peers = [];
  }

  static async open(figure) {
    const pane = new Pane();
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    figure.querySelector("div").prepend(canvas);
    await pane.attachToCanvas(canvas);
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      pane.zoom(event.deltaY < 0 ? 1.1 : 1 / 1.1);
    }, { capture: true, passive: false });
    return pane;
  }

  get ready() {
    return this.volumes.length > 0;
  }

  // Cross-hairs as wide as they can be seen: a line thinner than a pixel may fall between two.
  drawScene() {
    if (this.ready && this.canvas?.clientWidth) {
      const { clientWidth: across, clientHeight: down } = this.canvas;
      const { extentsMinOrtho: least, extentsMaxOrtho: most } = this.volumes[0];
      const parts = this.#name === "all" ? 3 : 1; // into which the longer side falls
      const room = Math.min(Math.max(across, down) / parts, across, down) * this.scene.pan2Dxyzmm[3];
      const width = (LINE * Math.max(...most.map((end, n) => end - least[n]))) / room;
      if (Math.abs(width / this.opts.crosshairWidth - 1) > 0.2) this.setCrosshairWidth(width);
    }
    super.drawScene();
  }

  // Called by NiiVue after each drawing: the others follow, wherever it was that something moved.
  sync() {
    if (!this.peers?.length || !this.ready || this.peers.some((peer) => peer.#leading)) return;
    this.#leading = true;
    try {
      const place = this.frac2mm(this.scene.crosshairPos);
      const [x, y, z, zoom] = this.scene.pan2Dxyzmm;
      for (const peer of this.peers.filter((peer) => peer.ready)) {
        peer.scene.crosshairPos = peer.mm2frac(place);
        peer.scene.pan2Dxyzmm = [x, y, z].map((mm, n) => mm - this.#shift[n] + peer.#shift[n]).concat(zoom);
        peer.drawScene();
        peer.createOnLocationChange();
      }
    } finally {
      this.#leading = false;
    }
  }

  clear() {
    while (this.volumes.length) this.removeVolume(this.volumes.at(-1));
    this.gain = 1;
    this.drawScene();
  }

  // One of the server's volumes. error: whether it is one of errors, from 0 to the most in colours.
  async load(address, details, signal, progress) {
    const buffer = await download(`${address}.nii`, signal, progress);
    if (signal.aborted) return;
    const error = address.endsWith("/error");
    const [low, high] = error ? [0, details.error] : details.window ?? [NaN, NaN];
    const colormap = error ? "inferno" : "gray";
    const image = await NVImage.loadFromUrl({ url: buffer, name: "volume.nii", colormap, cal_min: low, cal_max: high });
    this.clear();
    this.addVolume(image);
  }

  // A file of the reader's. Returns what is to be said of it; its window follows the others'.
  async read(file, leader, white) {
    const image = await NVImage.loadFromFile({ file, colormap: "gray" });
    const size = MILLIMETRES[image.hdr.xyzt_units & 7];
    if (size) {
      image.hdr.affine = image.hdr.affine.map((row, n) => (n < 3 ? row.map((value) => value * size) : row));
      for (const n of [1, 2, 3]) image.hdr.pixDims[n] *= size;
      image.calculateRAS();
    }
    this.clear();
    this.addVolume(image);
    const { scl_slope: slope, scl_inter: inter } = image.hdr;
    const step = Math.max(1, Math.floor(image.img.length / SAMPLES)) | 1;
    const values = Float64Array.from({ length: Math.floor(image.img.length / step) }, (_, n) => image.img[n * step])
      .filter(Number.isFinite).sort();
    const brightest = values[Math.floor((values.length - 1) * BRIGHTEST)] * (slope || 1) + inter;
    const ratio = brightest / white;
    this.gain = !(ratio > 0) || (ratio < ALIKE && ratio > 1 / ALIKE) ? 1 : ratio;
    return [...this.#oddities(leader)];
  }

  * #oddities(leader) {
    const [own, other] = [this.volumes[0], leader.volumes[0]];
    const axis = (image, n) => [0, 1, 2].map((m) => image.matRAS[4 * m + n]);
    const askew = [0, 1, 2].some((n) => {
      const [a, b] = [axis(own, n), axis(other, n)];
      return a.reduce((sum, value, m) => sum + value * b[m], 0) < ASKEW * Math.hypot(...a) * Math.hypot(...b);
    });
    if (askew) yield "Its planes are oblique to those of the scan.";
    const middle = this.mm2frac(leader.frac2mm([0.5, 0.5, 0.5]));
    if ([...middle].some((part) => part < 0 || part > 1)) yield "It lies in a different place from the scan.";
    if (this.gain !== 1) yield `Its grey values are ${Number(this.gain.toPrecision(3))} times the scan’s.`;
  }

  // A difference over the volume, unless it is no longer `wanted` once it is here.
  async lay(address, most, signal, wanted) {
    const buffer = await download(`${address}.nii`, signal, () => {});
    if (signal.aborted || !wanted()) return;
    this.uncover();
    const image = await NVImage.loadFromUrl({
      url: buffer, name: "difference.nii", colormap: "warm", colormapNegative: "winter",
      cal_min: most * SOLID, cal_max: most,
    });
    image.colormapType = FADING;
    this.addVolume(image);
  }

  uncover() {
    while (this.volumes.length > 1) this.removeVolume(this.volumes.at(-1));
  }

  // The fields of view of two grids may begin at other places: lay the pictures, not their rims, over another.
  align(leader) {
    const own = this.volumes[0].extentsMinOrtho;
    this.#shift = leader.volumes[0].extentsMinOrtho.map((mm, n) => own[n] - mm);
    this.scene.pan2Dxyzmm = [...this.#shift, 1];
  }

  // Where this one looks, to be given to `look` of a later one.
  get sight() {
    return this.ready ? [...this.scene.crosshairPos] : [0.5, 0.5, 0.5];
  }

  look(sight) {
    this.scene.crosshairPos = sight;
    this.drawScene();
    this.createOnLocationChange();
  }

  window(low, high) {
    if (!this.ready) return;
    Object.assign(this.volumes[0], { cal_min: low * this.gain, cal_max: high * this.gain });
    this.updateGLVolume();
  }

  planes(name, wide) {
    this.#name = name;
    this.opts.multiplanarLayout = wide ? MULTIPLANAR_TYPE.ROW : MULTIPLANAR_TYPE.COLUMN;
    this.setSliceType(PLANES[name]);
  }

  smooth(on) {
    this.setInterpolation(!on);
  }

  // Zoom about the cross-hairs, which stay where they are on the screen.
  zoom(factor) {
    if (!this.ready) return;
    const { extentsMinOrtho: least, extentsMaxOrtho: most } = this.volumes[0];
    const [x, y, z, old] = this.scene.pan2Dxyzmm;
    const zoom = factor ? Math.min(Math.max(old * factor, 0.5), 20) : 1;
    const pan = [x, y, z].map((mm, n) => {
      const place = least[n] + this.scene.crosshairPos[n] * (most[n] - least[n]);
      return factor ? mm + place * (old - zoom) : this.#shift[n];
    });
    this.setPan2Dxyzmm([...pan, zoom]);
  }

  // Which slice is shown, of how many; of the axial ones where all planes are.
  get slice() {
    const name = this.#name === "all" ? "axial" : this.#name;
    const count = this.ready ? this.volumes[0].dimsRAS[AXES[name] + 1] : 0;
    const index = count ? Math.min(Math.floor(this.scene.crosshairPos[AXES[name]] * count), count - 1) : 0;
    return { name, index, count };
  }

  goto(index) {
    const { name, count } = this.slice;
    if (!count) return;
    const sight = this.sight;
    sight[AXES[name]] = (Math.min(Math.max(index, 0), count - 1) + 0.5) / count;
    this.look(sight);
  }

  // How often each intensity occurs between low and high, as a share; the background below is left out.
  histogram(low, high, bins) {
    const counts = new Float64Array(bins);
    const voxels = this.volumes[0].img;
    const stride = Math.max(1, Math.floor(voxels.length / 2e6)) | 1; // odd, so that no column is favoured
    let inside = 0;
    for (let n = 0; n < voxels.length; n += stride) {
      const bin = Math.floor(((voxels[n] - low) / (high - low)) * bins);
      if (bin >= 0 && bin < bins) {
        counts[bin] += 1;
        inside += 1;
      }
    }
    return counts.map((count) => count / (inside || 1));
  }
}
