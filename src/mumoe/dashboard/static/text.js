// The token view of a language model.

import { useEffect, useMemo, useRef, useState } from "/vendor/hooks.js";
import { go, listed, read, toggled, useAddress } from "/address.js";
import { useAnswer } from "/answers.js";
import { get, latest, post, watch } from "/api.js";
import { count, number, percent, plural, signed } from "/format.js";
import { Grid } from "/grid.js";
import { Naming } from "/notes.js";
import { Choice, CopyLink, Csv, Histogram, html, Meanings, Problem, Progress, Scroll, ShareBar, Term } from "/parts.js";

const SORTS = {
  estimate: ["worth, estimated", -1],
  effect: ["worth, measured", -1],
  purity: ["purity above base", -1],
  mean: ["mean coefficient", -1],
  used: ["share of tokens that use it", -1],
  expert: ["number", 1],
};

// What a run has to sort by: estimates and purity are those of a decomposition.
function sorts(run) {
  const own = ["estimate", "purity"];
  return Object.entries(SORTS).filter(([key]) => run.estimated || !own.includes(key)).map(([key, [text]]) => [key, run.estimated || key !== "effect" ? text : "worth"]);
}

// A change of the loss, in nats for as many tokens as the run states it.
function nats(run, change, digits = run.per > 1 ? 3 : 4) {
  return signed(change == null ? null : change * run.per, digits);
}

function unit(run) {
  return run.per > 1 ? `nats per ${count(run.per)} tokens` : "nats per token";
}

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
  const defaults = useMemo(() => ({ layer: "0", sort: run.estimated ? "estimate" : "effect", reversed: "", q: "", pins: "", text: "0", token: "0", of: "", prompt: PROMPT, factor: "4" }), []);
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
  const sort = sorts(run).some(([key]) => key === given.sort) ? given.sort : defaults.sort;
  const factor = given.factor.trim() && Math.abs(Number(given.factor)) <= (run.steers?.most_factor ?? 0) ? given.factor : defaults.factor;
  const text = Number(given.text) >= 0 && Number(given.text) < run.excerpts ? given.text : defaults.text;
  const pins = listed(given.pins).every((pin) => Number(pin.split("/")[0]) in run.layers) ? given.pins : "";
  return { ...given, layer, sort, text, pins, factor };
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
  const [worth, third] = run.estimated ? ["estimate", "purity"] : ["effect", "mean"];
  const heads = [["expert", "No.", "num"], [worth, "Worth", "num"], [third, third === "mean" ? "Mean" : "Purity", "num"], ["used", "Used", "num"], ["expert", "Reads", "wide"]];
  const cells = (n) => {
    const at = place.get(n);
    const called = notes.of(name, n).name;
    const value = third === "mean" ? number(columns.mean[at], 3) : signed(columns.purity[at]);
    return [n, nats(run, columns[worth][at]), value, percent(columns.used[at], run.estimated ? 1 : 0),
      html`${called && html`<b class="ellipsis" title=${called}>${called}</b>`}<span class="ellipsis">${columns.most[at]} <code>${shown(columns.example[at])}</code></span>`];
  };
  const row = (at) => {
    const { name: called, note } = notes.of(name, columns.expert[at]);
    return [name, columns.expert[at], called, note, columns.effect[at], columns.mean[at], columns.used[at], columns.half[at], columns.most[at], columns.example[at], columns.estimate[at], columns.purity[at]];
  };
  const direction = SORTS[sort][1] * (reversed ? -1 : 1) > 0 ? "ascending" : "descending";
  return html`<section class="pane list" aria-label="Experts" aria-busy=${busy}>
    <label class="field search"><span class="unseen">Search experts by kind of token, token, name, note or number</span>
      <input type="search" value=${q} placeholder="Search: kind of token, token, name or note" onInput=${(event) => setView({ q: event.currentTarget.value })} /></label>
    <div class="fields">
      <${Choice} label="Layer (experts)" value=${view.layer} onChange=${(value) => setView({ layer: value })} options=${layers(run)} />
      <${Choice} label="Sort by" value=${sort} onChange=${choose} options=${sorts(run)} /></div>
    ${run.remarks.length > 0 && html`<details class="meanings" open=${innerWidth > 700}><summary>Faithfulness and controls</summary>${run.remarks.map((line) => html`<p class="note" key=${line}>${line}</p>`)}</details>`}
    <${Pins} run=${run} notes=${notes} view=${view} setView=${setView} onOpen=${onOpen} />
    <${Problem} text=${problem || notes.problem} />
    ${columns && html`<p class="note listline"><span role="status">${plural(places.length, "expert")} of ${name}${run.layers[layer].least > 0 && `, used by at least ${run.layers[layer].least} tokens`}.</span>${" "}
      <${Csv} name=${`experts-${name}`} heads=${["layer", "expert", "name", "note", "worth", "mean_coefficient", "used", "at_least_half", "reads", "token", "worth_estimated", "purity_above_base"]} rows=${() => order.map(row)} /></p>`}
    <${Meanings} title="What the columns mean" words=${run.estimated ? [["Worth", "worth_estimated"], ["Purity", "purity"], ["Used", "used"], ["Reads", "reads_label"]] : [["Worth", "worth"], ["Mean", "mean_token"], ["Used", "used"], ["Reads", "reads"]]} />
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
    ${found && html`<${Tokens} run=${run} notes=${notes} found=${found} name=${name} expert=${expert}>
      ${run.steers && html`<${Steer} key=${mine} run=${run} layer=${layer} expert=${expert} view=${view} setView=${setView} />`}</${Tokens}>`}</section>`;
}

