// The page: what is asked, what was found, and what is heard.

import { ask, ServiceError, trackPath, withQuery } from "./api.js";
import { TrackMap } from "./map.js";
import { Matrix } from "./matrix.js";
import { suggestTracks } from "./suggestions.js";

const MOMENT_S = 6;
const RESOLUTION_NAMES = { global: "whole tracks", "0.5hz": "moments" };

const $ = (id) => document.getElementById(id);
const audio = $("audio");

let info = null;
let query = null; // {track, file, start_s, end_s, src}: a track of the catalog, or a file
let picked = null; // the point of the matrix
let running = null;
let heard = null; // what the player holds: a track id, or a file

const matrix = new Matrix($("matrix"), onPick);
const map = new TrackMap($("map"), $("map-name"), openTrack, (box) =>
  ask(withQuery("map", box ?? {})).catch(showError));

suggestTracks($("search"), $("suggestions"), (track) => openTrack(track.track_id), showError);
start();

async function start() {
  try {
    info = await ask("info");
  } catch (error) {
    return showError(error);
  }
  const first = info.indexes[0];
  $("catalog-size").textContent = `${first.num_tracks.toLocaleString()} tracks`;
  $("resolution").replaceChildren(...info.indexes.map(({ resolution }) =>
    new Option(RESOLUTION_NAMES[resolution] ?? `frames at ${resolution}`, resolution)));
  $("where").title = `Columns: ${info.columns.join(", ")}`;
  if (!info.can_query_audio) {
    $("file").disabled = true;
    $("drop").classList.add("off");
    $("drop-text").textContent = "Not here: the service runs without a model";
  }
  listen();
  map.start();
  await followAddress();
}

function listen() {
  $("ask").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["resolution", "k", "exclude-same", "where"]) $(id).addEventListener("change", search);
  $("file").addEventListener("change", () => openFile($("file").files[0]));
  for (const [name, isOver] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    document.addEventListener(name, (event) => {
      event.preventDefault(); // a file dropped beside the field would leave the page
      $("drop").classList.toggle("over", isOver);
      if (name === "drop" && info.can_query_audio) openFile(event.dataTransfer.files[0]);
    });
  }
  window.addEventListener("hashchange", followAddress);
  $("play-query").addEventListener("click", () => playQuery(query.start_s ?? 0));
  $("play-column").addEventListener("click", () => playQuery(picked.column_s));
  $("play-row").addEventListener("click", () => playQuery(picked.row_s));
  $("search-moment").addEventListener("click", searchMoment);
  $("zoom-in").addEventListener("click", () => map.zoom(0.6));
  $("zoom-out").addEventListener("click", () => map.zoom(1 / 0.6));
  $("zoom-all").addEventListener("click", () => map.showAll());
  audio.addEventListener("timeupdate", () => {
    matrix.setPlayhead(query && heard === (query.file ?? query.track.track_id) ? audio.currentTime : null);
  });
  audio.addEventListener("error", () => {
    if (audio.getAttribute("src")) showError(new ServiceError("This browser cannot play the track, or its file is gone."));
  });
}

// What is asked. A track is named by the address, so that going back and sharing work; a file is not.

function openTrack(trackId, start_s = null, end_s = null) {
  const address = new URLSearchParams({ track: trackId });
  if (start_s !== null) address.set("from", start_s.toFixed(2));
  if (end_s !== null) address.set("to", end_s.toFixed(2));
  if (location.hash === `#${address}`) search();
  else location.hash = address;
}

async function followAddress() {
  const address = new URLSearchParams(location.hash.slice(1));
  if (address.has("track")) {
    const [start_s, end_s] = ["from", "to"].map((name) => (address.has(name) ? Number(address.get(name)) : null));
    try {
      const track = query?.track?.track_id === address.get("track") ? query.track : await ask(trackPath(address.get("track")));
      return setQuery({ track, start_s, end_s, src: track.audio_url });
    } catch (error) {
      return showError(error);
    }
  }
  if (query?.file) return;
  setQuery(null);
}

