// The page: opening, navigation, and what is shared between its parts.

import { render } from "/vendor/preact.js";
import { useCallback, useEffect, useMemo, useRef, useState } from "/vendor/hooks.js";
import { go, listed, toggled, useAddress } from "/address.js";
import { get, post, setPage, watch } from "/api.js";
import { Audit } from "/audit.js";
import { Board, EditsLine, entries, firstSubgroup, useComparison } from "/board.js";
import { defaultSort, ExpertDetail, ExpertList, SORTS } from "/experts.js";
import { change, current, free, redo, settle, START, undo } from "/history.js";
import { ImageDetail, ImageList, KINDS, OwnPicture } from "/images.js";
import { useNotes } from "/notes.js";
import { Choice, CopyLink, html, Problem, Progress } from "/parts.js";
import { TextDashboard } from "/text.js";

const THEMES = ["system", "light", "dark"];

function applyTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

function kept(name, fallback) {
  try {
    return localStorage.getItem(name) ?? fallback;
  } catch {
    return fallback;
  }
}

function keep(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // Nothing is kept then.
  }
}

const TABS = ["images", "own", "audit", "edits", "texts"];

// The page that an address names: experts, expert/LEVEL/N, pair/LEVEL/N/LEVEL/N, images, image/N, own, audit, edits, texts.
function place([page, ...rest]) {
  const numbers = rest.map(Number);
  const whole = numbers.length > 0 && numbers.every(Number.isInteger);
  if (page === "expert" && numbers.length === 2 && whole) return { page, level: numbers[0], expert: numbers[1] };
  if (page === "pair" && numbers.length === 4 && whole) return { page, level: numbers[0], expert: numbers[1], beside: numbers.slice(2) };
  if (page === "image" && numbers.length === 1 && whole) return { page, image: numbers[0] };
  return { page: TABS.includes(page) ? page : "experts" };
}

function Opening() {
  const [state, setState] = useState(null);
  const [problem, setProblem] = useState("");
  useEffect(() => {
    let stopped = false;
    const ask = async () => {
      try {
        const found = await get("/api/state");
        setPage(found.page);
        if (stopped) return;
        setState(found);
        if (found.opening.state === "failed") setProblem(found.opening.error);
        else if (!found.run) setTimeout(ask, 150);
      } catch (error) {
        setProblem(error.message);
      }
    };
    ask();
    return () => {
      stopped = true;
    };
  }, []);
  if (problem) return html`<main class="opening"><h1>mumoe dashboard</h1><${Problem} text=${problem} /></main>`;
  if (!state?.run) return html`<main class="opening"><h1>mumoe dashboard</h1><${Progress} job=${state?.opening ?? { note: "Connecting", total: 0 }} /></main>`;
  return state.run.kind === "text" ? html`<${Texts} run=${state.run} />` : html`<${Dashboard} run=${state.run} />`;
}

function useTheme() {
  const [theme, setTheme] = useState(() => kept("mumoe-theme", "system"));
  useEffect(() => {
    applyTheme(theme);
    keep("mumoe-theme", theme);
  }, [theme]);
  return html`<${Choice} label="Theme" value=${theme} onChange=${setTheme} options=${THEMES.map((name) => [name, name])} className="inline" />`;
}

function useTitle(name) {
  useEffect(() => {
    document.title = `${name} · mumoe dashboard`;
  }, [name]);
}

function Texts({ run }) {
  const theme = useTheme();
  const notes = useNotes();
  useTitle(run.name);
  return html`<${TextDashboard} run=${run} theme=${theme} notes=${notes} />`;
}

// The edits of a link, each with a name of its own; none if they are no list of edits.
function givenEdits(text) {
  try {
    const found = JSON.parse(text || "[]");
    return Array.isArray(found) && found.every((edit) => edit?.name && edit.kind) ? found : [];
  } catch {
    return [];
  }
}

