// Calls to the service with the operator's API key, which is stored for this tab only.

import { addressOf } from "./place.js";

const KEY = "segue.admin-key"; // not the player's key, which needs fewer scopes

export const setKey = (text) => sessionStorage.setItem(KEY, text);

/** The body of a response. Throws an Error with a message for the operator and, if there was a response, its `status`. */
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
