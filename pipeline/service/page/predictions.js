// What heads say of the query: its tags in words, its sections and beats over its time.

import { ask, trackPath } from "./api.js";
import { asTime, make } from "./elements.js";
import { fitToScreen } from "./matrix.js";

const MAX_TAGS = 8;

const $ = (id) => document.getElementById(id);

export class PredictionsPanel {
  constructor() {
    this.trackId = null; // of what is shown, or on its way
    this.data = null;
    new ResizeObserver(() => this.#drawBeats()).observe($("prediction-beats"));
  }

  /** Fetch and show what is predicted of a track; a store without predictions shows nothing. */
  async load(track) {
    this.clear();
    this.trackId = track.track_id;
    const data = await ask(trackPath(track.track_id, "/predictions")).catch(() => null);
    if (data && this.trackId === track.track_id) this.#show(data, track.duration_s);
  }

  clear() {
    this.trackId = null;
    this.data = null;
    $("predictions").hidden = true;
  }

  #show(data, duration_s) {
    const end_s = Math.max(duration_s ?? 0, data.sections.at(-1)?.end_s ?? 0, data.beats.at(-1)?.time_s ?? 0);
    this.data = { ...data, duration_s: end_s };
    $("predictions").hidden = !data.tags.length && !data.beats.length && !data.sections.length;
    $("prediction-tags").replaceChildren(...data.tags.slice(0, MAX_TAGS).map((tag) =>
      make("li", "", tag.task === "regression" ? `${tag.label} ${tag.score.toFixed(1)}` : `${tag.label} ${Math.round(100 * tag.score)} %`)));
    $("prediction-sections").replaceChildren(...data.sections.map((section) => {
      const part = make("li", "", section.label);
      part.title = `${section.label}, ${asTime(section.start_s)} to ${asTime(section.end_s)}`;
      part.style.left = `${((100 * section.start_s) / end_s).toFixed(3)}%`;
      part.style.width = `${((100 * (section.end_s - section.start_s)) / end_s).toFixed(3)}%`;
      return part;
    }));
    $("prediction-sections").hidden = !data.sections.length;
    $("prediction-beats").hidden = !data.beats.length;
    const numDown = data.beats.filter((beat) => beat.is_downbeat).length;
    const gaps = data.beats.slice(1).map((beat, index) => beat.time_s - data.beats[index].time_s).sort((a, b) => a - b);
    const tempo = gaps.length ? `, about ${Math.round(60 / gaps[Math.floor(gaps.length / 2)])} a minute` : "";
    $("prediction-text").textContent = data.beats.length ? `${data.beats.length} beats, ${numDown} of them downbeats${tempo}` : "";
    this.#drawBeats();
  }

  #drawBeats() {
    if (!this.data?.beats.length) return;
    const canvas = $("prediction-beats");
    const { width, height } = fitToScreen(canvas);
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    context.fillStyle = getComputedStyle(canvas).color;
    for (const { time_s, is_downbeat } of this.data.beats) {
      const length = is_downbeat ? height : height / 2;
      context.fillRect((time_s / this.data.duration_s) * width, height - length, devicePixelRatio, length);
    }
  }
}
