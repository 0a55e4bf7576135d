// The token view of a language model.

import { useEffect, useMemo } from "/vendor/hooks.js";
import { go, listed, read, toggled, useAddress } from "/address.js";
import { useAnswer } from "/answers.js";
import { get } from "/api.js";
import { count, number, percent, plural, signed } from "/format.js";
import { Grid } from "/grid.js";
import { Naming } from "/notes.js";
import { Choice, CopyLink, Csv, Histogram, html, Meanings, Problem, Scroll, ShareBar, Term } from "/parts.js";

const SORTS = {
  effect: ["worth", -1],
  mean: ["mean coefficient", -1],
  used: ["share of tokens that use it", -1],
  expert: ["number", 1],
};

// A token inside a text: line ends and tabs by a sign.
function signs(piece) {
  return piece.replaceAll("\n", "⏎").replaceAll("\t", "⇥");
}

// A token alone: spaces by a sign, too, where there is nothing else.
function shown(piece) {
  return piece.trim() ? signs(piece) : signs(piece).replaceAll(" ", "␣");
}

function Token({ piece, coefficient, center, words, onClick, current }) {
  const style = { "--a": Math.min(1, coefficient).toFixed(3) };
  const className = `token ${center ? "center" : ""} ${current ? "current" : ""}`;
  if (onClick) {
    return html`<button type="button" class=${className} style=${style} title=${words} aria-pressed=${current} onClick=${onClick}>${signs(piece)}</button>`;
  }
  return html`<span class=${className} style=${style} title=${words}>${signs(piece)}</span>`;
}

// The place in the address: experts, expert/LAYER/N, pair/LAYER/N/LAYER/N, texts. Layers are counted from 0.
function place(run, [page, ...rest]) {
  const numbers = rest.map(Number);
  const whole = numbers.every((n) => Number.isInteger(n) && n >= 0) && numbers.every((n, at) => at % 2 || n < run.layers.length);
  if (whole && page === "expert" && numbers.length === 2) return { page, experts: [numbers] };
  if (whole && page === "pair" && numbers.length === 4) return { page, experts: [numbers.slice(0, 2), numbers.slice(2)] };
  return { page: page === "texts" ? page : "experts", experts: [] };
}

export function TextDashboard({ run, theme, notes }) {
  const defaults = useMemo(() => ({ layer: "0", sort: "effect", reversed: "", q: "", pins: "", text: "0", token: "0", of: "" }), []);
  const [parts, given, setView] = useAddress(defaults);
  const view = useMemo(() => sound(run, given, defaults), [given]);
  const where = place(run, parts);
  const open = (which, n) => {
    setView({ layer: String(which) });
    go(`expert/${which}/${n}`);
  };
  const tab = where.page === "texts" ? "texts" : "experts";
  const close = (at) => (where.experts.length > 1 ? go(`expert/${where.experts[1 - at].join("/")}`) : go("experts"));
  return html`<div class="page in-${tab} at-${where.page} text">
    <header class="top"><h1 title=${run.path}>${run.name}</h1><span class="spec">${run.tokenizer} · ${plural(run.tokens, "token")} of ${run.split} ·
      ${" "}${number(run.loss, 3)} nats per token, ${number(run.bits_per_byte, 3)} bits per byte</span>${theme}<${CopyLink} /></header>
    <nav class="tabs" aria-label="Pages">${[["experts", "Experts"], ["texts", "Texts"]].map(([key, text]) => html`<a key=${key} href=${`#/${key}`}
      aria-current=${tab === key ? "page" : undefined}>${text}</a>`)}</nav>
    <main id="main" tabindex="-1">${tab === "texts" ? html`<${Texts} run=${run} notes=${notes} view=${view} setView=${setView} onOpen=${open} />`
      : html`<${Experts} run=${run} notes=${notes} view=${view} setView=${setView} opened=${where.experts[0]} onOpen=${open} />
        ${where.experts.map(([layer, expert], at) => html`<${Expert} key=${at} run=${run} notes=${notes} layer=${layer} expert=${expert} view=${view} setView=${setView}
          others=${where.experts.length === 1} onClose=${() => close(at)} />`)}
        ${!where.experts.length && html`<section class="pane detail empty-pane"><p class="note">Choose an expert to see the tokens that it reads.</p></section>`}`}</main></div>`;
}