function Headline({ run, found }) {
  const { estimate, effect } = found;
  if (estimate == null) return effect ? html`Without it the loss changes by <b>${nats(run, effect.all)}</b> ${unit(run)}.` : "What its ablation changes was not measured.";
  return html`Without it the loss changes by about <b>${nats(run, estimate)}</b> ${unit(run)}, as estimated from gradients; ${effect ? html`<b>${nats(run, effect.all)}</b> when ablated` : "not measured by ablation"}.`;
}

// The most frequent labels of its top tokens beside their base rates, and what it does to the logits.
function Meaning({ found, file }) {
  if (!found.purity.length && !found.raises.length) return null;
  const quoted = (tokens) => tokens.map((token, n) => html`<code key=${n}>${shown(token)}</code>${" "}`);
  return html`${found.purity.length > 0 && html`<h3>Labels of its top tokens<${Term} of="purity" /></h3>
    <${Scroll} label="Labels of its top tokens"><table><thead><tr><th scope="col">Label</th><th scope="col">Most frequent</th><th scope="col" class="right">Purity</th><th scope="col" class="right">Base</th><th scope="col" class="right">Above</th></tr></thead>
      <tbody>${found.purity.map((one) => html`<tr key=${one.of}><th scope="row">${one.of}</th><td>${one.label}</td><td class="num">${number(one.share)}</td><td class="num">${number(one.base)}</td><td class="num">${signed(one.share - one.base)}</td></tr>`)}</tbody></table></${Scroll}>
    <${Csv} name=${`${file}-labels`} heads=${["label", "most_frequent", "purity", "base"]} rows=${found.purity.map((one) => [one.of, one.label, one.share, one.base])} />`}
    ${found.raises.length > 0 && html`<p>Raises<${Term} of="raises" /> ${quoted(found.raises)}<br />Lowers ${quoted(found.lowers)}</p>`}`;
}

const PROMPT = "The committee met on Monday to";
const WRITTEN = 40;

