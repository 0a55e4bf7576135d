// A table of any length: only the rows in sight exist. Arrow keys move, Enter opens, the space bar selects.

import { useLayoutEffect, useRef, useState } from "/vendor/hooks.js";
import { html, scrollTo, useBox, visible } from "/parts.js";

const ROW = 44;
const HEAD = 34;

export function Grid({ label, className = "", heads, places, cells, sort, direction, choose, opened, onOpen, picked, onPick }) {
  const ref = useRef(null);
  const box = useBox(ref);
  const [active, setActive] = useState(0);
  const [first, last] = visible(box, ROW, places.length);
  // The active row, also for keys that come before the page is drawn again: nothing but `activate` may set it.
  const now = useRef(0);
  const activate = (place) => {
    now.current = Math.max(0, Math.min(places.length - 1, place));
    setActive(now.current);
  };
  useLayoutEffect(() => activate(now.current), [places]);
  const move = (step) => {
    activate(now.current + step);
    scrollTo(ref.current, now.current, ROW, HEAD);
  };
  const onKeyDown = (event) => {
    if (event.target !== event.currentTarget) return;
    const page = Math.max(1, Math.floor(box.height / ROW) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -places.length, End: places.length };
    if (event.key in steps) move(steps[event.key]);
    else if (event.key === "Enter" && places.length) onOpen(places[now.current]);
    else if (event.key === " " && places.length && onPick) onPick(places[now.current]);
    else return;
    event.preventDefault();
  };
  const rows = places.slice(first, last).map((n, offset) => {
    const place = first + offset;
    const chosen = picked?.(n) ?? false;
    return html`<div key=${n} role="row" id=${`row-${n}`} aria-rowindex=${place + 2} aria-selected=${onPick ? chosen : n === opened}
        class="row ${place === active ? "active" : ""} ${n === opened ? "opened" : ""}" style=${{ top: `${HEAD + place * ROW}px` }}
        onClick=${() => (activate(place), onOpen(n))}>
      ${onPick && html`<span role="gridcell" class="pick" onClick=${(event) => event.stopPropagation()}><label>
        <input type="checkbox" tabindex="-1" aria-label=${`Select expert ${n}`} checked=${chosen} onChange=${() => onPick(n)} /></label></span>`}
      ${cells(n).map((cell, k) => html`<span key=${k} role="gridcell" class=${heads[k][2]}>${cell}</span>`)}</div>`;
  });
  return html`<div class="experts ${className}" role="grid" aria-label=${label} aria-rowcount=${places.length + 1} tabindex="0" ref=${ref}
      aria-activedescendant=${places.length && active >= first && active < last ? `row-${places[active]}` : undefined} onKeyDown=${onKeyDown}>
    <div class="spacer" role="presentation" style=${{ height: `${HEAD + places.length * ROW}px` }}></div>
    <div class="row head" role="row" aria-rowindex="1">
      ${onPick && html`<span role="columnheader" class="pick"><span class="unseen">Selected</span></span>`}
      ${heads.map(([key, text, kind]) => html`<span key=${key} role="columnheader" class=${kind} aria-sort=${kind === "thumb" ? undefined : key === sort ? direction : "none"}>
        ${kind === "thumb" ? html`<span class="unseen">${text}</span>` : html`<button type="button" class="plain" onClick=${() => choose(key)}>${text}${key === sort ? (direction === "ascending" ? " ▲" : " ▼") : ""}</button>`}</span>`)}
    </div>
    ${rows}</div>`;
}
