// The list of experts, and one expert.

import { useCallback, useMemo, useState } from "/vendor/hooks.js";
import { useAnswer } from "/answers.js";
import { get, post } from "/api.js";
import { count, number, percent, plural } from "/format.js";
import { Grid } from "/grid.js";
import { Choice, ExpertLink, Gallery, html, Problem, ShareBar } from "/parts.js";

const SORTS = {
  expert: ["number", (columns, n) => n, 1],
  load: ["load", (columns, n) => columns.load[n], -1],
  mean: ["mean coefficient", (columns, n) => columns.mean[n], -1],
  polysemanticity: ["polysemanticity", (columns, n) => columns.polysemanticity?.[n], 1],
  images: ["images that make it strong", (columns, n) => columns.images?.[n], -1],
  control: ["control's p", (columns, n) => columns.control_polysemanticity?.[n], 1],
  loss: ["class lost most", (columns, n) => columns.loss?.[n], -1],
  gap: ["subgroup gap", (columns, n) => columns.gap?.[n], -1],
  accuracy: ["accuracy of its images", (columns, n) => columns.accuracy[n], 1],
};

const EXTRA = ["mean", "accuracy", "images", "control"];

function order(columns, sort, descending, unused) {
  const [, value, direction] = SORTS[sort];
  const places = [...columns.load.keys()].filter((n) => unused || columns.touched[n] > 0);
  const sign = (descending ? -1 : 1) * direction;
  const keys = columns.load.map((_, n) => value(columns, n) ?? null);
  return places.sort((a, b) => {
    if (keys[a] === keys[b]) return a - b;
    if (keys[a] === null) return 1;
    if (keys[b] === null) return -1;
    return sign * (keys[a] - keys[b]);
  });
}

function extra(sort) {
  if (sort === "mean") return ["Mean a", (columns, n) => number(columns.mean[n], 3)];
  if (sort === "images") return ["Images", (columns, n) => (columns.images?.[n] == null ? "–" : count(columns.images[n]))];
  if (sort === "control") return ["Control p", (columns, n) => number(columns.control_polysemanticity?.[n])];
  if (sort === "accuracy") return ["Acc.", (columns, n) => percent(columns.accuracy[n], 0)];
  return ["Gap", (columns, n) => number(columns.gap?.[n], 3)];
}

export function ExpertList({ run, split, level, setLevel, opened, onOpen, selected, setSelected }) {
  const [filter, setFilter] = useState({ label: "", attribute: "", value: "" });
  const [gap, setGap] = useState(run.sensitive[0] ?? "");
  const [sort, setSort] = useState("load");
  const [reversed, setReversed] = useState(false);
  const [unused, setUnused] = useState(false);
  const query = { split, level, gap, ...(filter.attribute && !filter.value ? { label: filter.label } : filter) };
  const { found: columns, problem, busy } = useAnswer(JSON.stringify(query), () => get("/api/experts", query));
  const places = useMemo(() => (columns ? order(columns, sort, reversed, unused) : []), [columns, sort, reversed, unused]);
  const choose = (key) => {
    if (key === sort) setReversed(!reversed);
    else {
      setSort(key);
      setReversed(false);
    }
  };
  return html`<section class="pane list" aria-label="Experts" aria-busy=${busy}>
    <details class="filters" open=${window.innerWidth > 700}>
      <summary>Sort and filter</summary>
      <div class="fields">
      ${run.num_experts.length > 1 && html`<${Choice} label="Level" value=${String(level)} onChange=${(value) => setLevel(Number(value))}
        options=${run.num_experts.map((size, n) => [String(n), `level ${n} (${size} experts)`])} />`}
      <${Choice} label="Sort by" value=${sort} onChange=${choose} options=${Object.entries(SORTS).map(([key, [text]]) => [key, text])} />
      ${run.sensitive.length > 0 && html`<${Choice} label="Gap between values of" value=${gap} onChange=${setGap}
        options=${run.sensitive.map((name) => [name, name])} />`}
      <${Filters} run=${run} filter=${filter} setFilter=${setFilter} />
      </div>
      <label class="check"><input type="checkbox" checked=${unused} onChange=${() => setUnused(!unused)} />
        show experts that treat none of these images</label>
    </details>
    <${Problem} text=${problem} />
    ${columns && html`<p class="note" role="status">${plural(places.length, "expert")} on ${plural(columns.rows, "image")} of${" "}
      ${split}${run.analyzed ? html`; p and classes lost on ${run.analyzed}` : ""}.</p>`}
    ${columns?.summary && html`<${Specialization} summary=${columns.summary} />`}
    ${columns && html`<${Table} run=${run} columns=${columns} places=${places} level=${level} sort=${sort} reversed=${reversed}
      choose=${choose} opened=${opened} onOpen=${onOpen} selected=${selected} setSelected=${setSelected} />`}
    ${run.missing.map((item) => html`<p class="note">${item.reason} ${item.command && html`Run <code>${item.command}</code>.`}</p>`)}
  </section>`;
}

