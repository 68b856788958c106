// Create elements from text, never from HTML, so that a title can contain any characters.

export const byId = (id) => document.getElementById(id);

export function element(tag, className, ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content);
  return made;
}

export function button(words, onClick, className = "") {
  const made = element("button", className, words);
  made.type = "button";
  made.addEventListener("click", onClick);
  return made;
}

/** Text for screen readers only. */
export const hidden = (words) => element("span", "hidden-text", words);

/** A sign with a text for screen readers and the tooltip. */
export function sign(shown, words, className = "") {
  const mark = element("span", "", shown);
  mark.setAttribute("aria-hidden", "true");
  const made = element("span", className, mark, hidden(words));
  made.title = words;
  return made;
}

/** Show a message at the edge of the window, or none for "". */
export function tell(words) {
  byId("error").textContent = words;
  byId("error").hidden = !words;
}

/** Whether the listener prefers reduced motion. */
export const isStill = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