function sound(run, given, defaults) {
  const layer = Number(given.layer) in run.layers ? given.layer : defaults.layer;
  const sort = Object.hasOwn(SORTS, given.sort) ? given.sort : defaults.sort;
  const text = Number(given.text) >= 0 && Number(given.text) < run.excerpts ? given.text : defaults.text;
  const pins = listed(given.pins).every((pin) => Number(pin.split("/")[0]) in run.layers) ? given.pins : "";
  return { ...given, layer, sort, text, pins };
}

function layers(run) {
  return run.layers.map((item, n) => [String(n), `${item.layer} (${item.num_experts})`]);
}

function ordered(columns, notes, layer, { sort, reversed, q }) {
  const words = q.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (at) => {
    const { name, note } = notes.of(layer, columns.expert[at]);
    return [columns.expert[at], name, note, columns.most[at], columns.example[at]].join("\n").toLowerCase();
  };
  const sign = SORTS[sort][1] * (reversed ? -1 : 1);
  const value = (at) => columns[sort][at];
  const places = [...columns.expert.keys()].filter((at) => words.every((word) => text(at).includes(word)));
  return places.sort((a, b) => {
    if (value(a) === value(b)) return a - b;
    if (value(a) == null) return 1;
    return value(b) == null ? -1 : sign * (value(a) - value(b));
  });
}

function Experts({ run, notes, view, setView, opened, onOpen }) {
  const { sort, q } = view;
  const layer = Number(view.layer);
  const name = run.layers[layer].layer;
  const reversed = view.reversed === "1";
  const { found: columns, problem, busy } = useAnswer(view.layer, () => get("/api/text/layer", { layer }), { fresh: true });
  const choose = (key) => setView({ sort: key, reversed: key === sort && !reversed ? "1" : "" });
  const order = useMemo(() => (columns ? ordered(columns, notes, name, { sort, reversed, q }) : []), [columns, notes, sort, reversed, q]);
  const places = useMemo(() => order.map((at) => columns.expert[at]), [order]);
  const place = useMemo(() => new Map(columns?.expert.map((n, at) => [n, at])), [columns]);
  const start = opened ? null : places[0];
  useEffect(() => {
    if (start != null && !read().parts.length) location.replace(`${location.pathname}#/expert/${layer}/${start}`);
  }, [start]);
  const heads = [["expert", "No.", "num"], ["effect", "Worth", "num"], ["mean", "Mean", "num"], ["used", "Used", "num"], ["expert", "Reads", "wide"]];
  const cells = (n) => {
    const at = place.get(n);
    const called = notes.of(name, n).name;
    return [n, signed(columns.effect[at], 4), number(columns.mean[at], 3), percent(columns.used[at], 0),
      html`${called && html`<b class="ellipsis" title=${called}>${called}</b>`}<span class="ellipsis">${columns.most[at]} <code>${shown(columns.example[at])}</code></span>`];
  };
  const row = (at) => {
    const { name: called, note } = notes.of(name, columns.expert[at]);
    return [name, columns.expert[at], called, note, columns.effect[at], columns.mean[at], columns.used[at], columns.half[at], columns.most[at], columns.example[at]];
  };
  const direction = SORTS[sort][1] * (reversed ? -1 : 1) > 0 ? "ascending" : "descending";
  return html`<section class="pane list" aria-label="Experts" aria-busy=${busy}>
    <label class="field search"><span class="unseen">Search experts by kind of token, token, name, note or number</span>
      <input type="search" value=${q} placeholder="Search: kind of token, token, name or note" onInput=${(event) => setView({ q: event.currentTarget.value })} /></label>
    <div class="fields">
      <${Choice} label="Layer (experts)" value=${view.layer} onChange=${(value) => setView({ layer: value })} options=${layers(run)} />
      <${Choice} label="Sort by" value=${sort} onChange=${choose} options=${Object.entries(SORTS).map(([key, [text]]) => [key, text])} /></div>
    <${Pins} run=${run} notes=${notes} view=${view} setView=${setView} onOpen=${onOpen} />
    <${Problem} text=${problem || notes.problem} />
    ${columns && html`<p class="note listline"><span role="status">${plural(places.length, "expert")} of ${name}.</span>${" "}
      <${Csv} name=${`experts-${name}`} heads=${["layer", "expert", "name", "note", "worth", "mean_coefficient", "used", "at_least_half", "reads", "token"]} rows=${() => order.map(row)} /></p>`}
    <${Meanings} title="What the columns mean" words=${[["Worth", "worth"], ["Mean", "mean_token"], ["Used", "used"], ["Reads", "reads"]]} />
    ${columns && html`<${Grid} label="Experts" className="plainrows" heads=${heads} places=${places} cells=${cells} sort=${sort} direction=${direction} choose=${choose}
      opened=${opened && opened[0] === layer ? opened[1] : null} onOpen=${(n) => onOpen(layer, n)} />`}
  </section>`;
}

