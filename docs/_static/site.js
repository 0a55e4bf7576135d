// What scrolls sideways can be reached and scrolled with the keyboard.
const boxes = document.querySelectorAll("pre, .table-wrapper, div.math, article p:has(> img[src$='.svg'])");
const reach = (box) => {
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  else box.removeAttribute("tabindex");
};
const watcher = new ResizeObserver((seen) => seen.forEach(({ target }) => reach(target)));
for (const box of boxes) watcher.observe(box);
addEventListener("load", () => boxes.forEach(reach));
