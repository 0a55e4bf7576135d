// Lists of images, one image taken apart, and uploaded pictures.

import { useCallback, useMemo, useRef, useState } from "/vendor/hooks.js";
import { useAnswer } from "/answers.js";
import { post, upload } from "/api.js";
import { count, index, number, percent, plural, signed } from "/format.js";
import { Filters } from "/experts.js";
import { Choice, Csv, Diverging, Gallery, html, Picture, Problem, Progress, Scroll, Term } from "/parts.js";

export const KINDS = [
  ["all", "all"],
  ["wrong", "wrong answers"],
  ["right", "right answers"],
  ["mended", "corrected by the edits"],
  ["broken", "made wrong by the edits"],
];

export function ImageList({ run, view, setView, edits, opened, onOpen }) {
  const { split, kind, label, attribute, value } = view;
  const filter = useMemo(() => ({ label, attribute, value }), [label, attribute, value]);
  const changed = kind === "mended" || kind === "broken";
  const used = changed ? edits : null;
  const load = useCallback(
    (offset, limit) =>
      post("/api/images", { split, ...filter, kind, edits: used ?? [], offset, limit }),
    [split, filter, kind, used],
  );
  const question = JSON.stringify([split, filter, kind, used]);
  const { found, problem, busy } = useAnswer(question, () => load(0, 0), { fresh: true });
  return html`<section class="pane list wide" aria-label="Images" aria-busy=${busy}>
    <div class="fields"><${Choice} label="Show" value=${kind} onChange=${(key) => setView({ kind: key })} options=${KINDS} />
      <${Filters} run=${run} filter=${filter} setFilter=${setView} /></div>
    <${Problem} text=${problem} />
    <p class="note" role="status">${found ? `${plural(found.total, "image")} of ${split}.` : problem ? "" : "Counting."} ${changed && !edits.length ? "There are no edits." : ""}</p>
    <${Gallery} run=${run} total=${found?.total ?? 0} load=${load} onOpen=${onOpen} selected=${opened} label="Images" />
    ${run.credits.length > 0 && html`<p class="credits" tabindex="0" role="note" aria-label="Credits">${run.credits.join(" ")}</p>`}
  </section>`;
}