function called(run, notes, key) {
  const [layer, expert] = key.split("/").map(Number);
  const name = notes.of(run.layers[layer].layer, expert).name;
  return { layer, expert, words: `expert ${expert} of ${run.layers[layer].layer}${name ? ` (${name})` : ""}` };
}

function Pins({ run, notes, view, setView, onOpen }) {
  const pins = listed(view.pins);
  if (!pins.length) return null;
  return html`<p class="pins"><span class="note">Pinned:</span>${pins.map((pin) => {
    const { layer, expert, words } = called(run, notes, pin);
    return html`<span class="pin" key=${pin}><button type="button" class="link" onClick=${() => onOpen(layer, expert)}>${words}</button>
      <button type="button" class="plain" aria-label=${`Unpin ${words}`} onClick=${() => setView({ pins: toggled(view.pins, pin) })}>×</button></span>`;
  })}</p>`;
}

function Expert({ run, notes, layer, expert, view, setView, others, onClose }) {
  const { found, problem, busy } = useAnswer(`${layer}/${expert}`, () => get("/api/text/expert", { layer, expert }), { fresh: true });
  const name = run.layers[layer].layer;
  const title = `Expert ${expert} of ${name}`;
  const mine = `${layer}/${expert}`;
  const pins = listed(view.pins);
  const rest = pins.filter((pin) => pin !== mine);
  return html`<section class="pane detail" aria-label=${title} aria-busy=${busy}>
    <header class="panehead"><button type="button" class="back" onClick=${onClose}>‹ ${others ? "Experts" : "Close"}</button><h2>${title}${notes.of(name, expert).name && html`<span class="named">${notes.of(name, expert).name}</span>`}</h2></header>
    <div class="tools"><button type="button" aria-pressed=${pins.includes(mine)} onClick=${() => setView({ pins: toggled(view.pins, mine) })}>${pins.includes(mine) ? "Unpin" : "Pin"}</button>
      ${others && html`<${Choice} label="Side by side with" value="" className="inline bare" onChange=${(key) => key && go(`pair/${mine}/${key}`)}
        options=${[["", rest.length ? "Side by side with ..." : "Side by side: pin another expert first"], ...rest.map((key) => [key, called(run, notes, key).words])]} />`}</div>
    <${Problem} text=${problem} />
    ${found && html`<${Tokens} run=${run} notes=${notes} found=${found} name=${name} expert=${expert} />`}</section>`;
}

function Tokens({ run, notes, found, name, expert }) {
  const worth = found.effect ? `${signed(found.effect.all, 4)} nats` : "not measured";
  const file = `${name}-expert-${expert}`;
  return html`<p class="headline">${found.effect ? html`Without it the loss changes by <b>${signed(found.effect.all, 4)}</b> nats per token.` : "What its ablation changes was not measured."}</p>
    <h3>Tokens with the largest coefficients <small>with the text around them; darker is a larger coefficient</small></h3>
    <ol class="quotes">${found.top.map((token) => html`<li key=${token.row}><span class="num">${number(token.coefficient)}</span>
      <p class="quote">${token.pieces.map((piece, n) => html`<${Token} key=${n} piece=${piece} coefficient=${token.coefficients[n]} center=${n === token.center}
        words=${`coefficient ${number(token.coefficients[n], 3)}`} />`)}</p></li>`)}</ol>
    <${Csv} name=${`${file}-tokens`} heads=${["coefficient", "token", "text"]} rows=${found.top.map((token) => [token.coefficient, token.pieces[token.center], token.pieces.join("")])} />
    <h3>By kind of token</h3>
    <${Scroll} label="By kind of token"><table><thead><tr><th scope="col">Kind</th><th scope="col">Mean coefficient</th><th scope="col" class="right">Worth<${Term} of="worth" /></th></tr></thead>
      <tbody>${run.classes.map((kind) => html`<tr key=${kind}><th scope="row">${kind}</th><td><span class="meanbar"><${ShareBar} value=${found.by_class[kind] ?? 0} />${number(found.by_class[kind], 3)}</span></td>
        <td class="num">${found.effect ? signed(found.effect.by_class[kind], 4) : "–"}</td></tr>`)}</tbody></table></${Scroll}>
    <${Csv} name=${`${file}-kinds`} heads=${["kind", "mean_coefficient", "worth"]} rows=${run.classes.map((kind) => [kind, found.by_class[kind], found.effect?.by_class[kind]])} />
    ${found.histogram.length > 0 && html`<h3>Coefficients above 0 <small>tokens by size</small></h3><${Histogram} bins=${found.histogram} what="Tokens" threshold=${0.5} />
      <${Csv} name=${`${file}-coefficients`} heads=${["from", "to", "tokens"]} rows=${found.histogram.map((value, n, all) => [n / all.length, (n + 1) / all.length, value])} />`}
    <dl class="facts"><div><dt><${Term} of="worth">Worth</${Term}></dt><dd>${worth}</dd></div><div><dt><${Term} of="mean_token">Mean coefficient</${Term}></dt><dd>${number(found.mean, 4)}</dd></div>
      <div><dt><${Term} of="used">Used by</${Term}></dt><dd>${percent(found.used)} of tokens</dd></div><div><dt><${Term} of="half">At least a half</${Term}></dt><dd>${percent(found.half)}</dd></div></dl>
    <${Naming} notes=${notes} level=${name} expert=${expert} suggestion=${found.suggestion} />`;
}

