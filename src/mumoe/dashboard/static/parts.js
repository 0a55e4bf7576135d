// Small parts that every page is made of.

import { h } from "/vendor/preact.js";
import { useEffect, useId, useLayoutEffect, useRef, useState } from "/vendor/hooks.js";
import htm from "/vendor/htm.js";
import { number } from "/format.js";

export const html = htm.bind(h);

export function Choice({ label, value, options, onChange, className = "" }) {
  const id = useId();
  return html`<span class="field ${className}"><label for=${id}>${label}</label>
    <select id=${id} value=${value} onChange=${(event) => onChange(event.currentTarget.value)}>
      ${options.map(([key, text]) => html`<option key=${key} value=${key} selected=${key === value}>${text}</option>`)}
    </select></span>`;
}

export function Progress({ job }) {
  const known = job.total > 0;
  const share = known ? Math.round((100 * job.done) / job.total) : undefined;
  return html`<div class="progress" role="status">
    <p>${job.note || "Working"}${known ? `: ${share}%` : ""}</p>
    <progress aria-label=${job.note || "Progress"} max="100" value=${share}></progress>
  </div>`;
}

export function Problem({ text, onClose }) {
  if (!text) return null;
  return html`<div class="problem" role="alert"><p>${text}</p>
    ${onClose && html`<button type="button" class="plain" aria-label="Dismiss" onClick=${onClose}>×</button>`}</div>`;
}

// Width and scroll position of an element, kept up to date.
export function useBox(ref) {
  const [box, setBox] = useState({ width: 0, height: 0, top: 0 });
  useLayoutEffect(() => {
    const element = ref.current;
    const read = () => setBox({ width: element.clientWidth, height: element.clientHeight, top: element.scrollTop });
    const observer = new ResizeObserver(read);
    observer.observe(element);
    element.addEventListener("scroll", read, { passive: true });
    read();
    return () => {
      observer.disconnect();
      element.removeEventListener("scroll", read);
    };
  }, []);
  return box;
}

// Rows first to last of a list of fixed height that can be seen, and a few around them.
export function visible(box, height, total, extra = 6) {
  const first = Math.max(0, Math.floor(box.top / height) - extra);
  const last = Math.min(total, Math.ceil((box.top + box.height) / height) + extra);
  return [first, last];
}

// Keep row `place` inside a scrolled element.
export function scrollTo(element, place, height, above = 0) {
  const top = place * height;
  if (top < element.scrollTop) element.scrollTop = top;
  else if (top + height + above > element.scrollTop + element.clientHeight) {
    element.scrollTop = top + height + above - element.clientHeight;
  }
}

export function Picture({ run, image, size = 96, name }) {
  const [failed, setFailed] = useState(false);
  useEffect(() => setFailed(false), [image]);
  if (!run.pictures || failed) {
    return html`<span class="nopicture" role="img" aria-label=${name}>${run.pictures ? "cannot be opened" : "no picture"}</span>`;
  }
  const source = `/api/picture?image=${image}&size=${size}`;
  return html`<img src=${source} alt=${name} width=${size} height=${size} loading="lazy" decoding="async"
    onError=${() => setFailed(true)} />`;
}

export function short(names, most = 2) {
  if (!names.length) return "none";
  return names.slice(0, most).join(", ") + (names.length > most ? ` +${names.length - most}` : "");
}

function Tile({ run, item, onOpen, selected, place, reached }) {
  const words = `${item.name}: ${short(item.truth)}, answer ${short(item.answer)}`;
  return html`<button type="button" class="tile ${item.right ? "" : "wrong"}" aria-current=${selected ? "true" : undefined}
      aria-label=${words} title=${words} data-place=${place} tabindex=${reached ? 0 : -1} onClick=${() => onOpen(item.image)}>
    <${Picture} run=${run} image=${item.image} name="" />
    <span class="caption">${short(item.truth, 1)}</span>
    <span class="caption second"><span>${item.right ? "" : `✗ ${short(item.answer, 1)}`}</span>
      ${item.coefficient != null ? html`<b>${number(item.coefficient)}</b>` : ""}</span>
  </button>`;
}

const TILE = { width: 112, height: 158 };

