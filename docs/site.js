// The theme puts wide tables into regions that scroll. Those must be reachable by keyboard.
const focusable = () => {
  for (const region of document.querySelectorAll(".md-typeset__scrollwrap")) {
    if (region.scrollWidth > region.clientWidth) region.tabIndex = 0;
    else region.removeAttribute("tabindex");
  }
};
new MutationObserver(focusable).observe(document.documentElement, { childList: true, subtree: true });
addEventListener("load", focusable);
addEventListener("resize", focusable);
