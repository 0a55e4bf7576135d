// Edits, and what they change: accuracy, subgroups, classes.

import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "/vendor/hooks.js";
import { get, latest, post, watch } from "/api.js";
import { count, number, percent, plural, points, signed, tone } from "/format.js";
import { Choice, Csv, html, Meanings, Problem, Progress, Scroll, Term } from "/parts.js";

const METRICS = {
  rewriting_score: "Re-writing score ↑",
  target_accuracy: "Target subgroup ↑",
  equal_opportunity_difference: "Equality of opportunity ↓",
  std_bias: "Spread of subgroups ↓",
  min_accuracy: "Worst subgroup ↑",
  accuracy: "All images ↑",
};

const RESAMPLES = 500; // of the bootstrap intervals
const REST = 400; // milliseconds without a change before they are requested

// What a slider of each kind of edit moves: its value, its range, and the edit with another value.
function dial(edit) {
  if (edit.kind === "scale") {
    return { name: "factor", value: edit.factor, least: -2, most: 3, step: 0.05, set: (factor) => ({ ...edit, factor }) };
  }
  if (edit.kind === "correct" && edit.terms.length === 1) {
    const [[expert, value]] = edit.terms;
    return { name: "adds", value, least: -10, most: 10, step: 0.1, set: (next) => ({ ...edit, terms: [[expert, next]] }) };
  }
  if (edit.kind === "set-output") {
    return { name: "value", value: edit.value, least: -10, most: 10, step: 0.1, set: (value) => ({ ...edit, value }) };
  }
  if (edit.kind === "rewrite") {
    const most = Math.max(edit.paper ?? 0, 1.5 * Math.abs(edit.strength), 1);
    const sign = edit.lowers ?? edit.strength < 0 ? -1 : 1;
    return {
      name: "lambda", value: edit.strength, least: sign < 0 ? -most : 0, most: sign < 0 ? 0 : most, step: most / 200,
      set: (strength) => ({ ...edit, strength, lowers: sign < 0 }),
    };
  }
  return { name: "strength", value: edit.strength, least: 0, most: 1, step: 0.01, set: (strength) => ({ ...edit, strength }) };
}

// What the server is sent: the fields of an edit file, nothing that only the page needs.
export function entries(edits) {
  return edits.map(({ paper, lowers, about, ...entry }) => entry);
}

export function Board({ run, notes, split, edits, setEdits, addEdits, history, onUndo, onRedo, comparison, subgroup, setSubgroup, onSettle, selected, setSelected, onOpenImages, onOpenExpert }) {
  const sent = useMemo(() => entries(edits), [edits]);
  const { result, problem, slow, busy } = comparison;
  if (!run.editable) {
    return html`<section class="pane board" aria-label="Edits"><h2>Edits</h2>
      <p class="note">The experts of this run do not compute the logits (a linear layer follows them, or they are a sparse mixture), so they cannot be edited.
      Train with <code>--spec CPMuMoE-r256-e128 --position final</code>.</p></section>`;
  }
  return html`<section class="pane board" aria-label="Edits" aria-busy=${busy}>
    <header class="panehead"><h2>Edits</h2><span class="tools">
      <button type="button" disabled=${history.at === 0} onClick=${onUndo} title="Undo (Ctrl+Z)">Undo</button>
      <button type="button" disabled=${history.at + 1 >= history.steps.length} onClick=${onRedo} title="Redo (Ctrl+Shift+Z)">Redo</button></span></header>
    ${result && html`<${Overall} run=${run} split=${split} result=${result} slow=${slow} onOpenImages=${onOpenImages} />`}
    <${Problem} text=${problem} />
    <${Adding} run=${run} edits=${edits} add=${addEdits} selected=${selected} setSelected=${setSelected} subgroup=${subgroup} setSubgroup=${setSubgroup} />
    <ol class="edits">${edits.map((edit, n) => html`<${EditLine} key=${edit.name} run=${run} notes=${notes} edit=${edit} text=${result?.edits[n]}
      onOpenExpert=${onOpenExpert} onSettle=${onSettle}
      onChange=${(next) => setEdits((old) => old.map((other) => (other.name === edit.name ? next : other)), edit.name)}
      onRemove=${() => setEdits((old) => old.filter((other) => other.name !== edit.name))} />`)}</ol>
    ${run.sensitive.length > 0 && html`<${SubgroupFields} run=${run} subgroup=${subgroup} setSubgroup=${setSubgroup} />`}
    ${result?.fairness && html`<${Fairness} fairness=${result.fairness} />`}
    ${result?.by_value && html`<${ByValue} found=${result.by_value} name=${subgroup.sensitive} />`}
    ${result && html`<${Classes} run=${run} classes=${result.classes} />`}
    <${Files} edits=${edits} sent=${sent} setEdits=${setEdits} split=${split} subgroup=${subgroup} />
  </section>`;
}

