// Three panes that look at the same place of three volumes, whatever their grids.

import { DRAG_MODE, MULTIPLANAR_TYPE, Niivue, NVImage, SHOW_RENDER, SLICE_TYPE } from "./niivue.js";

export const PLANES = {
  axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL, all: SLICE_TYPE.MULTIPLANAR,
};

const SOLID = 0.5; // of the difference scale, from where its colours hide what is below
const FADING = 1; // of NiiVue's kinds of colour maps: below cal_min the more transparent, the closer to 0

export class Pane extends Niivue {
  #shift = [0, 0, 0]; // mm by which this volume's field of view begins after the leader's
  #leading = false;

  constructor() {
    super({
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.42, 0.71, 1, 1],
      crosshairWidth: 0.4,
      crosshairWidthUnit: "percent",
      dragAndDropEnabled: false,
      fontColor: [0.9, 0.92, 0.95, 1],
      fontMinPx: 11,
      isNearestInterpolation: true,
      loadingText: "",
      logLevel: "error",
      mouseEventConfig: {
        leftButton: { primary: DRAG_MODE.crosshair, withShift: DRAG_MODE.pan },
        rightButton: DRAG_MODE.contrast,
        centerButton: DRAG_MODE.pan,
      },
      multiplanarLayout: MULTIPLANAR_TYPE.COLUMN,
      multiplanarPadPixels: 4,
      multiplanarShowRender: SHOW_RENDER.NEVER,
    });
    this.peers = [];
  }

  get ready() {
    return this.volumes.length > 0;
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
    this.drawScene();
  }

  async show(buffer, name, [low, high]) {
    const image = await NVImage.loadFromUrl({ url: buffer, name, colormap: "gray", cal_min: low, cal_max: high });
    this.clear();
    this.addVolume(image);
  }

  async lay(buffer, name, most) {
    this.uncover();
    const image = await NVImage.loadFromUrl({
      url: buffer, name, colormap: "warm", colormapNegative: "winter", cal_min: most * SOLID, cal_max: most,
    });
    image.colormapType = FADING;
    this.addVolume(image);
  }

  uncover() {
    while (this.volumes.length > 1) this.removeVolume(this.volumes.at(-1));
  }

  // The fields of view of two grids may begin at other places: lay the pictures, not their rims, over another.
  align(reference) {
    const own = this.volumes[0].extentsMinOrtho;
    this.#shift = reference.volumes[0].extentsMinOrtho.map((mm, n) => own[n] - mm);
    this.scene.pan2Dxyzmm = [...this.#shift, 1];
  }

  window(low, high) {
    if (!this.ready) return;
    Object.assign(this.volumes[0], { cal_min: low, cal_max: high });
    this.updateGLVolume();
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

  // One slice of the finest volume up or down in the planes shown.
  step(slices) {
    const axis = { [SLICE_TYPE.SAGITTAL]: 0, [SLICE_TYPE.CORONAL]: 1 }[this.opts.sliceType] ?? 2;
    const move = [0, 0, 0];
    move[axis] = slices;
    this.moveCrosshairInVox(...move);
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

export async function openPanes(figures) {
  const panes = {};
  for (const figure of figures) {
    const pane = (panes[figure.id] = new Pane());
    await pane.attachToCanvas(figure.querySelector("canvas"));
    const value = figure.querySelector("output");
    pane.onLocationChange = ({ values }) => {
      value.textContent = values?.[0] ? compact(values[0].value) : "";
    };
  }
  for (const pane of Object.values(panes)) pane.peers = Object.values(panes).filter((other) => other !== pane);
  return panes;
}

export function compact(value) {
  return Number.isFinite(value) ? String(Number(value.toPrecision(4))) : "";
}