export function ImageDetail({ run, notes, image, edits, onOpenExpert, onClose }) {
  const [labels, setLabels] = useState([]);
  const { found, problem, busy } = useApart({ image }, labels, edits);
  return html`<section class="pane detail" aria-label="Image" aria-busy=${busy}>
    <header class="panehead"><button type="button" class="back" onClick=${onClose}>‹ Back</button><h2>Image ${image}</h2></header>
    <${Problem} text=${problem} />
    ${found && html`<div class="picturefacts"><${Picture} run=${run} image=${image} size=${192} name=${`Image ${found.name}`} />
      <dl><div><dt>Name</dt><dd class="break">${found.name}</dd></div><div><dt>Split</dt><dd>${found.split}</dd></div>
        <div><dt>Truth</dt><dd>${named(run, found.truth)}</dd></div>
        <${Answers} run=${run} found=${found} />
        ${Object.entries(found.attributes).map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value ?? "unknown"}</dd></div>`)}</dl></div>
      <${Apart} run=${run} notes=${notes} found=${found} labels=${labels} setLabels=${setLabels} onOpenExpert=${onOpenExpert} />`}
  </section>`;
}

function named(run, positions) {
  return positions.length ? positions.map((c) => run.classes[c]).join(", ") : "none";
}

function Answers({ run, found }) {
  const edited = found.edited;
  return html`<div><dt>Answer</dt><dd>${named(run, found.decided)} ${!run.multi_label && html`<small>${percent(found.probabilities[found.classes.indexOf(found.decided[0])])}</small>`}</dd></div>
    ${edited && html`<div><dt>With the edits</dt><dd>${named(run, edited.decided)} ${!run.multi_label && edited.decided.some((c) => found.classes.includes(c))
      && html`<small>${percent(edited.probabilities[found.classes.indexOf(edited.decided[0])])}</small>`}</dd></div>`}`;
}

function useApart(which, labels, edits) {
  const asked = { ...which, labels, edits };
  const { found, ...rest } = useAnswer(JSON.stringify(asked), () => post("/api/image", asked).then((answer) => ({ ...answer, which })));
  const same = found && found.which.image === which.image && found.which.upload === which.upload;
  return { ...rest, found: same ? found : null };
}

// The sum that a logit is: one line per expert, one column per label.
function Apart({ run, notes, found, labels, setLabels, onOpenExpert }) {
  const most = Math.max(1e-9, ...found.experts.flatMap((expert) => (expert.terms ?? []).map(Math.abs)));
  const rest = found.experts_total - found.experts.length;
  const others = run.classes.filter((name) => !labels.includes(name));
  return html`<h3>What each expert adds to the logits</h3>
    <p class="note">${found.additive ? "A logit is the sum over experts of coefficient × (expert's weight × image): the lines add up to it."
      : "A linear layer follows the experts, so a logit is not a sum over them: only coefficients are shown."}
      ${rest > 0 ? ` The ${found.experts.length} largest of ${found.experts_total} are shown.` : ""}</p>
    <${Scroll} label="Experts behind the logits"><table class="apart">
      <thead><tr><th scope="col">Expert</th><th scope="col">a<${Term} of="coefficient" /></th>${found.additive && found.classes.map((c) => html`<th key=${c} scope="col"
        class=${found.truth?.includes(c) ? "truth" : ""}>${run.classes[c]}</th>`)}<th scope="col">Answer without it<${Term} of="without" /></th></tr></thead>
      <tbody>${found.experts.map((expert) => html`<tr key=${index(expert.index)}>
        <th scope="row">${expert.index.map((n, level) => html`${level ? ", " : ""}<button type="button" class="link" key=${level}
          aria-label=${run.num_experts.length > 1 ? `Expert ${n} of level ${level}` : `Expert ${n}`} onClick=${() => onOpenExpert(level, n)}>${n}</button>${notes.of(level, n).name && html`<small>${notes.of(level, n).name}</small>`}`)}</th>
        <td class="num">${number(expert.coefficient)}</td>
        ${expert.terms?.map((term, n) => html`<td key=${n} class="num"><${Diverging} value=${term} most=${most} />${signed(term)}</td>`)}
        <td class=${same(expert.without.decided, found.decided) ? "quiet" : "moved"}>${same(expert.without.decided, found.decided) ? "the same" : named(run, expert.without.decided)}
          ${!run.multi_label && html` <small>${chance(found, expert.without)}</small>`}</td></tr>`)}</tbody>
      <tfoot>${found.additive && html`<tr><th scope="row">Logit</th><td></td>${found.logits.map((logit, n) => html`<td key=${n} class="num">${number(logit)}</td>`)}<td></td></tr>`}
        <tr><th scope="row">Probability</th><td></td>${found.additive && found.probabilities.map((share, n) => html`<td key=${n} class="num">${percent(share)}</td>`)}<td></td></tr>
        ${found.edited && found.additive && html`<tr><th scope="row">With the edits</th><td></td>${found.edited.logits.map((logit, n) => html`<td key=${n} class="num">${number(logit)}</td>`)}<td></td></tr>`}</tfoot>
    </table></${Scroll}>
    <${Csv} name="experts-behind-the-logits" heads=${["expert", "coefficient", ...(found.additive ? found.classes.map((c) => run.classes[c]) : []), "answer_without_it"]}
      rows=${[...found.experts.map((expert) => [index(expert.index), expert.coefficient, ...(expert.terms ?? []), named(run, expert.without.decided)]), ...(found.additive ? [["logit", "", ...found.logits, ""]] : [])]} />
    ${found.additive && html`<div class="fields"><${Choice} label="Show another label" value="" onChange=${(name) => name && setLabels([...labels, name])}
      options=${[["", "choose"], ...others.map((name) => [name, name])]} /></div>`}`;
}

function chance(found, without) {
  const place = found.classes.indexOf(found.decided[0]);
  return place < 0 ? "" : `${percent(found.probabilities[place], 0)} → ${percent(without.probabilities[place], 0)}`;
}

function same(left, right) {
  return left.length === right.length && left.every((value, n) => value === right[n]);
}

export function OwnPicture({ run, notes, edits, onOpenExpert }) {
  const [busy, setBusy] = useState(false);
  const [shown, setShown] = useState(null);
  const [problem, setProblem] = useState("");
  const [over, setOver] = useState(false);
  const input = useRef(null);
  const take = async (file) => {
    if (!file) return;
    setProblem("");
    if (file.size > run.most_bytes) {
      setProblem(`The picture has ${count(Math.ceil(file.size / 2 ** 20))} MB; at most ${run.most_bytes / 2 ** 20} MB are accepted.`);
      return;
    }
    setBusy(true);
    try {
      setShown({ ...(await upload(file)), name: file.name });
    } catch (error) {
      setProblem(error.message);
    }
    setBusy(false);
  };
  const drop = (event) => {
    event.preventDefault();
    setOver(false);
    take(event.dataTransfer.files[0]);
  };
  if (!run.uploads) {
    return html`<section class="pane detail only" aria-label="Your picture"><h2>Your picture</h2>
      <p class="note">This run was trained on features computed elsewhere: the network that would read a picture is unknown.</p></section>`;
  }
  return html`<section class="pane detail only" aria-label="Your picture" aria-busy=${busy}><h2>Your picture</h2>
    <div class="drop ${over ? "over" : ""}" onDragOver=${(event) => (event.preventDefault(), setOver(true))} onDragLeave=${() => setOver(false)} onDrop=${drop}>
      <p>Drop a picture here, or</p>
      <button type="button" onClick=${() => input.current.click()}>choose a file</button>
      <input ref=${input} type="file" accept="image/*" class="unseen" tabindex="-1" aria-label="Picture to look at"
        onChange=${(event) => (take(event.currentTarget.files[0]), (event.currentTarget.value = ""))} />
      <p class="note">It stays on this machine. At most ${run.most_bytes / 2 ** 20} MB.</p></div>
    ${busy && html`<${Progress} job=${{ note: "Processing the picture (the first one loads the network)", total: 0 }} />`}
    <${Problem} text=${problem} onClose=${() => setProblem("")} />
    ${shown && html`<${OwnApart} run=${run} notes=${notes} shown=${shown} edits=${edits} onOpenExpert=${onOpenExpert} />`}
  </section>`;
}

function OwnApart({ run, notes, shown, edits, onOpenExpert }) {
  const [labels, setLabels] = useState([]);
  const { found, problem, busy } = useApart({ upload: shown.upload }, labels, edits);
  return html`<div class="picturefacts" aria-busy=${busy}><img src=${shown.picture} alt=${shown.name} width="192" height="192" />
      <dl><div><dt>File</dt><dd class="break">${shown.name}</dd></div><div><dt>Size</dt><dd>${shown.width} × ${shown.height}</dd></div>
        ${found && html`<${Answers} run=${run} found=${found} />`}</dl></div>
    <${Problem} text=${problem} />
    ${found && html`<${Apart} run=${run} notes=${notes} found=${found} labels=${labels} setLabels=${setLabels} onOpenExpert=${onOpenExpert} />`}`;
}