// What the edits change. While a slider moves, the newest position is requested as soon as the last answer has arrived;
// once it stops, the bootstrap intervals of the subgroups follow; no later position waits for them.
export function useComparison(run, split, sent, subgroup) {
  const [answered, setAnswered] = useState({ question: null, result: null, problem: "" });
  const [intervals, setIntervals] = useState({ question: null, fairness: null });
  const [slow, setSlow] = useState(false);
  const given = { split, edits: sent, subgroup };
  const question = useMemo(() => JSON.stringify(given), [split, sent, subgroup]);
  const ask = useRef(null);
  ask.current ??= latest(async (asked, content) => {
    const started = performance.now();
    const waiting = setTimeout(() => setSlow(true), 400);
    try {
      const found = await post("/api/compare", content);
      setAnswered({ question: asked, result: { ...found, milliseconds: Math.round(performance.now() - started) }, problem: "" });
    } catch (error) {
      setAnswered((old) => ({ ...old, question: asked, problem: error.message }));
    }
    clearTimeout(waiting);
    setSlow(false);
  });
  const busy = run.editable && answered.question !== question;
  useLayoutEffect(() => {
    if (run.editable) ask.current(question, given);
  }, [question]);
  useEffect(() => {
    if (busy || !answered.result?.fairness || answered.problem) return undefined;
    let current = true;
    const later = setTimeout(() => {
      post("/api/compare", { ...given, resamples: RESAMPLES }).then((found) => current && setIntervals({ question, fairness: found.fairness }), () => {});
    }, REST);
    return () => {
      current = false;
      clearTimeout(later);
    };
  }, [question, busy]);
  const known = answered.result?.fairness && intervals.question === question;
  const result = known ? { ...answered.result, fairness: intervals.fairness } : answered.result;
  return { result, problem: answered.problem, slow, busy };
}

export function firstSubgroup(run) {
  const sensitive = run.sensitive.find((name) => name !== run.classes[0]) ?? run.sensitive[0] ?? "";
  return { head: run.multi_label ? run.classes[0] : "", sensitive, value: "", label: 1 };
}

