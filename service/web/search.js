// Finding tracks: the most played ones to start with, and search.

import { call } from "./api.js";
import { artOf } from "./art.js";
import { remember, titleOf, trackOf } from "./session.js";
import { byId, button, element, sign } from "./show.js";
import { listOptions, useFields } from "./tuning.js";

const SEEDS = 6;
const SEEDS_AMONG = 100; // most played tracks to choose from, so that one artist does not take every place
const FOUND = 12;
const TYPING_MS = 150;
const FIELDS = [["genre", "explicit"], ["genre"], ["explicit"], []]; // attributes that the page uses, where the release has them
const REFUSED = 422;

let choices = null;
let tell = () => {};
let popular = []; // the most played tracks, in the order of the map's points
let typing = 0;
let asked = 0;

export const mostPlayed = () => popular;

/** `onFailure` gets the message of an error. */
export function listenToSearch(onChoice, onFailure) {
  choices = onChoice;
  tell = onFailure;
  byId("query").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(search, TYPING_MS);
  });
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
}

/** Load the most played tracks and find out which attributes the release has. Throws CallFailed. */
export async function loadPopular() {
  for (const names of FIELDS) {
    try {
      popular = (await find("", SEEDS_AMONG, names.join(","))).items;
      useFields(names);
      break;
    } catch (error) {
      if (error.status !== REFUSED || !names.length) throw error;
    }
  }
  remember(popular);
  if (!byId("query").value) show("", seedsOf(popular));
}

const find = (query, limit, fields) => call(`tracks?${new URLSearchParams({ query, limit, ...(fields && { fields }) })}`);

async function search() {
  const number = ++asked;
  const words = byId("query").value;
  if (!words) {
    show("", seedsOf(popular));
    return;
  }
  try {
    const { items } = await find(words, FOUND, listOptions().fields);
    if (number !== asked) return; // a newer search has started
    remember(items);
    show(words, items);
  } catch (error) {
    tell(error.message);
  }
}

function show(words, items) {
  byId("found-title").textContent = words ? resultsTitle(items.length) : "Popular right now";
  byId("search-part").dataset.shows = words ? "found" : "seeds";
  byId("found").replaceChildren(...items.map(foundRow));
  if (!items.length && words) byId("found").append(element("li", "quiet", "No track matches all of these words."));
}

function resultsTitle(count) {
  if (count === FOUND) return `First ${count} results`;
  return count === 1 ? "1 result" : `${count} results`;
}

/** The most played track of each artist first, so that the starting points differ. */
function seedsOf(tracks) {
  const artists = new Set();
  const isNew = ({ artist }) => artist && !artists.has(artist) && artists.add(artist);
  const firsts = tracks.filter(isNew);
  return [...firsts, ...tracks.filter((track) => !firsts.includes(track))].slice(0, SEEDS);
}

function foundRow({ track_id: id }) {
  const track = trackOf(id);
  const chosen = button("", () => choices.onPlay(track), "play");
  chosen.append(artOf(track), element("span", "name", element("span", "title", titleOf(track)), element("span", "artist", track.artist ?? "")));
  const queue = button("", () => choices.onQueue(track), "icon queue");
  queue.append(sign("+", `Add to queue: ${titleOf(track)}`));
  return element("li", "row", chosen, queue);
}