// A list of images of any length: pages are asked for as they come into sight. One image is reached by Tab, the others
// by arrow keys, so that what follows the list is one step away.
export function Gallery({ run, total, load, onOpen, selected, label }) {
  const ref = useRef(null);
  const box = useBox(ref);
  const pages = useRef({ load: null, kept: null });
  if (pages.current.load !== load) pages.current = { load, kept: new Map() };
  const { kept } = pages.current;
  const [, setFresh] = useState(0);
  const [active, setActive] = useState(0);
  const now = useRef(0); // the same, also for keys that come before the page is drawn again
  const focus = useRef(false); // whether the active image takes the focus as soon as it is drawn
  useLayoutEffect(() => {
    ref.current.scrollTop = 0;
    reach(0);
  }, [load]);
  useLayoutEffect(() => {
    const tile = focus.current && ref.current.querySelector(`[data-place="${active}"]`);
    if (!tile) return;
    focus.current = false;
    tile.focus({ preventScroll: true });
  });
  const columns = Math.max(1, Math.floor(box.width / TILE.width));
  const rows = Math.ceil(total / columns);
  const [first, last] = visible(box, TILE.height, rows, 2);
  const size = 100;
  const reach = (place) => {
    now.current = place;
    setActive(place);
  };
  const onKeyDown = (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -total, End: total };
    if (!(event.key in steps) || !total) return;
    event.preventDefault();
    reach(Math.max(0, Math.min(total - 1, now.current + steps[event.key])));
    focus.current = true;
    ref.current.focus({ preventScroll: true }); // the list has it until then: the image that had it may go out of sight
    scrollTo(ref.current, Math.floor(now.current / columns), TILE.height);
  };
  const wanted = [];
  for (let place = first * columns; place < Math.min(total, last * columns); place += 1) wanted.push(place);
  useEffect(() => {
    for (const number of new Set(wanted.map((place) => Math.floor(place / size)))) {
      if (kept.has(number)) continue;
      kept.set(number, null);
      load(number * size, size).then(
        (found) => {
          kept.set(number, found.items);
          if (pages.current.kept === kept) setFresh((n) => n + 1);
        },
        () => kept.delete(number),
      );
    }
  });
  const tiles = wanted.map((place) => {
    const item = kept.get(Math.floor(place / size))?.[place % size];
    const style = { top: `${Math.floor(place / columns) * TILE.height}px`, left: `${(place % columns) * TILE.width}px` };
    const tile = item
      ? html`<${Tile} run=${run} item=${item} onOpen=${(image) => (reach(place), onOpen(image))} selected=${item.image === selected} place=${place} reached=${place === active} />`
      : html`<span class="tile waiting"></span>`;
    return html`<li key=${place} style=${style} aria-setsize=${total} aria-posinset=${place + 1}>${tile}</li>`;
  });
  return html`<div class="gallery" ref=${ref} tabindex="0" role="region" aria-label=${`${label} (arrow keys move)`} onKeyDown=${onKeyDown} aria-busy=${wanted.some((place) => !kept.get(Math.floor(place / size)))}>
    ${total === 0 && html`<p class="empty">No image is in this list.</p>`}
    <ul style=${{ height: `${rows * TILE.height}px` }}>${tiles}</ul></div>`;
}

// A bar from a middle line, as wide as a value of at most `most`.
export function Diverging({ value, most }) {
  const width = Math.min(50, (50 * Math.abs(value)) / (most || 1));
  const style = { width: `${width}%`, left: value < 0 ? `${50 - width}%` : "50%" };
  return html`<span class="diverging" aria-hidden="true"><span class=${value < 0 ? "minus" : "plus"} style=${style}></span></span>`;
}

// A share of 1 with its interval.
export function ShareBar({ value, interval }) {
  const left = (share) => `${Math.max(0, Math.min(100, 100 * share))}%`;
  return html`<span class="sharebar" aria-hidden="true"><span style=${{ width: left(value) }}></span>
    ${interval && html`<i style=${{ left: left(interval[0]), width: `calc(${left(interval[1])} - ${left(interval[0])})` }}></i>`}</span>`;
}

export function ExpertLink({ expert, level, levels, onOpen }) {
  const words = levels > 1 ? `${level}/${expert}` : String(expert);
  return html`<button type="button" class="link" onClick=${() => onOpen(level, expert)}>${words}</button>`;
}