function Adding({ run, edits, add, selected, setSelected, subgroup, setSubgroup }) {
  const [text, setText] = useState("");
  const [writing, setWriting] = useState(false);
  const [problem, setProblem] = useState("");
  const [job, setJob] = useState(null);
  const many = (make) => {
    add(selected.map((key) => make(...key.split("/").map(Number))));
    setSelected([]);
  };
  const write = async (event) => {
    event.preventDefault();
    setWriting(true);
    try {
      const { entry } = await post("/api/parse", { text });
      add([entry]);
      setText((now) => (now === text ? "" : now)); // text typed in the meantime stays
      setProblem("");
    } catch (error) {
      setProblem(error.message);
    }
    setWriting(false);
  };
  const rewrite = async (strength) => {
    setProblem("");
    setJob({ note: "Starting", total: 0 });
    try {
      const { job: id } = await post("/api/rewrite", { subgroup, edits: entries(edits), strength });
      const found = await watch(id, setJob);
      const lowers = Number(subgroup.label) === 0;
      const about = `${subgroup.head}=${subgroup.label}, ${subgroup.sensitive}=${subgroup.value}; mean of ${plural(found.images, "training image")}`;
      add([{ ...found.entry, paper: found.paper, lowers, about }]);
    } catch (error) {
      setProblem(error.message);
    }
    setJob(null);
  };
  return html`<div class="adding">
    ${selected.length > 0 && html`<div class="actions" role="group" aria-label="Selected experts"><span>${count(selected.length)} selected</span>
      <button type="button" onClick=${() => many((level, expert) => ({ kind: "ablate", expert, level, strength: 1 }))}>Ablate</button>
      <button type="button" onClick=${() => many((level, expert) => ({ kind: "scale", expert, level, factor: 2, strength: 1 }))}>Scale</button>
      <button type="button" class="plain" onClick=${() => setSelected([])}>Clear</button></div>`}
    ${!edits.length && !selected.length && html`<p class="note">No edits yet. Select experts in the list (space bar), or open one, to ablate or scale it.</p>`}
    ${run.multi_label && html`<details><summary>Rewrite for a subgroup</summary>
      <${SubgroupFields} run=${run} subgroup=${subgroup} setSubgroup=${setSubgroup} exact=${true} />
      <div class="actions"><button type="button" disabled=${job || !subgroup.value} onClick=${() => rewrite("auto")}>Choose lambda on validation</button>
        <button type="button" disabled=${job || !subgroup.value} onClick=${() => rewrite("paper")}>Lambda of the paper</button></div>
      <p class="note">The mean coefficients of the subgroup's training images are added to the attribute's logit, times lambda (equation 6 of the paper).<${Term} of="lambda" /></p></details>`}
    <details><summary>Write an edit</summary><form class="actions" aria-busy=${writing} onSubmit=${write}>
      <label class="field grow"><span>As for mumoe edit --do</span><input type="text" value=${text} placeholder="swap:4=9" onInput=${(event) => setText(event.currentTarget.value)} /></label>
      <button type="submit" disabled=${writing || !text.trim()}>Add</button></form>
      <p class="note">ablate:17, scale:3=0.5, swap:4=9, set-output:5:CLASS=2, correct:5:CLASS=0.3</p>
      <${Meanings} title="What these do" words=${[["ablate", "ablate"], ["scale", "scale"], ["swap", "swap"], ["set-output", "set"], ["correct", "correct"]]} /></details>
    ${job && html`<${Progress} job=${job} />`}
    <${Problem} text=${problem} onClose=${() => setProblem("")} />
  </div>`;
}

function title(run, edit) {
  const place = (n) => (run.num_experts.length > 1 ? `${edit.level}/${n}` : n);
  const output = () => run.classes[edit.head] ?? edit.head;
  if (edit.kind === "ablate") return `Ablate expert ${place(edit.expert)}`;
  if (edit.kind === "scale") return `Scale expert ${place(edit.expert)}`;
  if (edit.kind === "swap") return `Swap experts ${place(edit.first)} and ${place(edit.second)}`;
  if (edit.kind === "set-output") return `Expert ${edit.expert.join(", ")}: set ${output()}`;
  if (edit.kind === "correct") return `Correct ${output()} by ${edit.terms.length === 1 ? `expert ${edit.terms[0][0].join(", ")}` : plural(edit.terms.length, "expert")}`;
  return `Rewrite ${output()}`;
}

// The name of the one expert that an edit is about.
function named(run, notes, edit) {
  if (edit.kind === "ablate" || edit.kind === "scale") return notes.of(edit.level, edit.expert).name;
  const index = edit.kind === "set-output" ? edit.expert : edit.kind === "correct" && edit.terms.length === 1 ? edit.terms[0][0] : [];
  return index.length === 1 ? notes.of(0, index[0]).name : "";
}