function Specialization({ summary }) {
  const { experts, control, hint } = summary;
  return html`<p class="note">Mean p ${number(experts.mean_polysemanticity)}, control ${number(control.mean_polysemanticity)};
    ${" "}${plural(experts.strong, "strong expert")}${experts.strong ? ` by ${plural(experts.strong_images, "image")}` : ""}, control
    ${" "}${count(control.strong)}. Control: as many random contributions as each expert has.</p>
    ${hint && html`<p class="note">${hint}</p>`}`;
}

export function Filters({ run, filter, setFilter }) {
  const values = run.attributes[filter.attribute] ?? ["0", "1"];
  return html`
    <${Choice} label=${run.multi_label ? "Images that are" : "Images of class"} value=${filter.label}
      onChange=${(label) => setFilter({ ...filter, label })}
      options=${[["", "any"], ...run.classes.map((name) => [name, name])]} />
    ${run.sensitive.length > 0 && html`<${Choice} label="Attribute" value=${filter.attribute}
      onChange=${(attribute) => setFilter({ ...filter, attribute, value: attribute ? (run.attributes[attribute] ?? ["0", "1"])[0] : "" })}
      options=${[["", "any"], ...run.sensitive.map((name) => [name, name])]} />`}
    ${filter.attribute && html`<${Choice} label="Value" value=${filter.value} onChange=${(value) => setFilter({ ...filter, value })}
      options=${values.map((name) => [name, name])} />`}`;
}

function Table({ run, columns, places, level, sort, reversed, choose, opened, onOpen, selected, setSelected }) {
  const [extraName, extraText] = extra(sort);
  const heads = [
    ["expert", "Expert", "num"],
    ["load", "Load", "num"],
    ["polysemanticity", "p", "num"],
    ["loss", "Loses most", "wide"],
    [EXTRA.includes(sort) ? sort : "gap", extraName, "num"],
  ];
  const toggle = (n) => {
    const key = `${level}/${n}`;
    setSelected((old) => (old.includes(key) ? old.filter((other) => other !== key) : [...old, key]));
  };
  const lost = (n) => {
    const which = columns.lost?.[n] ?? -1;
    if (which < 0) return html`<span class="quiet">nothing</span>`;
    return html`<span class="ellipsis" title=${run.classes[which]}>${run.classes[which]}</span> <b>${percent(columns.loss[n], 0)}</b>`;
  };
  const cells = (n) => [n, count(columns.load[n]), number(columns.polysemanticity?.[n]), lost(n), extraText(columns, n)];
  const direction = SORTS[sort][2] > 0 === !reversed ? "ascending" : "descending";
  return html`<${Grid} label="Experts" heads=${heads} places=${places} cells=${cells} sort=${sort} direction=${direction} choose=${choose}
    opened=${opened.startsWith(`${level}/`) ? Number(opened.split("/")[1]) : null} onOpen=${(n) => onOpen(level, n)}
    picked=${(n) => selected.includes(`${level}/${n}`)} onPick=${toggle} />`;
}

export function ExpertDetail({ run, split, level, expert, onOpenExpert, onOpenImage, onEdit, onClose }) {
  const query = { split, level, expert };
  const { found, problem, busy } = useAnswer(JSON.stringify(query), () => get("/api/expert", query), { fresh: true });
  const load = useCallback(
    (offset, limit) => post("/api/images", { split, level, expert, offset, limit }),
    [split, level, expert],
  );
  const title = run.num_experts.length > 1 ? `Expert ${expert} of level ${level}` : `Expert ${expert}`;
  return html`<section class="pane detail" aria-label=${title} aria-busy=${busy}>
    <header class="panehead"><button type="button" class="back" onClick=${onClose}>‹ Experts</button><h2>${title}</h2></header>
    <${Problem} text=${problem} />
    ${found && html`<${Facts} run=${run} found=${found} split=${split} onOpenExpert=${onOpenExpert} />`}
    ${found && run.editable && html`<${Actions} run=${run} level=${level} expert=${expert} onEdit=${onEdit} />`}
    ${found && html`<h3>Images it treats, largest coefficient first <small>(${count(found.touched)} of ${count(found.rows)} ${split} images)</small></h3>
      <${Gallery} run=${run} total=${found.touched} load=${load} onOpen=${onOpenImage} label=${`Images of expert ${expert}`} />`}
  </section>`;
}