// Texts with the original MLP, with its experts, with this expert scaled, and with another one as a control. After the first click they follow the slider.
function Steer({ run, layer, expert, view, setView }) {
  const [job, setJob] = useState(null);
  const [found, setFound] = useState(null);
  const [problem, setProblem] = useState("");
  const open = useRef(true);
  useEffect(() => () => (open.current = false), []);
  const { prompt } = view;
  const factor = Number(view.factor);
  const most = run.steers.most_factor;
  const ask = useMemo(() => latest(async (given) => {
    const put = (set) => (value) => open.current && set(value);
    put(setProblem)("");
    put(setJob)({ note: "Writing", total: 0 });
    try {
      const { job: id } = await post("/api/text/generate", { ...given, layer, expert, tokens: WRITTEN });
      put(setFound)(await watch(id, put(setJob)));
    } catch (error) {
      put(setProblem)(error.message);
    }
    put(setJob)(null);
  }), []);
  const settle = (value) => {
    if (!Number.isFinite(value) || Math.abs(value) > most) return;
    setView({ factor: String(value) });
    if (found || job) ask({ prompt, factor: value });
  };
  return html`<form class="steer" aria-label="Steer" aria-busy=${job != null} onSubmit=${(event) => (event.preventDefault(), ask({ prompt, factor }))}>
    <h3>Steer <small>the coefficient of expert ${expert} times a factor</small><${Term} of="steer" /></h3>
    <div class="dial"><span>Factor</span>
      <input type="range" aria-label="Factor" min="0" max=${most} step="0.5" value=${factor} onInput=${(event) => setView({ factor: event.currentTarget.value })} onChange=${(event) => settle(event.currentTarget.valueAsNumber)} />
      <input type="number" aria-label="Factor as a number" min=${-most} max=${most} step="any" value=${factor} onChange=${(event) => settle(event.currentTarget.valueAsNumber)} /></div>
    <div class="actions"><span class="field grow"><label for="prompt">Prompt</label><input id="prompt" type="text" maxlength="2000" value=${prompt} onInput=${(event) => setView({ prompt: event.currentTarget.value })} /></span>
      <button type="submit" disabled=${job != null || !prompt.trim()}>Write ${WRITTEN} tokens</button></div>
    ${job && html`<${Progress} job=${job} />`}<${Problem} text=${problem} onClose=${() => setProblem("")} />
    ${found && html`<${Written} found=${found} />`}</form>`;
}

// The texts; what differs from another is marked from its first difference on.
function Written({ found }) {
  const texts = [["Original MLP", found.original, found.original], ["Plain: its experts", found.plain, found.original], [`Steered: expert ${found.expert} × ${found.factor}`, found.steered, found.plain],
    ...(found.control == null ? [] : [[`Control: expert ${found.control} × ${found.factor}`, found.controlled, found.plain]])];
  return html`<div class="columns written">${texts.map(([title, text, other]) => {
    let same = 0;
    while (same < text.length && text[same] === other[same]) same += 1;
    return html`<div key=${title}><h4>${title}</h4><p class="quote whole"><span class="prompt">${found.prompt}</span>${text.slice(0, same)}${same < text.length && html`<mark>${text.slice(same)}</mark>`}</p></div>`;
  })}</div>
    <p class="note">${found.steered === found.plain ? "Scaling changes nothing here." : "Marked: what follows the first difference of plain from original, and of the others from plain."} The control is the expert that is used by the most similar share of tokens.</p>`;
}

