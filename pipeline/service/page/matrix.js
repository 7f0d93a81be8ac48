// A self-similarity matrix as a picture to listen by.

// Five stops of the palette viridis (matplotlib), which stays in order for colour-blind eyes and in grey.
export const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

export class Matrix {
  /**
   * @param canvas where to draw
   * @param onPick is called with {column_s, row_s, cosine} of a chosen point, and whether it is to be heard
   */
  constructor(canvas, onPick) {
    this.canvas = canvas;
    this.onPick = onPick;
    this.data = null;
    this.point = null;
    this.playhead_s = null;
    canvas.addEventListener("click", (event) => this.#onClick(event));
    canvas.addEventListener("keydown", (event) => this.#onKey(event));
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  /** Show what GET /tracks/{id}/similarity gave, or nothing. */
  show(data) {
    this.data = data;
    this.point = null;
    this.playhead_s = null;
    this.image = data && paint(data);
    this.draw();
  }

  setPlayhead(time_s) {
    if (time_s === this.playhead_s) return;
    this.playhead_s = time_s;
    this.draw();
  }

  draw() {
    const size = fitToScreen(this.canvas);
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, size.width, size.height);
    if (!this.data) return;
    context.imageSmoothingEnabled = false;
    // The last bin may be a shorter one: drawn whole, it reaches a little over the edge.
    const span = (this.data.num_bins * this.data.bin_s) / this.data.duration_s;
    context.drawImage(this.image, 0, 0, size.width * span, size.height * span);
    if (this.point) this.#drawCross(context, size);
    if (this.playhead_s !== null) this.#drawPlayhead(context, size);
  }

  #drawCross(context, { width, height }) {
    const x = (this.point.column_s / this.data.duration_s) * width;
    const y = (this.point.row_s / this.data.duration_s) * height;
    for (const [style, lineWidth] of [["#000", 3], ["#fff", 1]]) {
      context.strokeStyle = style;
      context.lineWidth = lineWidth * devicePixelRatio;
      context.beginPath();
      context.moveTo(x, 0);
      context.lineTo(x, height);
      context.moveTo(0, y);
      context.lineTo(width, y);
      context.stroke();
    }
  }

  #drawPlayhead(context, { width, height }) {
    const x = Math.min(1, this.playhead_s / this.data.duration_s) * width;
    context.fillStyle = "#ff5a1f";
    context.fillRect(x - devicePixelRatio, 0, 2 * devicePixelRatio, height);
  }

  #pick(column_s, row_s, isHeard) {
    const within = (time_s) => Math.max(0, Math.min(time_s, this.data.duration_s - 0.001));
    this.point = { column_s: within(column_s), row_s: within(row_s) };
    const column = Math.floor(this.point.column_s / this.data.bin_s);
    const row = Math.floor(this.point.row_s / this.data.bin_s);
    const share = this.data.bytes[row * this.data.num_bins + column] / 255;
    this.draw();
    this.onPick({ ...this.point, cosine: this.data.low + share * (this.data.high - this.data.low) }, isHeard);
  }

  #onClick(event) {
    if (!this.data) return;
    const box = this.canvas.getBoundingClientRect();
    const column_s = ((event.clientX - box.left) / box.width) * this.data.duration_s;
    const row_s = ((event.clientY - box.top) / box.height) * this.data.duration_s;
    this.#pick(column_s, row_s, true);
  }

  #onKey(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Enter: [0, 0], " ": [0, 0] };
    const step = steps[event.key];
    if (!step || !this.data) return;
    event.preventDefault();
    const { column_s, row_s } = this.point ?? { column_s: 0, row_s: 0 };
    const step_s = event.shiftKey ? this.data.bin_s : Math.max(this.data.bin_s, this.data.duration_s / 40);
    this.#pick(column_s + step[0] * step_s, row_s + step[1] * step_s, step[0] === 0 && step[1] === 0);
  }
}

/** Give a canvas as many pixels as it covers on the screen, and return them. */
export function fitToScreen(canvas) {
  const width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
  const height = Math.max(1, Math.round(canvas.clientHeight * devicePixelRatio));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  return { width, height };
}

/** Paint one pixel a bin. Colours follow the rank of a value: cosines of one track lie close together. */
function paint(data) {
  data.bytes = Uint8Array.from(atob(data.values), (character) => character.charCodeAt(0));
  const counts = new Float64Array(256);
  for (const value of data.bytes) counts[value] += 1;
  const colours = [];
  let below = 0;
  for (const count of counts) {
    colours.push(mix((below + count / 2) / data.bytes.length));
    below += count;
  }
  const image = new OffscreenCanvas(data.num_bins, data.num_bins);
  const pixels = new ImageData(data.num_bins, data.num_bins);
  data.bytes.forEach((value, index) => pixels.data.set([...colours[value], 255], 4 * index));
  image.getContext("2d").putImageData(pixels, 0, 0);
  return image;
}

function mix(share) {
  const position = Math.min(share, 0.9999) * (STOPS.length - 1);
  const low = Math.floor(position);
  return STOPS[low].map((value, index) => value + (STOPS[low + 1][index] - value) * (position - low));
}
