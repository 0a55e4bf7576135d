// The token view of a language model.

import { useMemo, useState } from "/vendor/hooks.js";
import { useAnswer } from "/answers.js";
import { get } from "/api.js";
import { count, number, percent, plural, signed } from "/format.js";
import { Grid } from "/grid.js";
import { Choice, html, Problem, ShareBar } from "/parts.js";

const SORTS = {
  effect: ["worth", -1],
  mean: ["mean coefficient", -1],
  used: ["share of tokens that use it", -1],
  expert: ["number", 1],
};

// A token as it can be seen: line ends and tabs by a sign.
function shown(piece) {
  return piece.replaceAll("\n", "⏎").replaceAll("\t", "⇥");
}

function Token({ piece, coefficient, center, words, onClick, current }) {
  const style = { "--a": Math.min(1, coefficient).toFixed(3) };
  const className = `token ${center ? "center" : ""} ${current ? "current" : ""}`;
  if (onClick) {
    return html`<button type="button" class=${className} style=${style} title=${words} aria-pressed=${current} onClick=${onClick}>${shown(piece)}</button>`;
  }
  return html`<span class=${className} style=${style} title=${words}>${shown(piece)}</span>`;
}

export function TextDashboard({ run, theme, tab }) {
  const [layer, setLayer] = useState(0);
  const [expert, setExpert] = useState(null);
  const open = (which, n) => {
    setLayer(which);
    setExpert(n);
    location.hash = "#/experts";
  };
  return html`<div class="page in-${tab} text">
    <header class="top"><h1 title=${run.path}>${run.name}</h1><span class="spec">${run.tokenizer} · ${plural(run.tokens, "token")} of ${run.split} ·
      ${" "}${number(run.loss, 3)} nats per token, ${number(run.bits_per_byte, 3)} bits per byte</span>${theme}</header>
    <nav class="tabs" aria-label="Pages">${[["experts", "Experts"], ["texts", "Texts"]].map(([key, text]) => html`<a key=${key} href=${`#/${key}`}
      aria-current=${(tab === "texts") === (key === "texts") ? "page" : undefined}>${text}</a>`)}</nav>
    <main id="main" tabindex="-1">${tab === "texts" ? html`<${Texts} run=${run} onOpen=${open} />`
      : html`<${Experts} run=${run} layer=${layer} setLayer=${(n) => (setLayer(n), setExpert(null))} expert=${expert} setExpert=${setExpert} />`}</main></div>`;
}

function layers(run) {
  return run.layers.map((item, n) => [String(n), `${item.layer} (${item.num_experts})`]);
}

function Experts({ run, layer, setLayer, expert, setExpert }) {
  const { found: columns, problem, busy } = useAnswer(String(layer), () => get("/api/text/layer", { layer }), { fresh: true });
  const [sort, setSort] = useState("effect");
  const [reversed, setReversed] = useState(false);
  const choose = (key) => {
    setReversed(key === sort && !reversed);
    setSort(key);
  };
  const places = useMemo(() => {
    if (!columns) return [];
    const sign = SORTS[sort][1] * (reversed ? -1 : 1);
    const value = (place) => columns[sort][place];
    const order = [...columns.expert.keys()].sort((a, b) => {
      if (value(a) === value(b)) return a - b;
      if (value(a) == null) return 1;
      return value(b) == null ? -1 : sign * (value(a) - value(b));
    });
    return order.map((place) => columns.expert[place]);
  }, [columns, sort, reversed]);
  const place = useMemo(() => new Map(columns?.expert.map((n, at) => [n, at])), [columns]);
  const heads = [["expert", "Expert", "num"], ["effect", "Worth", "num"], ["mean", "Mean a", "num"], ["used", "Used", "num"], ["expert", "Reads", "wide"]];
  const cells = (n) => {
    const at = place.get(n);
    return [n, signed(columns.effect[at], 4), number(columns.mean[at], 3), percent(columns.used[at], 0),
      html`<span class="ellipsis">${columns.most[at]} <code>${shown(columns.example[at])}</code></span>`];
  };
  const direction = SORTS[sort][1] * (reversed ? -1 : 1) > 0 ? "ascending" : "descending";
  return html`<section class="pane list" aria-label="Experts" aria-busy=${busy}><div class="fields">
      <${Choice} label="Layer (experts)" value=${String(layer)} onChange=${(value) => setLayer(Number(value))} options=${layers(run)} />
      <${Choice} label="Sort by" value=${sort} onChange=${choose} options=${Object.entries(SORTS).map(([key, [text]]) => [key, text])} /></div>
    <${Problem} text=${problem} />
    <p class="note">Worth: how much the loss rises, in nats per token, when the expert is ablated; a dash where it was not measured.</p>
    ${columns && html`<${Grid} label="Experts" heads=${heads} places=${places} cells=${cells} sort=${sort} direction=${direction} choose=${choose} opened=${expert} onOpen=${setExpert} />`}
  </section>
  ${expert == null ? html`<section class="pane detail empty-pane"><p class="note">Choose an expert to see the tokens that it reads.</p></section>`
    : html`<${Expert} run=${run} layer=${layer} expert=${expert} />`}`;
}

