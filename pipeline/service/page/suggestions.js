// A search box with suggestions: the combobox pattern of the ARIA Authoring Practices.

import { ask, withQuery } from "./api.js";

const DELAY_MS = 120;
const LIMIT = 8;

/**
 * @param input the text field
 * @param list the list below it
 * @param onChoose is called with a track
 * @param onError is called with what went wrong
 */
export function suggestTracks(input, list, onChoose, onError) {
  let tracks = [];
  let active = -1;
  let timer = null;
  let running = null;

  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(load, DELAY_MS);
  });
  input.addEventListener("keydown", onKey);
  input.addEventListener("blur", () => setTimeout(close, 150)); // after a click in the list
  list.addEventListener("pointerdown", (event) => {
    event.preventDefault(); // the field keeps the focus
    const item = event.target.closest("[role=option]");
    if (item) choose(Number(item.dataset.index));
  });

  async function load() {
    running?.abort();
    running = new AbortController();
    const prefix = input.value.trim();
    if (!prefix) return close();
    try {
      const body = await ask(withQuery("tracks", { prefix, limit: LIMIT }), { signal: running.signal });
      show(body.tracks);
    } catch (error) {
      if (error.name !== "AbortError") onError(error);
    }
  }

  function show(found) {
    tracks = found;
    active = -1;
    list.replaceChildren(...found.map((track, index) => {
      const item = document.createElement("li");
      item.id = `suggestion-${index}`;
      item.role = "option";
      item.dataset.index = index;
      item.textContent = track.title || track.track_id;
      const beside = document.createElement("span");
      beside.textContent = ` ${[track.artist, track.title && track.track_id].filter(Boolean).join(" · ")}`;
      item.append(beside);
      return item;
    }));
    if (!found.length) {
      const none = document.createElement("li");
      none.className = "nothing";
      none.textContent = "No track of that name";
      list.append(none);
    }
    list.hidden = false;
    mark(-1);
  }

  function mark(index) {
    active = index;
    [...list.children].forEach((item, position) => {
      if (item.role === "option") item.ariaSelected = String(position === index);
    });
    input.ariaExpanded = String(!list.hidden);
    if (index < 0) return input.removeAttribute("aria-activedescendant");
    input.setAttribute("aria-activedescendant", `suggestion-${index}`);
    list.children[index].scrollIntoView({ block: "nearest" });
  }

  function close() {
    list.hidden = true;
    mark(-1);
  }

  function choose(index) {
    clearTimeout(timer);
    running?.abort();
    const track = tracks[index];
    input.value = track.title || track.track_id;
    close();
    onChoose(track);
  }

  async function onKey(event) {
    const isOpen = !list.hidden && tracks.length > 0;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (!isOpen) return void (await load());
      const step = event.key === "ArrowDown" ? 1 : -1;
      mark((active + step + tracks.length + (active < 0 && step < 0 ? 1 : 0)) % tracks.length);
    } else if (event.key === "Enter") {
      event.preventDefault();
      clearTimeout(timer);
      if (!isOpen) await load();
      if (tracks.length && !list.hidden) choose(Math.max(active, 0));
    } else if (event.key === "Escape") {
      close();
    }
  }
}
