// Where the service is: one folder above its modules, so that the pages work behind a proxy that strips a path prefix.

const ROOT = new URL("../", import.meta.url);

/** The address of a call, whose path is given from the service's root and without a slash before it. */
export const addressOf = (path) => new URL(path, ROOT);
