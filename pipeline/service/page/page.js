// The page: what is asked, what was found, and what is heard.

import { ask, ServiceError, trackPath, withQuery } from "./api.js";
import { asTime, countTracks } from "./elements.js";
import { TrackMap } from "./map.js";
import { MatrixPanel } from "./matrix_panel.js";
import { Player } from "./player.js";
import { PredictionsPanel } from "./predictions.js";
import { chooseScale, makeRow } from "./results.js";
import { describeFile, describeTrack } from "./spots.js";
import { suggestTracks } from "./suggestions.js";

const RESOLUTION_NAMES = { global: "whole tracks", "0.5hz": "moments" };

const $ = (id) => document.getElementById(id);
const audio = $("audio");

let info = null;
let query = null; // {track, start_s, end_s, compare}: a track of the catalog; or {file, src}
let chosen = null; // what is compared by the user's own choice; a query may ask for another for its own time
let running = null; // the search by a track, or once more by a file
let listening = null; // the search by a file that is not shown yet
let isPlayerError = false;

const player = new Player(audio, $("player"), $("playing"), (error) => {
  if (error || isPlayerError) showError(error);
  isPlayerError = Boolean(error);
}, markPlaying);
const rows = { player, onOpen: (trackId) => openTrack(trackId) };
const matrix = new MatrixPanel(player, () => query && describeQuery(), findMoment);
const predictions = new PredictionsPanel();
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
  chosen = first.resolution;
  $("catalog-size").textContent = countTracks(first.num_tracks);
  $("resolution").replaceChildren(...info.indexes.map(({ resolution }) => new Option(nameResolution(resolution), resolution)));
  $("where").title = `Columns: ${info.columns.join(", ")}`;
  $("file").disabled = !info.can_query_audio;
  $("drop").classList.toggle("off", !info.can_query_audio);
  showDrop();
  listen();
  map.start();
  await followAddress();
}

function listen() {
  $("ask").addEventListener("submit", (event) => event.preventDefault());
  $("resolution").addEventListener("change", chooseResolution);
  for (const id of ["k", "exclude-same", "where"]) $(id).addEventListener("change", search);
  $("file").addEventListener("change", () => openFile($("file").files[0]));
  for (const [name, isOver] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    document.addEventListener(name, (event) => {
      event.preventDefault(); // a file dropped beside the field would leave the page
      $("drop").classList.toggle("over", isOver && info.can_query_audio);
      if (name === "drop" && info.can_query_audio) openFile(event.dataTransfer.files[0]);
    });
  }
  window.addEventListener("hashchange", followAddress);
  player.bind($("play-query"), () => query && { ...describeQuery(), start_s: query.start_s ?? 0 });
  $("comparison-back").addEventListener("click", () => openTrack(query.track.track_id));
  $("zoom-in").addEventListener("click", () => map.zoom(0.6));
  $("zoom-out").addEventListener("click", () => map.zoom(1 / 0.6));
  $("zoom-all").addEventListener("click", () => map.showAll());
}

// What is asked. A track is named by the address, so that going back and sharing work; a file is not.

function openTrack(trackId, { start_s = null, end_s = null, compare = null } = {}) {
  const address = new URLSearchParams({ track: trackId });
  if (start_s !== null) address.set("from", start_s.toFixed(2));
  if (end_s !== null) address.set("to", end_s.toFixed(2));
  if (compare !== null) address.set("compare", compare);
  if (location.hash === `#${address}`) search();
  else location.hash = address;
}

async function followAddress() {
  const address = new URLSearchParams(location.hash.slice(1));
  if (address.has("track")) {
    const [start_s, end_s] = ["from", "to"].map((name) => (address.has(name) ? Number(address.get(name)) : null));
    const compare = info.indexes.find(({ resolution }) => resolution === address.get("compare"))?.resolution ?? null;
    try {
      const track = query?.track?.track_id === address.get("track") ? query.track : await ask(trackPath(address.get("track")));
      listening?.abort();
      showQuery({ track, start_s, end_s, compare });
      return search();
    } catch (error) {
      return showError(error);
    }
  }
  if (query?.file) return;
  running?.abort();
  showQuery(null);
  browse();
}

/** Ask with a file first, and show it once there is an answer: one that fails leaves the page as it was. */
async function openFile(file) {
  if (!file) return;
  $("file").value = ""; // so that the same file can be chosen again
  const most = info.max_upload_bytes;
  if (file.size > most) {
    return showError(new ServiceError(`${file.name} is larger than this service takes (${Math.floor(most / 2 ** 20)} MiB).`));
  }
  listening?.abort();
  const own = Object.assign(new AbortController(), { file });
  listening = own;
  showError(null);
  showDrop();
  $("status").textContent = $("drop-text").textContent;
  try {
    const body = await sendFile(file, chosen, own.signal);
    running?.abort();
    history.pushState(null, "", location.pathname);
    showQuery({ file, src: URL.createObjectURL(file) });
    matrix.show(body.similarity);
    showResults(body);
  } catch (error) {
    if (error.name !== "AbortError") showError(error);
  } finally {
    if (listening === own) listening = null;
    showDrop();
  }
}

