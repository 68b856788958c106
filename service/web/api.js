// The HTTP client: calls, the API key, server-sent events, response times.

import { addressOf } from "./place.js";

const API_KEY = "segue.key";
const KEPT_TIMES = 50;
const RETRY_AFTER_MS = [250, 500, 1000, 2000, 4000];
const ANSWER_MS = 10_000; // longer than the service's own limits

/** A failed call, with a message for the listener. `status` is 0 if there was no response, `title` is that of the problem. */
export class CallFailed extends Error {
  constructor(message, status, title = "") {
    super(message);
    this.status = status;
    this.title = title;
  }

  /** Whether the same call may succeed later. */
  get isTemporary() { return this.status === 0 || this.status === 429 || this.status >= 500; }
}

const times = [];
let onTime = () => {};
let onKeyWanted = () => {};

export const listenToTimes = (listener) => { onTime = listener; };
export const listenForKeys = (listener) => { onKeyWanted = listener; };
export const keepKey = (key) => sessionStorage.setItem(API_KEY, key); // for this tab only: a key must not stay in the browser

function headersOf(more = {}) {
  const key = sessionStorage.getItem(API_KEY);
  return { ...more, ...(key && { Authorization: `Bearer ${key}` }) };
}

/** The body of a response. Throws CallFailed. */
export async function call(path, options = {}) {
  const began = performance.now();
  let answer;
  try {
    answer = await fetch(addressOf(path), { ...options, headers: headersOf(options.headers), signal: AbortSignal.timeout(ANSWER_MS) });
  } catch {
    throw new CallFailed("The service does not answer. Is it still running?", 0);
  }
  const body = answer.status === 204 ? null : await answer.json().catch(() => null);
  note(performance.now() - began);
  if (answer.status === 401 || answer.status === 403) onKeyWanted();
  if (!answer.ok) {
    const message = body?.detail ? `${body.title}: ${body.detail}` : `The service answered ${answer.status}.`;
    throw new CallFailed(message, answer.status, body?.title);
  }
  return body;
}

/** The bytes of a response. Not included in the response times. Throws CallFailed. */
export async function bytes(path) {
  const answer = await fetch(addressOf(path), { headers: headersOf() }).catch(() => { throw new CallFailed("The service does not answer.", 0); });
  if (!answer.ok) throw new CallFailed(`The service answered ${answer.status}.`, answer.status);
  return answer.arrayBuffer();
}

export const send = (path, body) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

function note(ms) {
  times.push(ms);
  if (times.length > KEPT_TIMES) times.shift();
  onTime({ last: ms, median: [...times].sort((a, b) => a - b)[times.length >> 1] });
}

/**
 * Read server-sent events of a path until `signal` aborts; reconnect after failures and restarts of the service.
 * (EventSource cannot send an API key.) `handlers` has a function for each kind of event, `lost` and `found`.
 */
export async function watch(path, handlers, signal) {
  let failures = 0;
  while (!signal.aborted) {
    try {
      const answer = await fetch(addressOf(path), { headers: headersOf({ Accept: "text/event-stream" }), signal });
      if (!answer.ok) throw new CallFailed(`The service answered ${answer.status}.`, answer.status);
      if (failures) handlers.found();
      failures = 0;
      for await (const { kind, data } of eventsOf(answer.body)) handlers[kind]?.(data);
      await pause(RETRY_AFTER_MS[0], signal); // the service closes each stream after a while, and at shutdown
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 401 || error.status === 403) return; // a new key starts another stream
      if (!failures++) handlers.lost();
      await pause(RETRY_AFTER_MS[Math.min(failures, RETRY_AFTER_MS.length) - 1], signal);
    }
  }
}

async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const lines = Object.fromEntries(part.split("\n").map((line) => [line.split(": ", 1)[0], line.slice(line.indexOf(": ") + 2)]));
      if (lines.event) yield { kind: lines.event, data: JSON.parse(lines.data) };
    }
  }
}

/**
 * Call until the call succeeds or cannot succeed later, at most every four seconds. `onFailure` gets each temporary error.
 * Throws CallFailed, also if `signal` aborts: then `isGivenUp` is set.
 */
export async function callUntilAnswered(ask, onFailure, signal) {
  for (let failures = 0; ; failures++) {
    try {
      return await ask();
    } catch (error) {
      if (!error.isTemporary) throw error;
      onFailure(error);
      await pause(RETRY_AFTER_MS[Math.min(failures, RETRY_AFTER_MS.length - 1)], signal);
      if (signal?.aborted) throw Object.assign(error, { isGivenUp: true });
    }
  }
}

export function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}
