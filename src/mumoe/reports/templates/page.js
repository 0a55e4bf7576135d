// Tables and figures wider than their place scroll sideways; a line above them says so while they do.
"use strict";
(() => {
  const places = [...document.querySelectorAll(".wide")].map((place) => {
    const hint = document.createElement("p");
    hint.className = "sideways soft";
    hint.textContent = "Scroll sideways to see all columns →";
    hint.hidden = true;
    place.before(hint);
    return { place, hint };
  });
  const check = () => {
    for (const { place, hint } of places) hint.hidden = place.scrollWidth <= place.clientWidth + 1;
  };
  const observer = new ResizeObserver(check);
  for (const { place } of places) observer.observe(place);
  for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", check);
  check();
})();
