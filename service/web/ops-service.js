// Calls to the service with the operator's key, which stays in this tab.

import { addressOf } from "./place.js";

const KEY = "segue.admin-key"; // not the player's: what listens to music needs no such key

export const setKey = (text) => sessionStorage.setItem(KEY, text);

/** What the service answers. Throws an Error with words for the operator, and the `status` where there was an answer. */
export async function call(path, options = {}, limitMs = 5000) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(addressOf(path), { ...options, headers, signal: AbortSignal.timeout(limitMs) });
  } catch {
    throw new Error("The service does not answer.");
  }
  const body = await answer.json().catch(() => null);
  if (!answer.ok) {
    const error = new Error(body?.detail ? `${body.title}: ${body.detail}.` : `The service answered ${answer.status}.`);
    error.status = answer.status;
    throw error;
  }
  return body;
}
