// The catalog as a map: tracks that sound alike lie close together. Click is a query.

import { drawLabels } from "./map_labels.js";
import { fitToScreen } from "./matrix.js";

const REACH_PX = 22;
const MARGIN = 0.06;

export class TrackMap {
  /**
   * @param canvas where to draw
   * @param name the element that names the track in focus
   * @param onChoose is called with the id of a track
   * @param load fetches the tracks of a box: {x_min, y_min, x_max, y_max}, or of the whole map: null
   */
  constructor(canvas, name, onChoose, load) {
    Object.assign(this, { canvas, name, onChoose, load });
    this.points = [];
    this.numTracks = 0;
    this.view = null; // what is seen: {x, y, width, height} in map units
    this.home = null;
    this.focus = null;
    this.query = null;
    this.hits = new Set();
    this.drag = null;
    canvas.addEventListener("pointerdown", (event) => this.#onDown(event));
    canvas.addEventListener("pointermove", (event) => this.#onMove(event));
    canvas.addEventListener("pointerup", (event) => this.#onUp(event));
    canvas.addEventListener("pointercancel", () => (this.drag = null));
    canvas.addEventListener("pointerleave", () => this.#setFocus(null));
    canvas.addEventListener("blur", () => this.#setFocus(null));
    canvas.addEventListener("keydown", (event) => this.#onKey(event));
    canvas.addEventListener("wheel", (event) => this.#onWheel(event), { passive: false });
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  async start() {
    await this.#fetch(null);
    if (!this.points.length) return;
    const xs = this.points.map((point) => point.x);
    const ys = this.points.map((point) => point.y);
    const [left, top] = [Math.min(...xs), Math.min(...ys)];
    const [width, height] = [Math.max(...xs) - left || 1, Math.max(...ys) - top || 1];
    this.home = {
      x: left - MARGIN * width, y: top - MARGIN * height,
      width: width * (1 + 2 * MARGIN), height: height * (1 + 2 * MARGIN),
    };
    this.showAll();
  }

  /** Mark the query and what was found; both are drawn even where the map is thinned out. */
  mark(query, hits) {
    const known = new Map(this.points.map((point) => [point.track_id, point]));
    for (const point of [query, ...hits]) {
      if (point && Number.isFinite(point.x) && !known.has(point.track_id)) this.points.push(point);
    }
    this.query = query?.track_id ?? null;
    this.hits = new Set(hits.map((hit) => hit.track_id));
    this.draw();
  }

  showAll() {
    this.view = this.home && { ...this.home };
    this.#afterMove();
  }

  zoom(factor, centre = null) {
    if (!this.view) return;
    const { x, y, width, height } = this.view;
    const at = centre ?? (this.focus ? this.focus : { x: x + width / 2, y: y + height / 2 });
    if (width * factor > this.home.width) return this.showAll();
    this.view = {
      x: at.x - (at.x - x) * factor, y: at.y - (at.y - y) * factor, width: width * factor, height: height * factor,
    };
    this.#afterMove();
  }

  draw() {
    const { width, height } = fitToScreen(this.canvas);
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    if (!this.view) return;
    const style = getComputedStyle(this.canvas);
    const colour = (name) => this.#resolve(style, name);
    const [quiet, accent, second, card] = ["--quiet", "--accent", "--second", "--card"].map(colour);
    const scale = devicePixelRatio;
    const radius = (this.points.length > 800 ? 2.2 : this.points.length > 100 ? 3.2 : 5) * scale;
    const ordered = [...this.points].sort((a, b) => this.#weight(a) - this.#weight(b));
    for (const point of ordered) {
      const [x, y] = this.#toScreen(point);
      if (x < -20 || y < -20 || x > width + 20 || y > height + 20) continue;
      const weight = this.#weight(point);
      context.beginPath();
      context.arc(x, y, weight ? Math.max(radius * 1.35, 5 * scale) : radius, 0, 2 * Math.PI);
      context.globalAlpha = weight ? 1 : 0.55;
      context.fillStyle = [quiet, second, accent, accent][weight];
      context.fill();
      if (weight) {
        context.lineWidth = 1.5 * scale;
        context.strokeStyle = card;
        context.stroke();
      }
      if (point.track_id === this.query || point === this.focus) {
        context.beginPath();
        context.arc(x, y, 11 * scale, 0, 2 * Math.PI);
        context.lineWidth = 2.5 * scale;
        context.strokeStyle = point.track_id === this.query ? accent : second;
        context.stroke();
      }
    }
    context.globalAlpha = 1;
    const placed = this.points.map((point) => [point, ...this.#toScreen(point)]);
    drawLabels(context, placed, (point) => this.#weight(point), colour("--ink"), colour("--sunken"));
  }

  // Canvas does not know light-dark(): a property in use does.
  #resolve(style, name) {
    this.canvas.style.color = `var(${name})`;
    const value = style.color;
    this.canvas.style.color = "";
    return value;
  }

  #weight(point) {
    if (point.track_id === this.query) return 2;
    if (this.hits.has(point.track_id)) return 1;
    return 0;
  }

  #toScreen(point) {
    const { width, height } = this.canvas;
    return [((point.x - this.view.x) / this.view.width) * width, ((point.y - this.view.y) / this.view.height) * height];
  }

  #toMap(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: this.view.x + ((event.clientX - box.left) / box.width) * this.view.width,
      y: this.view.y + ((event.clientY - box.top) / box.height) * this.view.height,
    };
  }

  #findNearest(event) {
    const box = this.canvas.getBoundingClientRect();
    let [best, least] = [null, REACH_PX ** 2];
    for (const point of this.points) {
      const [x, y] = this.#toScreen(point);
      const dx = x / devicePixelRatio - (event.clientX - box.left);
      const dy = y / devicePixelRatio - (event.clientY - box.top);
      if (dx * dx + dy * dy < least) [best, least] = [point, dx * dx + dy * dy];
    }
    return best;
  }

  #setFocus(point) {
    if (point === this.focus) return;
    this.focus = point;
    this.name.hidden = !point;
    if (point) {
      this.name.textContent = [point.title || point.track_id, point.artist].filter(Boolean).join(" · ");
      const [x, y] = this.#toScreen(point).map((value) => value / devicePixelRatio);
      const isLeft = x < this.canvas.clientWidth / 2;
      this.name.style.left = isLeft ? `${x + 14}px` : "auto";
      this.name.style.right = isLeft ? "auto" : `${this.canvas.clientWidth - x + 14}px`;
      this.name.style.top = `${Math.max(0, Math.min(y - 14, this.canvas.clientHeight - 36))}px`;
    }
    this.draw();
  }

  #onDown(event) {
    if (!this.view) return;
    this.drag = { from: this.#toMap(event), x: event.clientX, y: event.clientY, moved: false };
    this.canvas.setPointerCapture(event.pointerId);
  }

  #onMove(event) {
    if (!this.view) return;
    if (!this.drag) return this.#setFocus(this.#findNearest(event));
    if (Math.hypot(event.clientX - this.drag.x, event.clientY - this.drag.y) > 5) this.drag.moved = true;
    if (!this.drag.moved) return;
    const now = this.#toMap(event);
    this.view.x += this.drag.from.x - now.x;
    this.view.y += this.drag.from.y - now.y;
    this.draw();
  }

  #onUp(event) {
    const moved = this.drag?.moved;
    this.drag = null;
    if (!this.view) return;
    if (moved) return this.#afterMove();
    const point = this.#findNearest(event);
    if (point) this.onChoose(point.track_id);
  }

  #onWheel(event) {
    if (!this.view || !(event.ctrlKey || this.canvas === document.activeElement)) return; // else the page scrolls
    event.preventDefault();
    this.zoom(Math.exp(event.deltaY / 400), this.#toMap(event));
  }

  #onKey(event) {
    if (!this.view) return;
    const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (directions[event.key]) this.#step(directions[event.key]);
    else if (event.key === "Enter" && this.focus) this.onChoose(this.focus.track_id);
    else if (event.key === "+" || event.key === "=") this.zoom(0.6);
    else if (event.key === "-") this.zoom(1 / 0.6);
    else if (event.key === "0") this.showAll();
    else return;
    event.preventDefault();
  }

  /** Go to the nearest track within 45° of a direction; at first, to the query or the middle. */
  #step([dx, dy]) {
    if (!this.focus) {
      const middle = { x: this.view.x + this.view.width / 2, y: this.view.y + this.view.height / 2 };
      const from = this.points.find((point) => point.track_id === this.query) ?? middle;
      return this.#setFocus(this.#nearestTo(from, () => true));
    }
    const next = this.#nearestTo(this.focus, (x, y, point) => {
      const along = x * dx + y * dy;
      return point !== this.focus && along > 0 && along >= Math.abs(x * dy) + Math.abs(y * dx);
    });
    if (!next) return;
    const [x, y] = this.#toScreen(next);
    if (x < 0 || y < 0 || x > this.canvas.width || y > this.canvas.height) {
      this.view.x = next.x - this.view.width / 2;
      this.view.y = next.y - this.view.height / 2;
      this.#afterMove();
    }
    this.#setFocus(next);
  }

  #nearestTo(from, accepts) {
    const [fromX, fromY] = this.#toScreen(from);
    let [best, least] = [null, Infinity];
    for (const point of this.points) {
      const [x, y] = this.#toScreen(point);
      const distance = Math.hypot(x - fromX, y - fromY);
      if (distance < least && accepts(x - fromX, y - fromY, point)) [best, least] = [point, distance];
    }
    return best;
  }

  #afterMove() {
    this.draw();
    // A map that was thinned out has more to show from near.
    if (!this.view || this.numTracks <= this.points.length) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      const { x, y, width, height } = this.view;
      this.#fetch({ x_min: x, y_min: y, x_max: x + width, y_max: y + height });
    }, 250);
  }

  async #fetch(box) {
    const body = await this.load(box);
    if (!body) return;
    if (!box) this.numTracks = body.num_tracks;
    const marked = this.points.filter((point) => this.#weight(point));
    const fresh = new Set(body.tracks.map((point) => point.track_id));
    this.points = [...body.tracks, ...marked.filter((point) => !fresh.has(point.track_id))];
    this.focus = null;
    this.name.hidden = true;
    this.draw();
  }
}