function chooseResolution() {
  chosen = $("resolution").value;
  if (query?.compare) {
    const address = new URLSearchParams(location.hash.slice(1));
    address.delete("compare");
    history.replaceState(null, "", `#${address}`);
    query.compare = null;
    showComparison();
  }
  search();
}

function showQuery(next) {
  const isSame = next?.track && next.track.track_id === query?.track?.track_id;
  if (query?.file && query.src !== audio.src) URL.revokeObjectURL(query.src);
  query = next;
  showError(null);
  $("query").hidden = !query;
  showComparison();
  showDrop();
  if (!query) return;
  if (query.file) {
    matrix.show(null);
    predictions.clear();
  } else if (!isSame) {
    matrix.load(query.track.track_id);
    predictions.load(query.track);
  }
  $("search").value = query.track ? query.track.title || query.track.track_id : "";
  $("query-title").textContent = query.track ? query.track.title || query.track.track_id : query.file.name;
  player.refresh($("play-query"));
  const passage = query.start_s ? `from ${asTime(query.start_s)} to ${asTime(query.end_s)}` : "";
  $("query-facts").textContent = query.track
    ? [query.track.artist, query.track.album, query.track.year, query.track.genre, query.track.duration_s && asTime(query.track.duration_s), passage].filter(Boolean).join(" · ")
    : "a file of your own";
}

/** Say where a query compares something else than was chosen. */
function showComparison() {
  const compared = query?.compare ?? chosen;
  $("resolution").value = compared;
  $("comparison").hidden = compared === chosen;
  if (compared === chosen) return;
  $("comparison-text").textContent = `For this moment, ${nameResolution(compared)} are compared instead of ${nameResolution(chosen)}.`;
  $("comparison-back").textContent = `Back to ${nameResolution(chosen)}`;
}

function showDrop() {
  $("drop").classList.toggle("busy", Boolean(listening));
  $("drop-text").textContent = !info.can_query_audio ? "Not here: the service runs without a model"
    : listening ? `Listening to ${listening.file.name}…` : query?.file ? query.file.name : "Drop it here, or choose";
}

async function browse() {
  $("results").ariaBusy = "false";
  map.mark(null, []);
  $("results-title").textContent = "From the catalog";
  $("results-note").textContent = "Search for a track, drop a file, or pick a point on the map.";
  const body = await ask(withQuery("tracks", { limit: 12 })).catch(showError);
  if (!query && body) $("result-list").replaceChildren(...body.tracks.map((track) => makeRow(track, rows)));
  markPlaying();
}

async function search() {
  if (!query) return;
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  $("results").ariaBusy = "true";
  if (query.track) $("results-note").textContent = "Searching…";
  try {
    const body = query.file ? await sendFile(query.file, chosen, signal) : await ask(withQuery(
      `search/track/${encodeURIComponent(query.track.track_id)}`,
      { ...readOptions(), resolution: query.compare ?? chosen, start_s: query.start_s, end_s: query.end_s }), { signal });
    showResults(body);
    showError(null);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (query.track) {
      $("result-list").replaceChildren();
      $("results-note").textContent = "";
    }
    showError(error);
  }
  $("results").ariaBusy = "false";
}

function readOptions() {
  return { k: $("k").value, where: $("where").value.trim(), exclude_same: $("exclude-same").value };
}

function sendFile(file, resolution, signal) {
  const { exclude_same: _, ...options } = readOptions();
  const form = new FormData();
  form.append("file", file);
  return ask(withQuery("search/audio", { ...options, resolution }), { method: "POST", body: form, signal });
}

function findMoment(start_s, end_s) {
  const moments = info.indexes.find(({ resolution }) => resolution !== "global");
  openTrack(query.track.track_id, { start_s, end_s, compare: moments?.resolution ?? null });
}

// What was found.

function showResults({ results }) {
  const found = countTracks(results.length);
  const scale = chooseScale(results);
  $("results").ariaBusy = "false";
  $("results-title").textContent = "Sounds like it";
  $("results-note").textContent = results.length
    ? `${found}, nearest first. Bars run from ${scale.low.toFixed(3)} to ${scale.high.toFixed(3)}.` : "No track matches.";
  $("status").textContent = `${found} found`;
  $("result-list").replaceChildren(...results.map((hit) => makeRow(hit, rows, scale)));
  map.mark(query.track ?? null, results);
  markPlaying();
}

// What is heard.

function describeQuery() {
  return query.track ? describeTrack(query.track) : describeFile(query.file, query.src);
}

function markPlaying() {
  for (const row of $("result-list").children) row.classList.toggle("playing", row.dataset.trackId === player.key);
}

function nameResolution(resolution) {
  return RESOLUTION_NAMES[resolution] ?? `frames at ${resolution}`;
}

function showError(error) {
  isPlayerError = false;
  $("error").hidden = !error;
  $("error").textContent = error ? error.message : "";
  if (error && !(error instanceof ServiceError)) console.error(error);
}