function Expert({ run, layer, expert }) {
  const { found, problem, busy } = useAnswer(`${layer}/${expert}`, () => get("/api/text/expert", { layer, expert }), { fresh: true });
  const title = `Expert ${expert} of ${run.layers[layer].layer}`;
  if (!found) return html`<section class="pane detail" aria-label=${title} aria-busy=${busy}><h2>${title}</h2><${Problem} text=${problem} /></section>`;
  const worth = found.effect ? `${signed(found.effect.all, 4)} nats` : "not measured";
  return html`<section class="pane detail" aria-label=${title}><h2>${title}</h2>
    <dl class="facts"><div><dt>Worth</dt><dd>${worth}</dd></div><div><dt>Mean coefficient</dt><dd>${number(found.mean, 4)}</dd></div>
      <div><dt>Used by</dt><dd>${percent(found.used)} of tokens</dd></div><div><dt>At least a half</dt><dd>${percent(found.half)}</dd></div></dl>
    <h3>By kind of token</h3>
    <div class="scroll" tabindex="0" role="region" aria-label="By kind of token"><table><thead><tr><th scope="col">Kind</th><th scope="col">Mean coefficient</th><th scope="col" class="right">Worth</th></tr></thead>
      <tbody>${run.classes.map((name) => html`<tr key=${name}><th scope="row">${name}</th><td><span class="meanbar"><${ShareBar} value=${found.by_class[name] ?? 0} />${number(found.by_class[name], 3)}</span></td>
        <td class="num">${found.effect ? signed(found.effect.by_class[name], 4) : "–"}</td></tr>`)}</tbody></table></div>
    <h3>Tokens with the largest coefficients <small>with the text around them; darker is a larger coefficient</small></h3>
    <ol class="quotes">${found.top.map((token) => html`<li key=${token.row}><span class="num">${number(token.coefficient)}</span>
      <p class="quote">${token.pieces.map((piece, n) => html`<${Token} key=${n} piece=${piece} coefficient=${token.coefficients[n]} center=${n === token.center}
        words=${`coefficient ${number(token.coefficients[n], 3)}`} />`)}</p></li>`)}</ol></section>`;
}

function Texts({ run, onOpen }) {
  const [which, setWhich] = useState(0);
  const [layer, setLayer] = useState(0);
  const [expert, setExpert] = useState("");
  const [at, setAt] = useState(0);
  const { found, problem, busy } = useAnswer(String(which), () => get("/api/text/excerpt", { number: which }), { fresh: true });
  if (!run.excerpts) return html`<section class="pane detail only"><p class="note">The analysis kept no texts.</p></section>`;
  if (!found) return html`<section class="pane detail only" aria-busy=${busy}><${Problem} text=${problem} /></section>`;
  const tokens = found.layers[run.layers[layer].layer];
  const of = (pairs) => (expert === "" ? Math.max(0, ...pairs.map(([, a]) => a)) : pairs.find(([n]) => n === Number(expert))?.[1] ?? 0);
  const used = [...new Set(tokens.flatMap((pairs) => pairs.map(([n]) => n)))].sort((a, b) => a - b);
  const mine = [...tokens[at]].sort((a, b) => b[1] - a[1]);
  return html`<section class="pane detail only" aria-label="Text"><div class="fields">
      <${Choice} label="Text" value=${String(which)} onChange=${(value) => (setWhich(Number(value)), setAt(0))} options=${[...Array(run.excerpts).keys()].map((n) => [String(n), `text ${n + 1}`])} />
      <${Choice} label="Layer (experts)" value=${String(layer)} onChange=${(value) => (setLayer(Number(value)), setExpert(""))} options=${layers(run)} />
      <${Choice} label="Coefficient of" value=${expert} onChange=${setExpert} options=${[["", "the largest expert"], ...used.map((n) => [String(n), `expert ${n}`])]} /></div>
    <p class="quote whole">${found.pieces.map((piece, n) => html`<${Token} key=${n} piece=${piece} coefficient=${of(tokens[n])} current=${n === at} onClick=${() => setAt(n)}
      words=${`loss ${number(found.losses[n])}, coefficient ${number(of(tokens[n]), 3)}`} />`)}</p>
    <h3>Token ${count(at + 1)}: <code>${shown(found.pieces[at])}</code> <small>${found.losses[at] == null ? "not predicted" : `loss ${number(found.losses[at])} nats`}</small></h3>
    <ul class="bars">${mine.slice(0, 12).map(([n, a]) => html`<li key=${n}><button type="button" class="link" onClick=${() => onOpen(layer, n)}>expert ${n}</button><${ShareBar} value=${a} />
      <span class="value">${number(a, 3)}</span></li>`)}</ul></section>`;
}