function openFile(file) {
  if (!file) return;
  const most = info.max_upload_bytes;
  if (file.size > most) {
    return showError(new ServiceError(`${file.name} is larger than this service takes (${Math.floor(most / 2 ** 20)} MiB).`));
  }
  history.pushState(null, "", location.pathname);
  setQuery({ file, src: URL.createObjectURL(file) });
  $("file").value = ""; // so that the same file can be chosen again
}

function setQuery(next) {
  const isSame = next?.track && next.track.track_id === query?.track?.track_id;
  if (query?.file && query.src !== audio.src) URL.revokeObjectURL(query.src);
  query = next;
  showError(null);
  $("query").hidden = !query;
  if (!query) return browse();
  if (!isSame) {
    showMatrix(null);
    if (query.track) loadMatrix(query.track.track_id);
  }
  $("search").value = query.track ? query.track.title || query.track.track_id : "";
  $("drop-text").textContent = query.file ? query.file.name : "Drop it here, or choose";
  const title = query.track ? query.track.title || query.track.track_id : query.file.name;
  $("query-title").textContent = title;
  $("play-query").ariaLabel = `Play ${title}`;
  const passage = query.start_s ? `from ${asTime(query.start_s)} to ${asTime(query.end_s)}` : "";
  $("query-facts").textContent = query.track
    ? [query.track.artist, query.track.album, query.track.duration_s && asTime(query.track.duration_s), passage].filter(Boolean).join(" · ")
    : "a file of your own";
  search();
}

async function browse() {
  map.mark(null, []);
  $("results-title").textContent = "From the catalog";
  $("results-note").textContent = "Search for a track, drop a file, or pick a point on the map.";
  const body = await ask(withQuery("tracks", { limit: 12 })).catch(showError);
  if (!query && body) $("result-list").replaceChildren(...body.tracks.map((track) => makeRow(track, false)));
}

async function search() {
  if (!query) return;
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  const options = {
    k: $("k").value, resolution: $("resolution").value, where: $("where").value.trim(), exclude_same: $("exclude-same").value,
  };
  $("results").ariaBusy = "true";
  $("drop").classList.toggle("busy", Boolean(query.file));
  $("results-note").textContent = query.file ? "Listening to your file…" : "Searching…";
  try {
    const body = query.file ? await searchFile(options, signal) : await ask(withQuery(
      `search/track/${encodeURIComponent(query.track.track_id)}`, { ...options, start_s: query.start_s, end_s: query.end_s }), { signal });
    showResults(body);
    showError(null);
  } catch (error) {
    if (error.name === "AbortError") return;
    $("result-list").replaceChildren();
    $("results-note").textContent = "";
    showError(error);
  }
  $("results").ariaBusy = "false";
  $("drop").classList.remove("busy");
}

async function searchFile({ exclude_same: _, ...options }, signal) {
  const form = new FormData();
  form.append("file", query.file);
  const body = await ask(withQuery("search/audio", options), { method: "POST", body: form, signal });
  showMatrix(body.similarity);
  return body;
}

function searchMoment() {
  const moments = info.indexes.find(({ resolution }) => resolution !== "global");
  if (moments) $("resolution").value = moments.resolution;
  const end_s = Math.min(picked.column_s + MOMENT_S, matrix.data.duration_s);
  openTrack(query.track.track_id, Math.max(0, end_s - MOMENT_S), end_s);
}

// What was found.

function showResults({ results }) {
  $("results-title").textContent = "Sounds like it";
  const found = results.length === 1 ? "1 track" : `${results.length} tracks`;
  $("results-note").textContent = results.length ? `${found}, nearest first` : "No track matches.";
  $("status").textContent = `${found} found`;
  $("result-list").replaceChildren(...results.map((hit) => makeRow(hit, true)));
  map.mark(query.track ?? null, results);
  markPlaying();
}