function EditLine({ run, notes, edit, text, onChange, onRemove, onSettle }) {
  const { name, value, least, most, step, set } = dial(edit);
  const give = (next) => Number.isFinite(next) && onChange(set(next));
  const digits = step < 0.01 ? 4 : 2;
  return html`<li class="edit"><div class="editline"><b title=${text}>${title(run, edit)}${named(run, notes, edit) && html` <small>${named(run, notes, edit)}</small>`}</b>
      <button type="button" class="plain" aria-label=${`Remove ${edit.name}`} onClick=${onRemove}>×</button></div>
    ${edit.about && html`<p class="note">${edit.about}</p>`}
    <div class="dial"><span><${Term} of=${name}>${name}</${Term}></span>
      <input type="range" aria-label=${`${edit.name}: ${name}`} min=${least} max=${most} step=${step} value=${value}
        onInput=${(event) => give(event.currentTarget.valueAsNumber)} onChange=${onSettle} />
      <input type="number" aria-label=${`${edit.name}: ${name} as a number`} step="any" value=${Number(value.toFixed(digits))}
        onChange=${(event) => (give(event.currentTarget.valueAsNumber), onSettle())} /></div></li>`;
}

// What the edits change, in one line that leads to them: shown where the edits themselves are out of sight.
export function EditsLine({ edits, split, result }) {
  const [before, after] = result.accuracy;
  return html`<a class="editsline" href="#/edits">${plural(edits.length, "edit")}: accuracy on ${split} ${percent(before, 2)} → <b>${percent(after, 2)}</b>
    ${" "}(<${Change} before=${before} after=${after} digits=${2} /> points)</a>`;
}

function Change({ before, after, digits = 1 }) {
  return html`<span class=${`change ${tone(before, after, digits)}`}>${points(before, after, digits)}</span>`;
}

function Overall({ run, split, result, slow, onOpenImages }) {
  const [before, after] = result.accuracy;
  const what = run.multi_label ? "answer" : "image";
  return html`<div class="overall" aria-live="polite">
    <div class="figure"><span>Accuracy on ${split}</span><b>${percent(after, 2)}</b>
      <span class="from">before ${percent(before, 2)} <${Change} before=${before} after=${after} digits=${2} /> points</span></div>
    <p class="note"><button type="button" class="link" onClick=${() => onOpenImages("mended")}>${plural(result.mended, what)} corrected</button>,
      ${" "}<button type="button" class="link" onClick=${() => onOpenImages("broken")}>${count(result.broken)} newly wrong</button>
      ${" "}of ${count(result.answers)}. ${slow ? "Computing." : html`<span class="time">${result.milliseconds} ms</span>`}</p></div>`;
}

function SubgroupFields({ run, subgroup, setSubgroup, exact }) {
  const values = run.attributes[subgroup.sensitive] ?? ["0", "1"];
  const set = (part) => setSubgroup({ ...subgroup, ...part });
  return html`<div class="fields">
    ${run.multi_label && html`<${Choice} label="Attribute predicted" value=${subgroup.head} onChange=${(head) => set({ head })}
      options=${run.classes.map((name) => [name, name])} />`}
    <${Choice} label=${run.multi_label ? "Sensitive attribute" : "Accuracy by"} value=${subgroup.sensitive}
      onChange=${(sensitive) => set({ sensitive, value: "" })} options=${run.sensitive.filter((name) => name !== subgroup.head).map((name) => [name, name])} />
    ${run.multi_label && html`<${Choice} label="Its value" value=${subgroup.value} onChange=${(value) => set({ value })}
      options=${[["", exact ? "choose" : "the worst"], ...values.map((name) => [name, name])]} />
      <${Choice} label="True label" value=${String(subgroup.label)} onChange=${(label) => set({ label: Number(label) })}
      options=${[["1", "1 (has it)"], ["0", "0 (has it not)"]]} />`}</div>`;
}

