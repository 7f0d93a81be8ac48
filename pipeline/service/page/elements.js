// Small helpers to build the page with.

/** Make an element; its text is text, never markup. */
export function make(name, className = "", text = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

/** Return 75.5 as 1:15.5, and 75 as 1:15. */
export function asTime(time_s) {
  const tenths = Math.round(10 * time_s);
  const seconds = (tenths % 600) / 10;
  return `${Math.floor(tenths / 600)}:${seconds < 10 ? "0" : ""}${seconds}`;
}

/** Return 1 as 1 track, and 2 as 2 tracks. */
export function countTracks(number) {
  return number === 1 ? "1 track" : `${number.toLocaleString()} tracks`;
}
