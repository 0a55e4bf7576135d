// Names and notes of experts: read once, saved at once, and refused by the server if they were changed elsewhere.

import { useEffect, useId, useState } from "/vendor/hooks.js";
import { get, post } from "/api.js";
import { html, Problem } from "/parts.js";

const NONE = { name: "", note: "" };

export function useNotes() {
  const [found, setFound] = useState({ levels: {}, problem: "" });
  const load = () => get("/api/notes").then(setFound, (error) => setFound((old) => ({ ...old, problem: error.message })));
  useEffect(() => {
    load();
  }, []);
  const of = (level, expert) => found.levels[level]?.[expert] ?? NONE;
  const save = async (level, expert, after, before) => {
    try {
      setFound(await post("/api/note", { level: String(level), expert, ...after, before }));
    } catch (error) {
      await load();
      throw error;
    }
  };
  return { of, save, problem: found.problem };
}

// The name and note of one expert, to read and to change. What is typed is sent with what was there before.
export function Naming({ notes, level, expert, suggestion }) {
  const entry = notes.of(level, expert);
  const [typed, setTyped] = useState(null);
  const [before, setBefore] = useState(entry);
  const [said, setSaid] = useState("");
  const [problem, setProblem] = useState("");
  const id = useId();
  useEffect(() => {
    setTyped(null);
    setSaid("");
    setProblem("");
  }, [level, expert]);
  const shown = typed ?? entry;
  const type = (part) => {
    if (!typed) setBefore(entry);
    setSaid("");
    setTyped({ ...shown, ...part });
  };
  const save = async (after, from) => {
    setProblem("");
    try {
      await notes.save(level, expert, after, from);
      setTyped(null);
      setSaid("Saved.");
    } catch (error) {
      setProblem(error.message);
    }
  };
  // After a refusal a second attempt replaces the newest text, which the person has seen by then.
  useEffect(() => {
    if (problem) setBefore(entry);
  }, [entry.name, entry.note, problem]);
  const changed = typed && (typed.name !== entry.name || typed.note !== entry.note);
  const rows = Math.min(6, 1 + (shown.note.match(/\n/g)?.length ?? 0) + Math.floor(shown.note.length / 60));
  return html`<form class="naming" aria-label="Name and note" onSubmit=${(event) => (event.preventDefault(), changed && save(typed, before))}>
    <span class="field"><label for=${`${id}name`}>Name</label>
      <input id=${`${id}name`} type="text" maxlength="80" value=${shown.name} placeholder=${suggestion || "none yet"} onInput=${(event) => type({ name: event.currentTarget.value })} /></span>
    <span class="field wide"><label for=${`${id}note`}>Note</label>
      <textarea id=${`${id}note`} maxlength="4000" rows=${rows} value=${shown.note} onInput=${(event) => type({ note: event.currentTarget.value })}></textarea></span>
    <span class="saving"><button type="submit" disabled=${!changed}>Save</button>
      ${suggestion && !shown.name && html`<button type="button" onClick=${() => save({ ...shown, name: suggestion }, typed ? before : entry)}>Use the suggestion: ${suggestion}</button>`}
      <small role="status">${said}</small></span>
    <${Problem} text=${problem || notes.problem} onClose=${problem ? () => setProblem("") : null} />
    ${problem && html`<p class="note">Now: ${entry.name || "no name"}${entry.note ? `; ${entry.note}` : ""}. Save again to replace it.</p>`}
  </form>`;
}
