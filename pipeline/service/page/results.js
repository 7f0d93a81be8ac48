// What was found, as rows of a list.

import { make } from "./elements.js";
import { describeMatch, describeTrack } from "./spots.js";

/** Return where bars of scores begin: a little below the least, so that 0.90 and 0.98 look as different as they are. */
export function chooseLowest(hits) {
  const least = Math.min(...hits.map((hit) => hit.score));
  return Math.min(0.999, Math.floor(1000 * (least - 0.1 * Math.max(0, 1 - least))) / 1000);
}

/**
 * Make the row of a track.
 * @param player plays it
 * @param onOpen is called with the id of a track to search for
 * @param lowest where the bar of its score begins; null for a track that was not searched for
 */
export function makeRow(track, { player, onOpen }, lowest = null) {
  const isHit = lowest !== null;
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
  name.append(make("p", "", [track.artist, track.album].filter(Boolean).join(" · ") || (track.title ? track.track_id : "")));
  row.append(play, name);
  if (isHit) {
    row.prepend(make("span", "rank", String(track.rank)));
    row.append(makeScore(track, lowest, player));
  }
  return row;
}

function makeScore(hit, lowest, player) {
  const score = make("div", "score");
  score.append(make("span", "", hit.score.toFixed(3)));
  const bar = make("div", "bar");
  bar.title = `From ${lowest.toFixed(3)} to 1`;
  const fill = make("i");
  fill.style.width = `${(100 * Math.max(0, Math.min(1, (hit.score - lowest) / (1 - lowest)))).toFixed(1)}%`;
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
