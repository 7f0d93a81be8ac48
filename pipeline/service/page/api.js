// Requests to the service: the token where it asks for one, and errors as sentences.

const TOKEN_KEY = "musicfm-token";
const dialog = document.getElementById("token-dialog");
let asking = null;

export class ServiceError extends Error {}

/** Ask the service, and return what its JSON says. */
export async function ask(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN_KEY);
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const response = await send(path, { ...options, headers });
    if (response.status === 401) {
      // A request that began before the token was given tries again with it, and does not ask once more.
      if (sessionStorage.getItem(TOKEN_KEY) === token) await askForToken();
      continue;
    }
    const body = await response.json().catch(() => ({}));
    if (!response.ok) throw new ServiceError(describe(response.status, body.detail));
    return body;
  }
}

/** Return a path with its query, leaving out what is empty. */
export function withQuery(path, values) {
  const kept = Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return kept.length ? `${path}?${new URLSearchParams(kept)}` : path;
}

/** Return the path of a track's resource; ids may hold slashes and anything else. */
export function trackPath(trackId, rest = "") {
  return `tracks/${encodeURIComponent(trackId)}${rest}`;
}

async function send(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("The service does not answer. Is it still running?");
  }
}

function askForToken() {
  asking ??= new Promise((resolve) => {
    const field = document.getElementById("token");
    field.value = "";
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(TOKEN_KEY, field.value);
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

function describe(status, detail) {
  if (Array.isArray(detail)) return detail.map((item) => `${item.loc.at(-1)}: ${item.msg}`).join("; ");
  return detail || `The service answered with an error (${status}).`;
}
