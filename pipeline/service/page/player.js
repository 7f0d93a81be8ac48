// What is heard: one track at a time, and every button that starts or stops it.

import { ServiceError } from "./api.js";

export class Player {
  /**
   * @param audio the media element
   * @param box what is shown once something plays
   * @param caption names it
   * @param onError is called with what went wrong, and with null when that is over
   * @param onChange is called when something else plays, or plays no more
   */
  constructor(audio, box, caption, onError, onChange) {
    Object.assign(this, { audio, box, caption, onError, onChange });
    this.key = null;
    this.start_s = 0; // where it was begun at
    this.isCopy = false; // the service's FLAC copy of the file
    this.numPresses = 0;
    this.spots = new WeakMap();
    for (const name of ["play", "pause", "ended", "emptied"]) audio.addEventListener(name, () => this.#paintAll());
    audio.addEventListener("playing", () => this.onError(null));
    audio.addEventListener("error", () => this.#onFailure());
  }

  /** Make a button one that plays; `describe` returns its Spot (see spots.js) whenever it is asked. */
  bind(button, describe) {
    button.dataset.plays = "";
    this.spots.set(button, describe);
    button.addEventListener("click", () => this.toggle(describe()));
    this.refresh(button);
  }

  /** Show what has changed of a button's Spot. */
  refresh(button) {
    const spot = this.spots.get(button)();
    if (!spot) return;
    const isPlaying = this.#isAt(spot) && !this.audio.paused && !this.audio.ended;
    button.dataset.plays = isPlaying ? "now" : "";
    button.textContent = `${isPlaying ? "❚❚" : "▶"}${spot.text ? ` ${spot.text}` : ""}`;
    button.ariaLabel = `${isPlaying ? "Pause" : "Play"} ${spot.what}`;
  }

  /** Pause what plays there, go on where it was paused, or begin. */
  toggle(spot) {
    if (!this.#isAt(spot) || this.audio.ended) return this.play(spot);
    if (this.audio.paused) return this.#start();
    this.numPresses += 1;
    this.audio.pause();
  }

  async play(spot) {
    this.numPresses += 1;
    const press = this.numPresses;
    this.onError(null);
    if (spot.key !== this.key) {
      let address;
      try {
        address = await spot.find();
      } catch (error) {
        return this.onError(error);
      }
      if (press !== this.numPresses) return; // another was pressed meanwhile
      this.key = spot.key;
      this.#load(address);
      this.caption.textContent = spot.caption;
      this.box.hidden = false;
    }
    this.start_s = spot.start_s;
    this.audio.currentTime = spot.start_s;
    this.#start();
  }

  #load(address) {
    this.isCopy = /[?&]format=flac/.test(address);
    this.audio.src = address.replace(/^\//, ""); // beside the page, wherever that is served
  }

  #start() {
    this.audio.play().catch((error) => {
      if (error.name === "NotAllowedError") this.onError(new ServiceError("The browser wants a click before it plays."));
    });
    this.#paintAll();
  }

  /** What a browser does not play as it is, it may play as the service's copy; a file of one's own has none. */
  #onFailure() {
    const address = this.audio.getAttribute("src");
    if (!address) return;
    if (!this.isCopy && !address.startsWith("blob:")) {
      this.#load(`${address}${address.includes("?") ? "&" : "?"}format=flac`);
      this.audio.currentTime = this.start_s;
      return this.#start();
    }
    const name = this.caption.textContent;
    this.key = null; // so that the next press tries anew
    this.audio.removeAttribute("src");
    this.audio.load();
    this.box.hidden = true;
    this.#paintAll();
    this.onError(new ServiceError(`${name} cannot be played: its file is gone, or of a kind that this browser does not know.`));
  }

  #isAt(spot) {
    return this.key !== null && spot.key === this.key && (!spot.isMoment || spot.start_s === this.start_s);
  }

  #paintAll() {
    for (const button of document.querySelectorAll("[data-plays]")) this.refresh(button);
    this.onChange();
  }
}