function range(estimate) {
  return estimate.low == null ? "" : `${number(100 * estimate.low, 0)} to ${percent(estimate.high, 0)}`;
}

function Fairness({ fairness }) {
  const { before, after } = fairness;
  const target = after.target;
  const rows = after.subgroups.map((group, n) => {
    const old = before.subgroups[n].accuracy;
    const aim = group.subgroup.label === target.label && group.subgroup.sensitive === target.sensitive;
    return html`<tr key=${n} class=${aim ? "target" : ""}><th scope="row">${group.subgroup.label} / ${group.subgroup.sensitive} <small>${plural(group.count, "image")}${aim ? ", target" : ""}</small></th>
      <td class="num">${percent(old.value)}</td>
      <td class="num" title=${range(group.accuracy)}>${percent(group.accuracy.value)}${range(group.accuracy) && html`<small>${range(group.accuracy)}</small>`}</td>
      <td class="num"><${Change} before=${old.value} after=${group.accuracy.value} /></td></tr>`;
  });
  const metrics = Object.entries(METRICS).filter(([name]) => name in after.metrics);
  return html`<h3>Subgroups <small>${count(after.rows)} images</small></h3>
    <${Scroll} label="Subgroups"><table><thead><tr><th scope="col">Label / value</th><th scope="col">Before</th><th scope="col">After</th><th scope="col">Points</th></tr></thead><tbody>${rows}</tbody></table></${Scroll}>
    <${Csv} name="subgroups" heads=${["label", "value", "images", "before", "after", "low", "high"]}
      rows=${after.subgroups.map((group, n) => [group.subgroup.label, group.subgroup.sensitive, group.count, before.subgroups[n].accuracy.value, group.accuracy.value, group.accuracy.low, group.accuracy.high])} />
    <h3>Fairness</h3>
    <${Scroll} label="Fairness metrics"><table><thead><tr><th scope="col">Metric</th><th scope="col">Before</th><th scope="col">After</th><th scope="col">Change</th></tr></thead>
    <tbody>${metrics.map(([name, text]) => html`<tr key=${name}><th scope="row"><${Term} of=${name === "accuracy" ? "all_images" : name}>${text}</${Term}></th><td class="num">${name in before.metrics ? number(before.metrics[name].value, 3) : "–"}</td>
      <td class="num">${number(after.metrics[name].value, 3)}</td><td class="num">${name in before.metrics ? signed(after.metrics[name].value - before.metrics[name].value, 3) : "–"}</td></tr>`)}</tbody></table></${Scroll}>
    <${Csv} name="fairness" heads=${["metric", "before", "after"]} rows=${metrics.map(([name]) => [name, before.metrics[name]?.value, after.metrics[name].value])} />`;
}

function ByValue({ found, name }) {
  return html`<h3>By ${name}</h3><${Scroll} label=${`Accuracy by ${name}`}><table><thead><tr><th scope="col">Value</th><th scope="col">Images</th><th scope="col">Before</th><th scope="col">After</th><th scope="col">Points</th></tr></thead>
    <tbody>${found.values.map((value, n) => found.count[n] > 0 && html`<tr key=${value}><th scope="row">${value}</th><td class="num">${count(found.count[n])}</td><td class="num">${percent(found.before[n])}</td>
      <td class="num">${percent(found.after[n])}</td><td class="num"><${Change} before=${found.before[n]} after=${found.after[n]} /></td></tr>`)}</tbody></table></${Scroll}>
    <${Csv} name=${`accuracy-by-${name}`} heads=${["value", "images", "before", "after"]} rows=${found.values.map((value, n) => [value, found.count[n], found.before[n], found.after[n]])} />`;
}

