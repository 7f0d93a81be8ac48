// What was found, as rows of a list.

import { make } from "./elements.js";
import { describeMatch, describeTrack } from "./spots.js";

const LEAST_SPAN = 0.02; // scores closer than that look alike

/** Return from where to where bars of scores run: from a little below the least, so that 0.90 and 0.98 look apart. */
export function chooseScale(hits) {
  const scores = hits.map((hit) => hit.score);
  const [least, high] = [Math.min(...scores), Math.max(...scores)];
  const low = Math.min(least - 0.1 * (high - least), high - LEAST_SPAN);
  return { low: Math.floor(1000 * low) / 1000, high };
}

/**
 * Make the row of a track.
 * @param player plays it
 * @param onOpen is called with the id of a track to search for
 * @param scale from where to where the bar of its score runs; null for a track that was not searched for
 */
export function makeRow(track, { player, onOpen }, scale = null) {
  const isHit = scale !== null;
  const row = make("li", isHit ? "" : "plain");
  row.dataset.trackId = track.track_id;
  const title = track.title || track.track_id;
  const play = make("button", "play");
  play.type = "button";
  player.bind(play, () => describeTrack(track));
  const name = make("div", "name");
  const open = make("button", "", title);
  open.type = "button";
  open.title = "What sounds like this?";
  open.addEventListener("click", () => onOpen(track.track_id));
  name.append(open);
  if (track.near_duplicate) name.append(make("span", "badge", "near-duplicate"));
  name.append(make("p", "", [track.artist, track.album, track.year, track.genre].filter(Boolean).join(" · ") || (track.title ? track.track_id : "")));
  row.append(play, name);
  if (isHit) {
    row.prepend(make("span", "rank", String(track.rank)));
    row.append(makeScore(track, scale, player));
  }
  return row;
}

function makeScore(hit, { low, high }, player) {
  const score = make("div", "score");
  score.append(make("span", "", hit.score.toFixed(3)));
  const bar = make("div", "bar");
  bar.title = `From ${low.toFixed(3)} to ${high.toFixed(3)}`;
  const fill = make("i");
  fill.style.width = `${((100 * (hit.score - low)) / (high - low)).toFixed(1)}%`;
  bar.append(fill);
  score.append(bar);
  if (hit.start_s !== null) {
    const jump = make("button", "jump");
    jump.type = "button";
    player.bind(jump, () => describeMatch(hit));
    score.append(jump);
  }
  return score;
}
