// The listener's options for the list: filters, artist spacing, caution. They are kept for this tab.

const KEPT = "segue.tuning";
const NONE = { genres: [], clean: false, perArtist: "", gap: "", caution: "" };

export const tuning = { ...NONE, ...JSON.parse(sessionStorage.getItem(KEPT) ?? "{}") };
let fields = ""; // attributes that the release has, of those that the page uses

export function change(more) {
  Object.assign(tuning, more);
  sessionStorage.setItem(KEPT, JSON.stringify(tuning));
}

export const useFields = (names) => { fields = names.join(","); };
export const hasField = (name) => fields.split(",").includes(name);

/** The number of options that differ from the defaults. */
export const countChosen = () => tuning.genres.length + [tuning.clean, tuning.perArtist, tuning.gap, tuning.caution].filter(Boolean).length;

/** Forget all options and attributes. Return false if there were none. */
export function forgetOptions() {
  const had = countChosen() > 0 || fields !== "";
  fields = "";
  change(NONE);
  return had;
}

/** Query parameters of a request for a list. */
export function listOptions() {
  const conditions = { ...(tuning.genres.length && { genre: tuning.genres }), ...(tuning.clean && { explicit: false }) };
  return {
    ...(fields && { fields }),
    ...(Object.keys(conditions).length && { filter: JSON.stringify(conditions) }),
    ...(tuning.caution && { caution: tuning.caution }),
    ...(tuning.perArtist && { max_per_artist: tuning.perArtist }),
    ...(tuning.gap && { artist_gap: tuning.gap }),
  };
}
