// What a button of the page plays.

import { ask, trackPath } from "./api.js";
import { asTime } from "./elements.js";

/**
 * `key` names the track or file, `find` gives its address, `caption` stands in the player, `what` follows Play or
 * Pause in a button's label, `text` stands beside its sign. It begins at `start_s`; where `isMoment`, the button is
 * about that place alone, else about the whole track.
 * @typedef {{key: string, find: function(): any, caption: string, what: string, text: string, start_s: number,
 *   isMoment: boolean}} Spot
 */

export function describeTrack(track) {
  const title = track.title || track.track_id;
  const caption = [title, track.artist].filter(Boolean).join(" · ");
  const find = async () => (await ask(trackPath(track.track_id))).audio_url;
  return { key: track.track_id, find, caption, what: title, text: "", start_s: 0, isMoment: false };
}

/** @param src an address of the file in this tab, which also tells it from others of its name */
export function describeFile(file, src) {
  return { key: src, find: () => src, caption: file.name, what: file.name, text: "", start_s: 0, isMoment: false };
}

export function describeMoment(spot, time_s) {
  return { ...spot, start_s: time_s, isMoment: true, text: asTime(time_s), what: `${spot.what} from ${asTime(time_s)}` };
}

export function describeMatch(hit) {
  return {
    ...describeTrack(hit), start_s: hit.start_s, isMoment: true, text: `${asTime(hit.start_s)}–${asTime(hit.end_s)}`,
    what: `the matching moment of ${hit.title || hit.track_id}, at ${asTime(hit.start_s)}`,
  };
}
