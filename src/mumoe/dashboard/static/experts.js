// The list of experts, and one expert.

import { useCallback, useMemo, useState } from "/vendor/hooks.js";
import { listed } from "/address.js";
import { useAnswer } from "/answers.js";
import { fetched, get, post } from "/api.js";
import { download } from "/files.js";
import { count, number, percent, plural, signed } from "/format.js";
import { Grid } from "/grid.js";
import { Naming } from "/notes.js";
import { Choice, Csv, Effects, ExpertLink, Gallery, Histogram, html, interval, Meanings, Picture, Problem, ShareBar, Term } from "/parts.js";

export const SORTS = {
  interest: ["strongest and purest first", (columns, n) => columns.rank?.[n], 1],
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

const EXTRA = ["mean", "accuracy", "images", "control", "gap"];

// A text in which a search looks: number, name, note, and the classes that an expert loses and handles.
function haystack(run, columns, notes, level, n) {
  const { name, note } = notes.of(level, n);
  const classes = [...(columns.losing?.[n] ?? []), ...columns.seen[n]].filter((c) => c >= 0).map((c) => run.classes[c]);
  return [n, name, note, ...classes].join("\n").toLowerCase();
}

function order(run, columns, notes, level, { sort, reversed, unused, q }) {
  const [, value, direction] = SORTS[sort];
  const words = q.toLowerCase().split(/\s+/).filter(Boolean);
  const found = (n) => !words.length || words.every((word) => haystack(run, columns, notes, level, n).includes(word));
  const places = [...columns.load.keys()].filter((n) => (unused || columns.touched[n] > 0) && found(n));
  const sign = (reversed ? -1 : 1) * direction;
  const keys = columns.load.map((_, n) => value(columns, n) ?? null);
  return places.sort((a, b) => {
    if (keys[a] === keys[b]) return a - b;
    if (keys[a] === null) return 1;
    if (keys[b] === null) return -1;
    return sign * (keys[a] - keys[b]);
  });
}

// The last column: what is sorted by, unless it has a column already.
function extra(sort) {
  const key = EXTRA.includes(sort) ? sort : null;
  const columns = {
    mean: ["Mean", (found, n) => number(found.mean[n], 3)],
    images: ["Images", (found, n) => count(found.images?.[n])],
    control: ["Control p", (found, n) => number(found.control_polysemanticity?.[n])],
    accuracy: ["Acc.", (found, n) => percent(found.accuracy[n], 0)],
    gap: ["Gap", (found, n) => number(found.gap?.[n], 3)],
  };
  return key && [key, ...columns[key]];
}

export function defaultSort(run) {
  return run.analyzed ? "interest" : "load";
}

export function ExpertList({ run, notes, view, setView, opened, onOpen, onOpenImage, selected, setSelected }) {
  const level = Number(view.level);
  const { split, sort, q } = view;
  const filter = { label: view.label, attribute: view.attribute, value: view.value };
  const query = { split, level, gap: view.gap, ...(filter.attribute && !filter.value ? { label: filter.label } : filter) };
  const { found: columns, problem, busy } = useAnswer(JSON.stringify(query), () => get("/api/experts", query));
  const reversed = view.reversed === "1";
  const unused = view.unused === "1";
  const places = useMemo(
    () => (columns ? order(run, columns, notes, level, { sort, reversed, unused, q }) : []),
    [columns, notes, level, sort, reversed, unused, q],
  );
  const choose = (key) => setView({ sort: key, reversed: key === sort && !reversed ? "1" : "" });
  const column = extra(sort);
  return html`<section class="pane list" aria-label="Experts" aria-busy=${busy}>
    <label class="field search"><span class="unseen">Search experts by class, name, note or number</span>
      <input type="search" value=${q} placeholder="Search: class, name, note or number" onInput=${(event) => setView({ q: event.currentTarget.value })} /></label>
    <details class="filters">
      <summary>Sort and filter</summary>
      <div class="fields">
      ${run.num_experts.length > 1 && html`<${Choice} label="Level" value=${view.level} onChange=${(value) => setView({ level: value })}
        options=${run.num_experts.map((size, n) => [String(n), `level ${n} (${size} experts)`])} />`}
      <${Choice} label="Sort by" value=${sort} onChange=${choose} options=${Object.entries(SORTS).map(([key, [text]]) => [key, text])} />
      ${run.sensitive.length > 0 && html`<${Choice} label="Gap between values of" value=${view.gap} onChange=${(gap) => setView({ gap })}
        options=${run.sensitive.map((name) => [name, name])} />`}
      <${Filters} run=${run} filter=${filter} setFilter=${setView} />
      </div>
      <label class="check"><input type="checkbox" checked=${unused} onChange=${() => setView({ unused: unused ? "" : "1" })} />
        show experts that process none of these images</label>
    </details>
    ${run.combinations && html`<${Combinations} run=${run} notes=${notes} split=${split} onOpen=${onOpen} onOpenImage=${onOpenImage} />`}
    <${Pins} run=${run} notes=${notes} view=${view} setView=${setView} onOpen=${onOpen} />
    <${Problem} text=${problem || notes.problem} />
    ${columns && html`<p class="note listline"><span role="status">${plural(places.length, "expert")} on ${plural(columns.rows, "image")} of${" "}
      ${split}${run.analyzed ? html`; p and classes lost on ${run.analyzed}` : ""}.</span>${" "}
      <${Csv} name=${`experts-${split}`} heads=${HEADS} rows=${() => places.map((n) => row(run, columns, notes, level, n))} /></p>`}
    ${columns?.summary && html`<${Specialization} run=${run} summary=${columns.summary} level=${level} onOpen=${onOpen} />`}
    <${Meanings} title="What the columns mean" words=${[["Loses most", "loses"], ["Load", "load"], ["p", "p"], ...(column ? [[column[1], { accuracy: "accuracy", images: "images", control: "control", mean: "mean", gap: "gap" }[column[0]]]] : [])]} />
    ${columns && html`<${Table} run=${run} notes=${notes} columns=${columns} places=${places} level=${level} column=${column} sort=${sort} reversed=${reversed}
      choose=${choose} opened=${opened} onOpen=${onOpen} selected=${selected} setSelected=${setSelected} />`}
    ${run.missing.map((item) => html`<p class="note">${item.reason} ${item.command && html`Run <code>${item.command}</code>.`}</p>`)}
  </section>`;
}

const HEADS = ["level", "expert", "name", "note", "load", "touched", "mean_coefficient", "polysemanticity", "strong", "images", "control_polysemanticity", "control_strong", "class_lost_most", "share_lost", "classes_seen_most", "accuracy_of_its_images", "gap"];

// One expert of the list with all digits.
function row(run, columns, notes, level, n) {
  const { name, note } = notes.of(level, n);
  const lost = columns.lost?.[n] ?? -1;
  const seen = columns.seen[n].filter((c) => c >= 0).map((c) => run.classes[c]);
  return [level, n, name, note, columns.load[n], columns.touched[n], columns.mean[n], columns.polysemanticity?.[n], columns.strong?.[n], columns.images?.[n],
    columns.control_polysemanticity?.[n], columns.control_strong?.[n], lost < 0 ? "" : run.classes[lost], columns.loss?.[n], seen.join("; "), columns.accuracy[n], columns.gap?.[n]];
}

// The combinations of one expert per level that occur, asked for when they are opened.
function Combinations({ run, notes, split, onOpen, onOpenImage }) {
  const [open, setOpen] = useState(false);
  return html`<details class="filters combinations" onToggle=${(event) => setOpen(event.currentTarget.open)}>
    <summary>Combinations of experts that occur</summary>
    ${open && html`<${CombinationList} run=${run} notes=${notes} split=${split} onOpen=${onOpen} onOpenImage=${onOpenImage} />`}
  </details>`;
}

function CombinationList({ run, notes, split, onOpen, onOpenImage }) {
  const { found, problem, busy } = useAnswer(split, () => get("/api/combinations", { split }));
  const rest = found ? found.occurring - found.shown.length : 0;
  const effect = ({ worst, polysemanticity, strong, images, control }) => html`
    ${worst ? html`<span class="lost">${worst.name} <b>${percent(worst.loss, 0)}</b></span> lost without it` : "no class loses without it"}${strong ? `, strong by ${plural(images, "image")}` : ""}${polysemanticity == null ? "" : `; p ${number(polysemanticity)}, control ${control ? number(control.polysemanticity) : "no effect"}${control?.strong ? ", strong" : ""}`}`;
  return html`<div aria-busy=${busy}><${Problem} text=${problem} />
    ${found && html`<p class="note">${count(found.occurring)} of ${count(found.total)} combinations contribute to ${run.analyzed} images: between ${count(found.least)} and ${count(found.most)} images each, median ${count(found.median)}.
      ${" "}Ablating ${count(found.with_effect)} of them changes a class, control ${count(found.control_with_effect)}; ${count(found.strong)} are strong, control ${count(found.control_strong)}.
      ${" "}Images: those of ${split} with the largest products of coefficients.<${Term} of="control" /></p>
    <ul class="combos">${found.shown.map((item) => html`<li key=${item.experts.join("-")}>
      <span>${item.experts.map((n, level) => html`<${ExpertLink} expert=${n} level=${level} levels=${run.num_experts.length} name=${notes.of(level, n).name} onOpen=${onOpen} /> `)}
        <small>${plural(item.load, "image")}; ${effect(item)}</small></span>
      ${run.pictures && item.pictures.length > 0 && html`<span class="strip">${item.pictures.map((image, n) => html`<button type="button" class="plain" key=${image} onClick=${() => onOpenImage(image)}>
        <${Picture} run=${run} image=${image} name=${`Image ${image}, product of coefficients ${number(item.products[n], 2)}`} /></button>`)}</span>`}
    </li>`)}</ul>
    ${rest > 0 && html`<p class="note">${count(rest)} more occur.</p>`}`}
  </div>`;
}

function Pins({ run, notes, view, setView, onOpen }) {
  const pins = listed(view.pins);
  if (!pins.length) return null;
  return html`<p class="pins"><span class="note">Pinned:</span>${pins.map((pin) => {
    const [level, expert] = pin.split("/").map(Number);
    return html`<span class="pin" key=${pin}><${ExpertLink} expert=${expert} level=${level} levels=${run.num_experts.length} name=${notes.of(level, expert).name} onOpen=${onOpen} />
      <button type="button" class="plain" aria-label=${`Unpin expert ${expert}`} onClick=${() => setView({ pins: pins.filter((other) => other !== pin).join(",") })}>×</button></span>`;
  })}</p>`;
}

// How specialized the level is, beside its control, and which experts to look at first.
function Specialization({ run, summary, level, onOpen }) {
  const { experts, control, hint } = summary;
  const { purest, typical } = run.start;
  const link = (expert) => html`<${ExpertLink} expert=${expert} level=${0} levels=${run.num_experts.length} onOpen=${onOpen} />`;
  return html`<p class="note">${plural(experts.strong, "strong expert")}${experts.strong ? ` by ${plural(experts.strong_images, "image")}` : ""}, control ${count(control.strong)};
    ${" "}mean p ${number(experts.mean_polysemanticity)}, control ${number(control.mean_polysemanticity)}.<${Term} of="control" />
    ${level === 0 && purest.length > 0 && html`<br />Purest strong: ${purest.map((n) => html`${link(n)} `)}${typical != null && html`· typical: ${link(typical)}`}`}</p>
    ${hint && html`<p class="note">${hint}</p>`}`;
}

export function Filters({ run, filter, setFilter }) {
  const values = run.attributes[filter.attribute] ?? ["0", "1"];
  return html`
    <${Choice} label=${run.multi_label ? "Images that are" : "Images of class"} value=${filter.label} onChange=${(label) => setFilter({ label })}
      options=${[["", "any"], ...run.classes.map((name) => [name, name])]} />
    ${run.sensitive.length > 0 && html`<${Choice} label="Attribute" value=${filter.attribute}
      onChange=${(attribute) => setFilter({ attribute, value: attribute ? (run.attributes[attribute] ?? ["0", "1"])[0] : "" })}
      options=${[["", "any"], ...run.sensitive.map((name) => [name, name])]} />`}
    ${filter.attribute && html`<${Choice} label="Value" value=${filter.value} onChange=${(value) => setFilter({ value })}
      options=${values.map((name) => [name, name])} />`}`;
}

function Table({ run, notes, columns, places, level, column, sort, reversed, choose, opened, onOpen, selected, setSelected }) {
  const heads = [
    ...(run.pictures ? [["picture", "Image", "thumb"]] : []),
    ["expert", "No.", "num"],
    ["loss", "Loses most", "wide"],
    ["load", "Load", "num"],
    ["polysemanticity", "p", "num"],
    ...(column ? [[column[0], column[1], "num"]] : []),
  ];
  const toggle = (n) => {
    const key = `${level}/${n}`;
    setSelected((old) => (old.includes(key) ? old.filter((other) => other !== key) : [...old, key]));
  };
  const lost = (n) => {
    const which = columns.lost?.[n] ?? -1;
    const name = notes.of(level, n).name === run.classes[which] ? "" : notes.of(level, n).name;
    return html`${name && html`<b class="ellipsis" title=${name}>${name}</b>`}
      ${which < 0 ? html`<span class="quiet">nothing</span>` : html`<span class="lost"><span class="ellipsis" title=${run.classes[which]}>${run.classes[which]}</span> <b>${percent(columns.loss[n], 0)}</b></span>`}`;
  };
  const picture = (n) => columns.picture[n] >= 0 && html`<${Picture} run=${run} image=${columns.picture[n]} name="" />`;
  const cells = (n) => [
    ...(run.pictures ? [picture(n)] : []), n, lost(n), count(columns.load[n]), number(columns.polysemanticity?.[n]),
    ...(column ? [column[2](columns, n)] : []),
  ];
  const direction = SORTS[sort][2] > 0 === !reversed ? "ascending" : "descending";
  const className = `${run.pictures ? "pictured" : ""} ${column ? "" : "short"}`;
  return html`<${Grid} label="Experts" className=${className} heads=${heads} places=${places} cells=${cells} sort=${sort} direction=${direction} choose=${choose}
    opened=${opened.startsWith(`${level}/`) ? Number(opened.split("/")[1]) : null} onOpen=${(n) => onOpen(level, n)}
    picked=${(n) => selected.includes(`${level}/${n}`)} onPick=${toggle} />`;
}

export function ExpertDetail({ run, notes, split, level, expert, pins, onPin, onBeside, onOpenExpert, onOpenImage, onEdit, onClose }) {
  const query = { split, level, expert };
  const { found, problem, busy } = useAnswer(JSON.stringify(query), () => get("/api/expert", query), { fresh: true });
  const load = useCallback(
    (offset, limit) => post("/api/images", { split, level, expert, offset, limit }),
    [split, level, expert],
  );
  const [failed, setFailed] = useState("");
  const title = run.num_experts.length > 1 ? `Expert ${expert} of level ${level}` : `Expert ${expert}`;
  const { name } = notes.of(level, expert);
  const card = async () => {
    try {
      download(`expert-${level}-${expert}.png`, await fetched("/api/card", query));
      setFailed("");
    } catch (error) {
      setFailed(error.message);
    }
  };
  const mine = `${level}/${expert}`;
  return html`<section class="pane detail" aria-label=${title} aria-busy=${busy}>
    <header class="panehead"><button type="button" class="back" onClick=${onClose}>‹ ${onBeside ? "Experts" : "Close"}</button><h2>${title}${name && html`<span class="named">${name}</span>`}</h2></header>
    <div class="tools"><button type="button" aria-pressed=${pins.includes(mine)} onClick=${() => onPin(mine)}>${pins.includes(mine) ? "Unpin" : "Pin"}</button>
      <button type="button" onClick=${card}>Card as PNG</button>
      ${onBeside && html`<${Beside} run=${run} notes=${notes} found=${found} mine=${mine} pins=${pins} onBeside=${onBeside} />`}</div>
    <${Problem} text=${problem || failed} onClose=${failed ? () => setFailed("") : null} />
    ${found && html`<${Headline} found=${found} />`}
    ${found && html`<h3>Its images, largest coefficient first <small>(${count(found.touched)} of ${count(found.rows)} ${split} images)</small></h3>
      <${Gallery} run=${run} total=${found.touched} load=${load} onOpen=${onOpenImage} label=${`Images of expert ${expert}`} />`}
    ${found && run.editable && html`<${Actions} run=${run} level=${level} expert=${expert} onEdit=${onEdit} />`}
    ${found && html`<${Bars} run=${run} found=${found} split=${split} mine=${mine} />`}
    ${found && html`<${Naming} notes=${notes} level=${level} expert=${expert} suggestion=${found.suggestion} />`}
    ${found && html`<${Facts} run=${run} found=${found} />`}
    ${found?.analysis && html`<${Nearest} run=${run} notes=${notes} found=${found} onOpenExpert=${onOpenExpert} />`}
  </section>`;
}

// Opens another expert beside this one: a pinned one, or one of the nearest.
function Beside({ run, notes, found, mine, pins, onBeside }) {
  const near = (found?.analysis?.by_weight ?? []).slice(0, 5).map((item) => `${found.level}/${item.expert}`);
  const text = (key) => {
    const [level, expert] = key.split("/").map(Number);
    const number = run.num_experts.length > 1 ? key : expert;
    return `expert ${number}${notes.of(level, expert).name ? ` (${notes.of(level, expert).name})` : ""}`;
  };
  const others = pins.filter((pin) => pin !== mine);
  const options = [...others.map((pin) => [pin, `${text(pin)}, pinned`]), ...near.filter((key) => !others.includes(key)).map((key) => [key, `${text(key)}, near by weight`])];
  return html`<${Choice} label="Side by side with" value="" className="inline bare" onChange=${(key) => key && onBeside(key)}
    options=${[["", options.length ? "Side by side with ..." : "Side by side: pin another expert first"], ...options]} />`;
}

// The expert in one sentence, with its control.
function Headline({ found }) {
  const view = found.analysis;
  if (!view) return html`<p class="headline">Its coefficient is at least 0.5 on ${plural(found.load, "image")}. What its ablation changes was not measured.</p>`;
  const [first] = view.losses;
  const loses = first && first.loss > 0 ? html`Without it <b>${first.name}</b> loses <b>${percent(first.loss, 0)}</b> of its right answers` : html`Without it no class loses anything`;
  const strong = view.strong ? `strong by ${plural(view.images, "image")}` : "not strong";
  const control = view.control ? `p ${number(view.control.polysemanticity)}, ${view.control.strong ? "strong" : "not strong"}` : "no effect";
  return html`<p class="headline">${loses} (${found.analysis_split}): p ${number(view.polysemanticity)}, ${strong}. Its control: ${control}.</p>`;
}

function Bars({ run, found, split, mine }) {
  const view = found.analysis;
  const losses = (view?.losses ?? []).filter((item) => item.loss > 0).slice(0, 8);
  const gains = (view?.losses ?? []).filter((item) => item.loss < 0).slice(-2);
  const lost = [...losses, ...gains].map((item) => ({ name: item.name, value: item.loss, interval: item.interval }));
  const { falls, rises } = found.logits;
  const logits = [...falls, ...rises].map((item) => ({ name: item.name, value: -item.change }));
  const digits = lost.every((item) => Math.abs(item.value) < 0.1) ? 1 : 0;
  const ends = (item) => interval(item.value < 0 ? item.interval && [-item.interval[1], -item.interval[0]] : item.interval, digits);
  const share = (item) => html`${item.value < 0 ? `gains ${percent(-item.value, digits)}` : percent(item.value, digits)}${ends(item) && html` <small>${ends(item)}</small>`}`;
  return html`<div class="columns">
    <div><h3>Classes that change without it <small>${view ? `on ${found.analysis_split}` : ""}</small><${Term} of="change" /></h3>
      ${!view && html`<p class="note">Not measured: the run was not analyzed.</p>`}
      ${view && !view.losses.length && html`<p class="note">Nothing changes when it is ablated.</p>`}
      ${lost.length > 0 && html`<${Effects} items=${lost} most=${1} both=${gains.length > 0} text=${share} />`}
      ${gains.length > 0 && html`<p class="note">Losses to the right, gains to the left.</p>`}
      ${view?.losses.length > 0 && html`<${Csv} name=${`expert-${mine}-classes-lost`} heads=${["class", "share_lost", "low", "high", "right_answers_before"]}
        rows=${view.losses.map((item) => [item.name, item.loss, item.interval?.[0], item.interval?.[1], item.right])} />`}
    </div>
    <div><h3>Which images it processes <small>share of its coefficients</small><${Term} of="seen" /></h3>
      <ul class="bars">${found.classes.map((item) => html`<li key=${item.name}><span class="ellipsis" title=${item.name}>${item.name}</span>
        <${ShareBar} value=${item.share} /><span class="value">${percent(item.share, 0)}</span></li>`)}</ul>
      ${run.multi_label && html`<p class="note">Attributes overlap, so shares add up to more than 100%.</p>`}
      ${found.classes.length > 0 && html`<${Csv} name=${`expert-${mine}-classes-seen`} heads=${["class", "share_of_coefficients"]} rows=${found.classes.map((item) => [item.name, item.share])} />`}
    </div>
    <div><h3>Logits without it <small>mean change over its images</small><${Term} of="logits" /></h3>
      ${logits.length ? html`<${Effects} items=${logits} most=${Math.max(...logits.map((item) => Math.abs(item.value)))} both=${true} text=${(item) => signed(-item.value)} />
        <p class="note">To the right: logits that fall without it, which it raises. To the left: those that rise.</p>
        <${Csv} name=${`expert-${mine}-logits`} heads=${["class", "change_without_it"]} rows=${[...falls, ...rises].map((item) => [item.name, item.change])} />`
        : html`<p class="note">No logit changes.</p>`}
    </div>
    <div><h3>Coefficients <small>on ${count(found.touched)} ${split} images</small><${Term} of="histogram" /></h3>
      <${Histogram} bins=${found.histogram} what="Images" threshold=${run.threshold} />
      <p class="note">${count(found.rows - found.touched)} images have a coefficient of 0. Darker: at least ${run.threshold}, counted as load.</p>
      <${Csv} name=${`expert-${mine}-coefficients`} heads=${["from", "to", "images"]} rows=${found.histogram.map((value, n, all) => [n / all.length, (n + 1) / all.length, value])} />
    </div>
  </div>`;
}

function Facts({ run, found }) {
  const view = found.analysis;
  return html`<dl class="facts">
      <div><dt><${Term} of="load">Load</${Term}></dt><dd>${count(found.load)}</dd></div>
      <div><dt><${Term} of="touched">Images touched</${Term}></dt><dd>${count(found.touched)}</dd></div>
      <div><dt><${Term} of="mean">Mean coefficient</${Term}></dt><dd>${number(found.mean, 4)}</dd></div>
      <div><dt><${Term} of="p">Polysemanticity p</${Term}></dt><dd>${number(view?.polysemanticity)}</dd></div>
      ${view && html`<div><dt><${Term} of="control">p of its control</${Term}></dt><dd>${number(view.control?.polysemanticity)}</dd></div>
      <div><dt><${Term} of="strong">Strong</${Term}></dt><dd>${view.strong ? `yes, by ${plural(view.images, "image")}` : "no"}</dd></div>`}
    </dl>`;
}

function Nearest({ run, notes, found, onOpenExpert }) {
  const view = found.analysis;
  if (!view.by_weight.length && !view.by_coefficient.length) return null;
  const links = (near) => near.slice(0, 5).map((item) => html`<${ExpertLink} expert=${item.expert} level=${found.level} levels=${run.num_experts.length}
    name=${notes.of(found.level, item.expert).name} onOpen=${onOpenExpert} /> `);
  return html`<p class="note">Nearest by weight: ${links(view.by_weight)} by images: ${links(view.by_coefficient)}<${Term} of="near" /></p>`;
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
    <${Meanings} title="What these do" words=${[["Ablate", "ablate"], ["Scale", "scale"], ...(single ? [["Correct", "correct"], ["Set to 0", "set"]] : [])]} />
  </div>`;
}