const SHOWN = 8;

function Classes({ run, classes }) {
  const [all, setAll] = useState(false);
  const order = useMemo(() => {
    const moved = (c) => (classes.before[c] == null ? -1 : Math.abs(classes.after[c] - classes.before[c]));
    return run.classes.map((_, c) => c).filter((c) => classes.before[c] != null).sort((a, b) => moved(b) - moved(a) || a - b);
  }, [classes]);
  const shown = all ? order : order.slice(0, SHOWN);
  return html`<h3>${run.multi_label ? "Attributes" : "Classes"} <small>those that moved most first</small></h3>
    <${Scroll} label="Classes"><table><thead><tr><th scope="col">Name</th><th scope="col">Images</th><th scope="col">Before</th><th scope="col">After</th><th scope="col">Points</th></tr></thead>
    <tbody>${shown.map((c) => html`<tr key=${c}><th scope="row">${run.classes[c]}</th><td class="num">${count(classes.count[c])}</td><td class="num">${percent(classes.before[c])}</td>
      <td class="num">${percent(classes.after[c])}</td><td class="num"><${Change} before=${classes.before[c]} after=${classes.after[c]} /></td></tr>`)}</tbody></table></${Scroll}>
    <${Csv} name="classes" heads=${["class", "images", "before", "after"]} rows=${order.map((c) => [run.classes[c], classes.count[c], classes.before[c], classes.after[c]])} />${" "}
    ${order.length > SHOWN && html`<button type="button" class="link" onClick=${() => setAll(!all)}>${all ? "Show fewer" : `Show all ${order.length}`}</button>`}`;
}

function Files({ edits, sent, setEdits, split, subgroup }) {
  const [files, setFiles] = useState([]);
  const [name, setName] = useState("");
  const [said, setSaid] = useState("");
  const [problem, setProblem] = useState("");
  const [opened, setOpened] = useState({}); // name -> version that this page loaded or saved
  const read = () => get("/api/edits").then(setFiles, (error) => setProblem(error.message));
  useEffect(() => {
    read();
  }, []);
  const taken = files.find((file) => file.name === name);
  const save = async (event) => {
    event.preventDefault();
    setSaid("");
    setProblem("");
    try {
      const replace = taken ? opened[name] || taken.version : "";
      const { path, version } = await post("/api/save", { name, edits: sent, split, subgroup, replace });
      setOpened((before) => ({ ...before, [name]: version }));
      setSaid(`Written: ${path}`);
    } catch (error) {
      setOpened((before) => ({ ...before, [name]: "" })); // the next click replaces what is there now
      setProblem(error.message);
    }
    await read();
  };
  const open = async (chosen) => {
    setSaid("");
    setProblem("");
    try {
      const found = await post("/api/load", { name: chosen });
      setEdits(() => found.entries);
      setOpened((before) => ({ ...before, [chosen]: found.version }));
      setName(chosen);
    } catch (error) {
      setProblem(error.message);
    }
  };
  return html`<h3>Files <small>that mumoe edit reads and writes</small></h3>
    <form class="actions" onSubmit=${save}><label class="field grow"><span>File name</span>
      <input type="text" value=${name} placeholder="without-17" onInput=${(event) => setName(event.currentTarget.value)} /></label>
      <button type="submit" disabled=${!edits.length || !name}>${taken ? "Replace" : "Save"}</button></form>
    ${said && html`<p class="note break" role="status">${said}</p>`}
    <${Problem} text=${problem} onClose=${() => setProblem("")} />
    <ul class="files">${files.map((file) => html`<li key=${file.name}><span class="break">${file.name}</span>
      ${file.error ? html`<small>${file.error}</small>` : file.fits ? html`<button type="button" aria-label=${`Load ${file.name}`} onClick=${() => open(file.name)}>Load</button>` : html`<small>of another model</small>`}</li>`)}</ul>`;
}
