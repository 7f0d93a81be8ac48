// The query against itself: its picture, and what a point of it plays and asks.

import { ask, trackPath } from "./api.js";
import { asTime } from "./elements.js";
import { Matrix } from "./matrix.js";
import { showAxes } from "./matrix_axes.js";
import { describeMoment } from "./spots.js";

const MOMENT_S = 6;
const PLAY_BUTTONS = { "play-column": "column_s", "play-row": "row_s" };

const $ = (id) => document.getElementById(id);

export class MatrixPanel {
  /**
   * @param player plays the two moments of a point
   * @param describe returns the query's Spot (see spots.js), or null where there is none
   * @param onFind is called with start and end of a moment to search for, in seconds
   */
  constructor(player, describe, onFind) {
    Object.assign(this, { player, describe, onFind });
    this.matrix = new Matrix($("matrix"), (point, isHeard) => this.#pick(point, isHeard));
    this.picked = null; // the point
    this.trackId = null; // of the picture, or of the one that is on its way; null for a file's
    for (const [id, axis] of Object.entries(PLAY_BUTTONS)) {
      player.bind($(id), () => this.picked && describe() && describeMoment(describe(), this.picked[axis]));
    }
    $("search-moment").addEventListener("click", () => this.#find());
    player.audio.addEventListener("timeupdate", () => {
      this.matrix.setPlayhead(player.key !== null && player.key === describe()?.key ? player.audio.currentTime : null);
    });
  }

  /** Fetch and show a track's picture, unless another is asked for meanwhile. */
  async load(trackId) {
    this.show(null, trackId);
    try {
      const data = await ask(trackPath(trackId, "/similarity"));
      if (this.trackId === trackId) this.show(data, trackId);
    } catch (error) {
      if (this.trackId !== trackId) return;
      $("matrix-note").hidden = false;
      $("matrix-note").textContent = `No picture of this track: ${error.message}`;
    }
  }

  /** Show a picture, or none where there is no data. */
  show(data, trackId = null) {
    this.picked = null;
    this.trackId = trackId;
    $("matrix-box").hidden = !data;
    $("matrix-note").hidden = true;
    $("matrix-value").textContent = "";
    for (const id of [...Object.keys(PLAY_BUTTONS), "search-moment"]) $(id).hidden = true;
    this.matrix.show(data ?? null);
    if (data) showAxes({ columns: $("matrix-columns"), rows: $("matrix-rows"), scale: $("matrix-scale") }, data);
  }

  #pick(point, isHeard) {
    this.picked = point;
    $("matrix-value").textContent = `${asTime(point.column_s)} and ${asTime(point.row_s)}: ${point.cosine.toFixed(3)}`;
    for (const id of Object.keys(PLAY_BUTTONS)) {
      $(id).hidden = false;
      this.player.refresh($(id));
    }
    $("search-moment").hidden = this.trackId === null;
    if (isHeard) this.player.play(describeMoment(this.describe(), point.column_s));
  }

  #find() {
    const end_s = Math.min(this.picked.column_s + MOMENT_S, this.matrix.data.duration_s);
    this.onFind(Math.max(0, end_s - MOMENT_S), end_s);
  }
}