function Dashboard({ run }) {
  const theme = useTheme();
  const notes = useNotes();
  const defaults = useMemo(
    () => ({ split: run.split, level: "0", sort: defaultSort(run), reversed: "", unused: "", q: "", label: "", attribute: "", value: "", gap: run.sensitive[0] ?? "", kind: "all", pins: "", edits: "" }),
    [],
  );
  const [parts, given, setView] = useAddress(defaults);
  const where = place(parts);
  const view = useMemo(() => sound(run, given, defaults), [given]);
  const { split, kind } = view;
  const [job, setJob] = useState(null);
  const [problem, setProblem] = useState("");
  const [selected, setSelected] = useState([]);
  const [history, setHistory] = useState(() => (given.edits ? change(START, givenEdits(given.edits)) : START));
  const [subgroup, setSubgroup] = useState(() => firstSubgroup(run));
  const edits = current(history);
  const heading = useRef(null);
  useTitle(run.name);
  useEffect(() => {
    const { first } = run.start;
    if (!parts.length && first != null) location.replace(`${location.pathname}#/expert/0/${first}`);
  }, []);
  useEffect(() => {
    const onKey = (event) => {
      const typing = event.target.matches?.("input[type=text], input[type=search], input[type=number], textarea");
      if (!(event.ctrlKey || event.metaKey) || typing) return;
      const key = event.key.toLowerCase();
      if (key === "z") setHistory(event.shiftKey ? redo : undo);
      else if (key === "y") setHistory(redo);
      else return;
      event.preventDefault();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
  useEffect(() => setView({ edits: edits.length ? JSON.stringify(edits) : "" }), [edits]);
  const setEdits = useCallback((make, gesture = null) => setHistory((old) => change(old, make(current(old)), gesture)), []);
  const addEdits = useCallback((some) => setEdits((old) => some.reduce((all, edit) => [...all, { ...edit, name: free(all, edit.kind) }], old)), []);
  const addEdit = (edit) => {
    addEdits([edit]);
    if (innerWidth <= 700) go("edits");
  };
  const takeSplit = async (name) => {
    setProblem("");
    setJob({ note: `Opening ${name}`, total: 0 });
    try {
      const { job: id } = await post("/api/split", { split: name });
      await watch(id, setJob);
      setView({ split: name });
    } catch (error) {
      setProblem(error.message);
    }
    setJob(null);
  };
  const openExpert = (whichLevel, expert) => {
    setView({ level: String(whichLevel) });
    go(`expert/${whichLevel}/${expert}`);
  };
  const openImage = (image) => go(`image/${image}`);
  const sent = useSent(edits);
  const comparison = useComparison(run, split, sent, subgroup);
  const tabs = [["experts", "Experts"], ["images", "Images"], ["own", "Your picture"], ...(run.editable ? [["audit", "Audit"]] : []), ["edits", `Edits${edits.length ? ` (${edits.length})` : ""}`]];
  const tab = { expert: "experts", pair: "experts", image: "images" }[where.page] ?? where.page;
  const opened = where.page === "expert" || where.page === "pair" ? `${where.level}/${where.expert}` : "";
  const splits = Object.entries(run.splits).map(([name, images]) => [name, `${name} (${images.toLocaleString("en-US")} images)`]);
  const detail = (level, expert, more) => html`<${ExpertDetail} key=${more ? "first" : "second"} run=${run} notes=${notes} split=${split} level=${level} expert=${expert} pins=${listed(view.pins)}
    onPin=${(key) => setView((old) => ({ pins: toggled(old.pins, key) }))} onOpenExpert=${openExpert} onOpenImage=${openImage} onEdit=${addEdit} ...${more} />`;
  const [besideLevel, beside] = where.beside ?? [];
  return html`<div class="page at-${where.page} in-${tab}">
    <a class="skip" href="#main" onClick=${(event) => (event.preventDefault(), heading.current.focus())}>To the content</a>
    <header class="top"><h1 title=${run.path}>${run.name}</h1><span class="spec">${run.head} · ${run.data}</span>
      <${Choice} label="Split" value=${split} onChange=${takeSplit} options=${splits} className="inline" />
      ${theme}<${CopyLink} /></header>
    <nav class="tabs" aria-label="Pages">${tabs.map(([key, text]) => html`<a key=${key} href=${`#/${key}`} class="tab-${key}" aria-current=${tab === key ? "page" : undefined}>${text}</a>`)}</nav>
    ${edits.length > 0 && comparison.result && html`<${EditsLine} edits=${edits} split=${split} result=${comparison.result} />`}
    ${job && html`<${Progress} job=${job} />`}<${Problem} text=${problem} onClose=${() => setProblem("")} />
    <main id="main" tabindex="-1" ref=${heading}>
      ${tab === "images" ? html`<${ImageList} run=${run} view=${view} setView=${setView} edits=${sent} opened=${where.image} onOpen=${openImage} />`
        : tab === "own" ? html`<${OwnPicture} run=${run} notes=${notes} edits=${sent} onOpenExpert=${openExpert} />`
        : tab === "audit" ? html`<${Audit} run=${run} notes=${notes} split=${split} onOpenExpert=${openExpert} />`
        : html`<${ExpertList} run=${run} notes=${notes} view=${view} setView=${setView} opened=${opened} onOpen=${openExpert} onOpenImage=${openImage} selected=${selected} setSelected=${setSelected} />`}
      ${where.page === "expert" && detail(where.level, where.expert, { onClose: () => go("experts"), onBeside: (key) => go(`pair/${where.level}/${where.expert}/${key}`) })}
      ${where.page === "pair" && detail(where.level, where.expert, { onClose: () => go(`expert/${besideLevel}/${beside}`) })}
      ${where.page === "pair" && detail(besideLevel, beside, { onClose: () => go(`expert/${where.level}/${where.expert}`) })}
      ${where.page === "image" && html`<${ImageDetail} run=${run} notes=${notes} image=${where.image} edits=${sent} onOpenExpert=${openExpert} onClose=${() => (window.history.length > 1 ? window.history.back() : go("images"))} />`}
      ${(where.page === "experts" || where.page === "edits") && html`<section class="pane detail empty-pane"><p class="note">Choose an expert in the list: arrow keys and Enter, or a click.</p></section>`}
      ${where.page === "images" && html`<section class="pane detail empty-pane"><p class="note">Choose an image to see which experts made its logits.</p></section>`}
      <${Board} run=${run} notes=${notes} split=${split} edits=${edits} setEdits=${setEdits} addEdits=${addEdits} history=${history} onUndo=${() => setHistory(undo)} onRedo=${() => setHistory(redo)}
        comparison=${comparison} subgroup=${subgroup} setSubgroup=${setSubgroup}
        onSettle=${() => setHistory(settle)} selected=${selected} setSelected=${setSelected} onOpenExpert=${openExpert}
        onOpenImages=${(which) => (setView({ kind: which }), go("images"))} />
    </main></div>`;
}

// The state of an address with everything replaced that this run does not have.
function sound(run, given, defaults) {
  const checks = {
    split: (value) => value in run.splits,
    level: (value) => Number(value) in run.num_experts,
    sort: (value) => Object.hasOwn(SORTS, value),
    label: (value) => value === "" || run.classes.includes(value),
    attribute: (value) => value === "" || run.sensitive.includes(value),
    gap: (value) => run.sensitive.includes(value),
    kind: (value) => KINDS.some(([key]) => key === value),
    pins: (value) => value === "" || listed(value).every((pin) => Number(pin.split("/")[1]) < (run.num_experts[pin.split("/")[0]] ?? 0)),
  };
  return Object.fromEntries(Object.entries(given).map(([key, value]) => [key, checks[key] && !checks[key](value) ? defaults[key] : value]));
}

// The edits as the server takes them, the same array as long as they are the same.
function useSent(edits) {
  const known = useRef({ edits: null, sent: [] });
  if (known.current.edits !== edits) known.current = { edits, sent: entries(edits) };
  return known.current.sent;
}

applyTheme(kept("mumoe-theme", "system"));
if (location.search) history.replaceState(null, "", location.pathname + location.hash);
const root = document.getElementById("app");
root.textContent = "";
render(html`<${Opening} />`, root);
