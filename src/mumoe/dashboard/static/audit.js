// The audit: groups of images that the model gets wrong more often than others with the same label.

import { useState } from "/vendor/hooks.js";
import { useAnswer } from "/answers.js";
import { get } from "/api.js";
import { count, number, percent, plural } from "/format.js";
import { Choice, Csv, ExpertLink, html, Problem, Scroll, Term } from "/parts.js";

export function Audit({ run, notes, split, onOpenExpert }) {
  const [target, setTarget] = useState(run.multi_label ? run.classes[0] : "");
  const query = { split, target };
  const { found, problem, busy } = useAnswer(JSON.stringify(query), () => get("/api/audit", query), { fresh: true });
  return html`<section class="pane detail" aria-label="Audit" aria-busy=${busy}>
    <header class="panehead"><h2>Audit</h2></header>
    <p class="note">Groups of ${split} images that are right less often than other images with the same true label, by the errors they have
      beyond those of the rest: score = images × gap / (images + 20). The first group need not be the failure you are looking for: other hard slices are real too.</p>
    ${run.multi_label && html`<div class="fields"><${Choice} label="Attribute to audit" value=${target} onChange=${setTarget} options=${run.classes.map((name) => [name, name])} /></div>`}
    ${busy && html`<p class="note" role="status">Comparing groups.</p>`}
    <${Problem} text=${problem} />
    ${found?.pooled && html`<p class="note">All labels are pooled, and groups are compared within each label: no group has enough images of one.</p>`}
    ${found && html`<${Ranking} title="By experts" ranking=${found.experts} labels=${found.labels} notes=${notes} levels=${run.num_experts.length} onOpenExpert=${onOpenExpert} />`}
    ${found?.attributes && html`<${Ranking} title="By named attributes" ranking=${found.attributes} labels=${found.labels} />`}
    ${found && !found.attributes && html`<p class="note">The data have no named attributes.</p>`}
  </section>`;
}

function Ranking({ title, ranking, labels, notes, levels, onOpenExpert }) {
  const rows = ranking.findings.map((item) => {
    const chance = item.p_corrected > ranking.alpha;
    const group = item.experts.map(([level, expert], n) => html`${n > 0 && " + "}<${ExpertLink} expert=${expert} level=${level} levels=${levels} name=${notes.of(level, expert).name} onOpen=${onOpenExpert} />`);
    return html`<tr key=${`${item.group}/${item.label}`}><th scope="row">${item.experts.length ? group : item.group}
        ${item.merged.length > 0 && html`<small class="block" title=${item.merged.join("; ")}>and ${plural(item.merged.length, "overlapping group")}</small>`}</th>
      <td>${item.label == null ? "any" : labels[item.label]}</td><td class="num">${count(item.rows)}</td>
      <td class="num">${percent(item.accuracy)}</td><td class="num">${percent(item.rest)}</td>
      <td class="num">${number(item.gap.value, 3)} <small>${number(item.gap.low, 3)} to ${number(item.gap.high, 3)}</small></td>
      <td class="num">${number(item.score, 3)}</td><td class="num">${number(item.p_corrected, 4)} ${chance && html`<small>may be chance</small>`}</td></tr>`;
  });
  return html`<h3>${title}</h3><p class="note">${ranking.headline}.${ranking.total > rows.length ? ` The first ${rows.length} of ${count(ranking.total)} are shown.` : ""}</p>
    ${rows.length > 0 && html`<${Scroll} label=${title}><table>
      <thead><tr><th scope="col">Group</th><th scope="col">True label</th><th scope="col">Images</th><th scope="col">Accuracy</th><th scope="col">Rest</th><th scope="col">Gap<${Term} of="audit_gap" /></th><th scope="col">Score<${Term} of="score" /></th><th scope="col">p, corrected<${Term} of="p_corrected" /></th></tr></thead>
      <tbody>${rows}</tbody></table></${Scroll}>
      <${Csv} name=${`audit-${title}`} heads=${["group", "true_label", "images", "accuracy", "accuracy_of_the_rest", "gap", "gap_low", "gap_high", "score", "p_corrected"]}
        rows=${ranking.findings.map((item) => [item.group, item.label == null ? "any" : labels[item.label], item.rows, item.accuracy, item.rest, item.gap.value, item.gap.low, item.gap.high, item.score, item.p_corrected])} />`}`;
}
