// What stands around a self-similarity matrix: the track's time along both edges, and what its colours mean.

import { asTime, make } from "./elements.js";
import { STOPS } from "./matrix.js";

const STEPS_S = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
const MOST_TICKS = 4;

/** Put ticks along the edges of a matrix. Its colours follow the rank of a value, so the scale's middle is the median. */
export function showAxes({ columns, rows, scale }, data) {
  const step_s = STEPS_S.find((step) => data.duration_s / step <= MOST_TICKS) ?? data.duration_s;
  const times = Array.from({ length: MOST_TICKS + 1 }, (_, index) => index * step_s)
    .filter((time_s) => time_s < 0.9 * data.duration_s); // a later one's text would reach over the edge
  for (const [edge, side] of [[columns, "left"], [rows, "top"]]) {
    edge.replaceChildren(...times.map((time_s) => {
      const tick = make("span", "", asTime(time_s));
      tick.style[side] = `${((100 * time_s) / data.duration_s).toFixed(2)}%`;
      return tick;
    }));
  }
  const ordered = Uint8Array.from(data.bytes).sort();
  const values = [0, Math.floor(ordered.length / 2), ordered.length - 1]
    .map((place) => data.low + (ordered[place] / 255) * (data.high - data.low));
  const digits = values[2] - values[0] < 0.1 ? 3 : 2;
  const [low, middle, high] = values.map((value) => value.toFixed(digits));
  const colours = make("i");
  colours.style.background = `linear-gradient(to right, ${STOPS.map((stop) => `rgb(${stop.join(" ")})`).join(", ")})`;
  scale.replaceChildren(colours, ...[low, middle, high].map((text) => make("span", "", text)));
  scale.ariaLabel = `Colours stand for cosines from ${low} over ${middle}, the median, to ${high}`;
}