function Facts({ run, found, split, onOpenExpert }) {
  const view = found.analysis;
  const interval = view?.interval ? ` (${number(view.interval[0])} to ${number(view.interval[1])})` : "";
  return html`<dl class="facts">
      <div><dt>Load <small>images with a ≥ ${run.threshold}</small></dt><dd>${count(found.load)}</dd></div>
      <div><dt>Images touched</dt><dd>${count(found.touched)}</dd></div>
      <div><dt>Mean coefficient</dt><dd>${number(found.mean, 4)}</dd></div>
      <div><dt>Polysemanticity p <small>0: one class alone</small></dt><dd>${number(view?.polysemanticity)}${interval}</dd></div>
      ${view && html`<div><dt>Its control <small>the same load at random</small></dt><dd>${number(view.control?.polysemanticity)}</dd></div>
      <div><dt>Strong <small>a class loses half</small></dt>
        <dd>${view.strong ? `yes, by ${plural(view.images, "image")}` : "no"}</dd></div>`}
    </dl>
    <div class="columns">
      <div><h3>Classes lost without it <small>${view ? `on ${found.analysis_split}` : ""}</small></h3>
        ${!view && html`<p class="note">Not measured: the run was not analyzed.</p>`}
        ${view && !view.losses.length && html`<p class="note">Nothing changes when it is ablated.</p>`}
        ${view && view.losses.length > 0 && html`<ul class="bars spans">${view.losses.slice(0, 8).map((item) => html`<li key=${item.position}>
          <span class="ellipsis" title=${item.name}>${item.name}</span><${ShareBar} value=${Math.max(0, item.loss)} interval=${item.interval} />
          <span class="value">${percent(item.loss, 0)}${item.interval ? html` <small>${percent(item.interval[0], 0)} to ${percent(item.interval[1], 0)}</small>` : ""}</span></li>`)}</ul>`}
      </div>
      <div><h3>Whom it treats <small>share of its coefficients</small></h3>
        <ul class="bars">${found.classes.map((item) => html`<li key=${item.name}><span class="ellipsis" title=${item.name}>${item.name}</span>
          <${ShareBar} value=${item.share} /><span class="value">${percent(item.share, 0)}</span></li>`)}</ul>
        ${run.multi_label && html`<p class="note">Attributes overlap, so shares add up to more than 100%.</p>`}
      </div>
    </div>
    ${view && (view.by_weight.length > 0 || view.by_coefficient.length > 0) && html`<p class="note">Nearest by weight:
      ${" "}${view.by_weight.slice(0, 5).map((near) => html`<${ExpertLink} expert=${near.expert} level=${found.level} levels=${run.num_experts.length} onOpen=${onOpenExpert} /> `)}
      by images: ${view.by_coefficient.slice(0, 5).map((near) => html`<${ExpertLink} expert=${near.expert} level=${found.level} levels=${run.num_experts.length} onOpen=${onOpenExpert} /> `)}</p>`}`;
}

function Actions({ run, level, expert, onEdit }) {
  const [head, setHead] = useState(run.classes[0]);
  const single = run.num_experts.length === 1;
  const position = run.classes.indexOf(head);
  return html`<div class="actions">
    <button type="button" onClick=${() => onEdit({ kind: "ablate", expert, level, strength: 1 })}>Ablate it</button>
    <button type="button" onClick=${() => onEdit({ kind: "scale", expert, level, factor: 2, strength: 1 })}>Scale it</button>
    ${single && html`<span class="joined"><${Choice} label="Output" value=${head} onChange=${setHead} options=${run.classes.map((name) => [name, name])} />
      <button type="button" onClick=${() => onEdit({ kind: "correct", head: position, terms: [[[expert], 1]], strength: 1 })}>Correct</button>
      <button type="button" onClick=${() => onEdit({ kind: "set-output", expert: [expert], head: position, value: 0, strength: 1 })}>Set to 0</button></span>`}
  </div>`;
}