function Texts({ run, notes, view, setView, onOpen }) {
  const which = Number(view.text);
  const layer = Number(view.layer);
  const expert = view.of;
  const { found, problem, busy } = useAnswer(view.text, () => get("/api/text/excerpt", { number: which }), { fresh: true });
  if (!run.excerpts) return html`<section class="pane detail only"><p class="note">The analysis kept no texts.</p></section>`;
  if (!found) return html`<section class="pane detail only" aria-busy=${busy}><${Problem} text=${problem} /></section>`;
  const at = Math.min(found.pieces.length - 1, Math.max(0, Number(view.token) || 0));
  const tokens = found.layers[run.layers[layer].layer];
  const of = (pairs) => (expert === "" ? Math.max(0, ...pairs.map(([, a]) => a)) : pairs.find(([n]) => n === Number(expert))?.[1] ?? 0);
  const used = [...new Set(tokens.flatMap((pairs) => pairs.map(([n]) => n)))].sort((a, b) => a - b);
  const mine = [...tokens[at]].sort((a, b) => b[1] - a[1]);
  return html`<section class="pane detail only" aria-label="Text"><div class="fields">
      <${Choice} label="Text" value=${view.text} onChange=${(text) => setView({ text, token: "0" })} options=${[...Array(run.excerpts).keys()].map((n) => [String(n), `text ${n + 1}`])} />
      <${Choice} label="Layer (experts)" value=${view.layer} onChange=${(value) => setView({ layer: value, of: "" })} options=${layers(run)} />
      <${Choice} label="Coefficient of" value=${expert} onChange=${(of) => setView({ of })} options=${[["", "the largest expert"], ...used.map((n) => [String(n), `expert ${n}`])]} /></div>
    <p class="quote whole">${found.pieces.map((piece, n) => html`<${Token} key=${n} piece=${piece} coefficient=${of(tokens[n])} current=${n === at} onClick=${() => setView({ token: String(n) })}
      words=${`loss ${number(found.losses[n])}, coefficient ${number(of(tokens[n]), 3)}`} />`)}</p>
    <h3>Token ${count(at + 1)}: <code>${shown(found.pieces[at])}</code> <small>${found.losses[at] == null ? "not predicted" : `loss ${number(found.losses[at])} nats`}</small></h3>
    <ul class="bars">${mine.slice(0, 12).map(([n, a]) => html`<li key=${n}><button type="button" class="link" onClick=${() => onOpen(layer, n)}>expert ${n}${notes.of(run.layers[layer].layer, n).name && ` ${notes.of(run.layers[layer].layer, n).name}`}</button><${ShareBar} value=${a} />
      <span class="value">${number(a, 3)}</span></li>`)}</ul>
    <${Csv} name=${`text-${which + 1}-token-${at + 1}`} heads=${["layer", "expert", "coefficient"]} rows=${mine.map(([n, a]) => [run.layers[layer].layer, n, a])} /></section>`;
}