function Tokens({ run, notes, found, name, expert, children }) {
  const worth = found.effect ? nats(run, found.effect.all) : "not measured";
  const by_class = !run.estimated;
  const file = `${name}-expert-${expert}`;
  return html`<p class="headline"><${Headline} run=${run} found=${found} /></p>
    <h3>Tokens with the largest coefficients <small>with the text around them; darker is a larger coefficient</small></h3>
    <ol class="quotes">${found.top.map((token) => html`<li key=${`${token.row}/${token.position}`}><span class="num">${number(token.coefficient)}</span>
      <p class="quote">${token.pieces.map((piece, n) => html`<${Token} key=${n} piece=${piece} coefficient=${token.coefficients[n] / found.largest} center=${n === token.center}
        words=${`coefficient ${number(token.coefficients[n], 3)}`} />`)}</p></li>`)}</ol>
    <${Csv} name=${`${file}-tokens`} heads=${["coefficient", "token", "text"]} rows=${found.top.map((token) => [token.coefficient, token.pieces[token.center], token.pieces.join("")])} />
    <${Meaning} found=${found} file=${file} />
    ${children}
    <h3>By kind of token</h3>
    <${Scroll} label="By kind of token"><table><thead><tr><th scope="col">Kind</th><th scope="col">Mean coefficient</th>${by_class && html`<th scope="col" class="right">Worth<${Term} of="worth" /></th>`}</tr></thead>
      <tbody>${run.classes.map((kind) => html`<tr key=${kind}><th scope="row">${kind}</th><td><span class="meanbar"><${ShareBar} value=${(found.by_class[kind] ?? 0) / found.largest} />${number(found.by_class[kind], 3)}</span></td>
        ${by_class && html`<td class="num">${signed(found.effect?.by_class[kind], 4)}</td>`}</tr>`)}</tbody></table></${Scroll}>
    <${Csv} name=${`${file}-kinds`} heads=${["kind", "mean_coefficient", "worth"]} rows=${run.classes.map((kind) => [kind, found.by_class[kind], found.effect?.by_class[kind]])} />
    ${found.histogram.length > 0 && html`<h3>Coefficients above 0 <small>tokens by size</small></h3><${Histogram} bins=${found.histogram} what="Tokens" threshold=${0.5} end=${found.largest} />
      <${Csv} name=${`${file}-coefficients`} heads=${["from", "to", "tokens"]} rows=${found.histogram.map((value, n, all) => [(found.largest * n) / all.length, (found.largest * (n + 1)) / all.length, value])} />`}
    <dl class="facts"><div><dt><${Term} of=${run.estimated ? "worth_measured" : "worth"}>Worth${run.estimated ? ", measured" : ""}</${Term}></dt><dd>${worth}</dd></div><div><dt><${Term} of="mean_token">Mean coefficient</${Term}></dt><dd>${number(found.mean, 4)}</dd></div>
      <div><dt><${Term} of="used">Used by</${Term}></dt><dd>${percent(found.used)} of tokens</dd></div><div><dt><${Term} of=${run.estimated ? "half_largest" : "half"}>${run.estimated ? "At least half of the largest" : "At least a half"}</${Term}></dt><dd>${percent(found.half)}</dd></div></dl>
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
  const most = run.estimated ? Math.max(1e-9, ...tokens.flatMap((pairs) => pairs.filter(([n]) => expert === "" || n === Number(expert)).map(([, a]) => a))) : 1;
  const used = [...new Set(tokens.flatMap((pairs) => pairs.map(([n]) => n)))].sort((a, b) => a - b);
  const mine = [...tokens[at]].sort((a, b) => b[1] - a[1]);
  return html`<section class="pane detail only" aria-label="Text"><div class="fields">
      <${Choice} label="Text" value=${view.text} onChange=${(text) => setView({ text, token: "0" })} options=${[...Array(run.excerpts).keys()].map((n) => [String(n), `text ${n + 1}`])} />
      <${Choice} label="Layer (experts)" value=${view.layer} onChange=${(value) => setView({ layer: value, of: "" })} options=${layers(run)} />
      <${Choice} label="Coefficient of" value=${expert} onChange=${(of) => setView({ of })} options=${[["", "the largest expert"], ...used.map((n) => [String(n), `expert ${n}`])]} /></div>
    <p class="quote whole">${found.pieces.map((piece, n) => html`<${Token} key=${n} piece=${piece} coefficient=${of(tokens[n]) / most} current=${n === at} onClick=${() => setView({ token: String(n) })}
      words=${`loss ${number(found.losses[n])}, coefficient ${number(of(tokens[n]), 3)}`} />`)}</p>
    <h3>Token ${count(at + 1)}: <code>${shown(found.pieces[at])}</code> <small>${found.losses[at] == null ? "not predicted" : `loss ${number(found.losses[at])} nats`}</small></h3>
    <ul class="bars">${mine.slice(0, 12).map(([n, a]) => html`<li key=${n}><button type="button" class="link" onClick=${() => onOpen(layer, n)}>expert ${n}${notes.of(run.layers[layer].layer, n).name && ` ${notes.of(run.layers[layer].layer, n).name}`}</button><${ShareBar} value=${run.estimated ? a / mine[0][1] : a} />
      <span class="value">${number(a, 3)}</span></li>`)}</ul>
    <${Csv} name=${`text-${which + 1}-token-${at + 1}`} heads=${["layer", "expert", "coefficient"]} rows=${mine.map(([n, a]) => [run.layers[layer].layer, n, a])} /></section>`;
}
