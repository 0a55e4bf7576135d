// Small parts that every page is made of.

import { h } from "/vendor/preact.js";
import { useEffect, useId, useLayoutEffect, useRef, useState } from "/vendor/hooks.js";
import htm from "/vendor/htm.js";
import { saveCsv } from "/files.js";
import { count, number, percent } from "/format.js";
import { word } from "/words.js";

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

// Copies the address of what is shown; it opens the same view in this browser while the dashboard runs.
export function CopyLink() {
  const [said, setSaid] = useState("");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      setSaid("Copied");
    } catch {
      setSaid("Copy the address bar");
    }
    setTimeout(() => setSaid(""), 2500);
  };
  return html`<span class="copy"><button type="button" onClick=${copy}>Copy link</button><small role="status">${said}</small></span>`;
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
    const words = run.pictures ? "cannot be opened" : "no picture";
    return name ? html`<span class="nopicture" role="img" aria-label=${`${name}: ${words}`}>${words}</span>` : html`<span class="nopicture" aria-hidden="true">${words}</span>`;
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

// A list of images of any length: pages are requested as they come into view. One image is reached by Tab and the
// others by arrow keys, so that the content after the list is one step away.
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
    ref.current.focus({ preventScroll: true }); // the list has it until then: the image that had it may scroll out of view
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
    ${total === 0 && html`<p class="empty">This list has no images.</p>`}
    <ul style=${{ height: `${rows * TILE.height}px` }}>${tiles}</ul></div>`;
}

// A bar from a middle line, as wide as a value of at most `most`.
export function Diverging({ value, most, kinds = ["minus", "plus"] }) {
  const width = Math.min(50, (50 * Math.abs(value)) / (most || 1));
  const style = { width: `${width}%`, left: value < 0 ? `${50 - width}%` : "50%" };
  return html`<span class="diverging" aria-hidden="true"><span class=${kinds[value < 0 ? 0 : 1]} style=${style}></span></span>`;
}

// A term with its meaning: a button that shows the meaning below, for mouse, keyboard and touch.
export function Term({ of, children }) {
  const [open, setOpen] = useState(false);
  const id = useId();
  const { name, text } = word(of);
  const close = (event) => event.key === "Escape" && setOpen(false);
  return html`<span class="term" onKeyDown=${close}>${children}<button type="button" class="what" aria-expanded=${open} aria-controls=${id}
    aria-label=${`What is ${name}?`} onClick=${(event) => (event.stopPropagation(), event.preventDefault(), setOpen(!open))}>?</button></span><span id=${id} class="meaning" role="note" hidden=${!open}>${text}</span>`;
}

// The meanings of several terms as a list that opens.
export function Meanings({ title, words }) {
  return html`<details class="meanings"><summary>${title}</summary><dl>${words.map(([text, of]) => html`<div key=${of}><dt>${text}</dt><dd>${word(of).text}</dd></div>`)}</dl></details>`;
}

// A table with all its digits, as a file.
export function Csv({ name, heads, rows }) {
  return html`<button type="button" class="link csv" aria-label=${`Save ${name} as CSV`} onClick=${() => saveCsv(name, heads, typeof rows === "function" ? rows() : rows)}>CSV</button>`;
}

// Content wider than its place scrolls sideways and shows a hint.
export function Scroll({ label, children }) {
  const ref = useRef(null);
  const [wide, setWide] = useState(false);
  useLayoutEffect(() => {
    const element = ref.current;
    const read = () => setWide(element.scrollWidth > element.clientWidth + 1);
    const observer = new ResizeObserver(read);
    observer.observe(element);
    if (element.firstElementChild) observer.observe(element.firstElementChild);
    read();
    return () => observer.disconnect();
  }, []);
  return html`${wide && html`<p class="note sideways" aria-hidden="true">Scroll sideways for more →</p>`}
    <div class="scroll" tabindex="0" role="region" aria-label=${label} ref=${ref}>${children}</div>`;
}

// How many images, or tokens, have a coefficient of which size. The scale is that of the tallest bar.
export function Histogram({ bins, what, threshold, end = 1 }) {
  const most = Math.max(1, ...bins);
  const edge = (n) => number((end * n) / bins.length);
  const words = bins.map((value, n) => (value ? `${edge(n)} to ${edge(n + 1)}: ${count(value)}` : "")).filter(Boolean).join("; ");
  return html`<figure class="histogram"><div class="bins" role="img" aria-label=${`${what} by coefficient. ${words || "none"}`}>
      ${bins.map((value, n) => html`<span key=${n} class=${threshold != null && n / bins.length >= threshold ? "above" : ""} title=${`${edge(n)} to ${edge(n + 1)}: ${count(value)}`}
        style=${{ height: `${value ? Math.max(2, (100 * value) / most) : 0}%` }}></span>`)}</div>
    <figcaption><span>0</span><span>coefficient; tallest bar ${count(most)}</span><span>${end === 1 ? "1" : number(end)}</span></figcaption></figure>`;
}

// Bars of what is lost and gained: losses to the right, gains to the left; only losses start at the left edge.
export function Effects({ items, most, both, text }) {
  return html`<ul class="bars spans">${items.map((item) => html`<li key=${item.name}><span class="ellipsis" title=${item.name}>${item.name}</span>
    ${both ? html`<${Diverging} value=${item.value} most=${most} kinds=${["gain", "loss"]} />` : html`<${ShareBar} value=${item.value / (most || 1)} interval=${item.interval} kind="loss" />`}
    <span class="value">${text(item)}</span></li>`)}</ul>`;
}

export function interval(ends, digits = 0) {
  return ends && ends[0] !== ends[1] ? `${percent(ends[0], digits)} to ${percent(ends[1], digits)}` : "";
}

// A share of 1 with its interval.
export function ShareBar({ value, interval, kind = "" }) {
  const left = (share) => `${Math.max(0, Math.min(100, 100 * share))}%`;
  return html`<span class="sharebar ${kind}" aria-hidden="true"><span style=${{ width: left(value) }}></span>
    ${interval && html`<i style=${{ left: left(interval[0]), width: `calc(${left(interval[1])} - ${left(interval[0])})` }}></i>`}</span>`;
}

export function ExpertLink({ expert, level, levels, name = "", onOpen }) {
  const words = `${levels > 1 ? `${level}/${expert}` : expert}${name ? ` ${name}` : ""}`;
  return html`<button type="button" class="link" onClick=${() => onOpen(level, expert)}>${words}</button>`;
}
