// The service's base URL: the parent of this folder, so that the pages work behind a proxy that strips a path prefix.

const ROOT = new URL("../", import.meta.url);

/** The URL of a call. `path` is relative to the base URL and has no leading slash. */
export const addressOf = (path) => new URL(path, ROOT);