function makeRow(track, isHit) {
  const row = make("li", isHit ? "" : "plain");
  row.dataset.trackId = track.track_id;
  const title = track.title || track.track_id;
  const play = make("button", "play", "▶");
  play.type = "button";
  play.ariaLabel = `Play ${title}`;
  play.addEventListener("click", () => playTrack(track, 0));
  const name = make("div", "name");
  const open = make("button", "", title);
  open.type = "button";
  open.title = "What sounds like this?";
  open.addEventListener("click", () => openTrack(track.track_id));
  name.append(open);
  if (track.near_duplicate) name.append(make("span", "badge", "near-duplicate"));
  name.append(make("p", "", [track.artist, track.album].filter(Boolean).join(" · ") || (track.title ? track.track_id : "")));
  row.append(play, name);
  if (isHit) row.prepend(make("span", "rank", String(track.rank)));
  if (isHit) row.append(makeScore(track, title));
  return row;
}

function makeScore(hit, title) {
  const score = make("div", "score");
  score.append(make("span", "", hit.score.toFixed(3)));
  const bar = make("div", "bar");
  const fill = make("i");
  fill.style.width = `${Math.round(100 * Math.max(0, Math.min(1, hit.score)))}%`;
  bar.append(fill);
  score.append(bar);
  if (hit.start_s !== null) {
    const jump = make("button", "jump", `▶ ${asTime(hit.start_s)}–${asTime(hit.end_s)}`);
    jump.type = "button";
    jump.ariaLabel = `Play the matching moment of ${title}, at ${asTime(hit.start_s)}`;
    jump.addEventListener("click", () => playTrack(hit, hit.start_s));
    score.append(jump);
  }
  return score;
}

async function loadMatrix(trackId) {
  try {
    const data = await ask(trackPath(trackId, "/similarity"));
    if (query?.track?.track_id === trackId) showMatrix(data);
  } catch (error) {
    $("matrix-note").hidden = false;
    $("matrix-note").textContent = `No picture of this track: ${error.message}`;
  }
}

function showMatrix(data) {
  picked = null;
  $("matrix-box").hidden = !data;
  $("matrix-note").hidden = true;
  $("matrix-value").textContent = "";
  for (const id of ["play-column", "play-row", "search-moment"]) $(id).hidden = true;
  matrix.show(data ?? null);
}

function onPick(point, isHeard) {
  picked = point;
  $("matrix-value").textContent = `${asTime(point.column_s)} and ${asTime(point.row_s)}: ${point.cosine.toFixed(3)}`;
  $("play-column").textContent = `▶ ${asTime(point.column_s)}`;
  $("play-row").textContent = `▶ ${asTime(point.row_s)}`;
  for (const id of ["play-column", "play-row"]) $(id).hidden = false;
  $("search-moment").hidden = !query.track;
  if (isHeard) playQuery(point.column_s);
}

// What is heard.

function playQuery(time_s) {
  if (query.file) play(query.file, query.src, query.file.name, time_s);
  else playTrack(query.track, time_s);
}

async function playTrack(track, time_s) {
  try {
    const facts = heard === track.track_id ? null : await ask(trackPath(track.track_id));
    const name = [track.title || track.track_id, track.artist].filter(Boolean).join(" · ");
    play(track.track_id, facts?.audio_url, name, time_s);
  } catch (error) {
    showError(error);
  }
}

function play(what, src, name, time_s) {
  if (heard !== what) {
    heard = what;
    audio.src = src.replace(/^\//, ""); // beside the page, wherever that is served
    $("playing").textContent = name;
    $("player").hidden = false;
  }
  audio.currentTime = time_s;
  audio.play().catch((error) => {
    if (error.name === "NotAllowedError") showError(new ServiceError("The browser wants a click before it plays."));
  });
  markPlaying();
}

function markPlaying() {
  for (const row of $("result-list").children) row.classList.toggle("playing", row.dataset.trackId === heard);
}

function showError(error) {
  $("error").hidden = !error;
  $("error").textContent = error ? error.message : "";
  if (error && !(error instanceof ServiceError)) console.error(error);
}

function make(name, className, text = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

/** Return 75.5 as 1:15.5, and 75 as 1:15. */
function asTime(time_s) {
  const tenths = Math.round(10 * time_s);
  const seconds = (tenths % 600) / 10;
  return `${Math.floor(tenths / 600)}:${seconds < 10 ? "0" : ""}${seconds}`;
}
