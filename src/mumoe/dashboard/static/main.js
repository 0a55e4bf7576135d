// The page: opening, navigation, and what is shared between its parts.

import { render } from "/vendor/preact.js";
import { useCallback, useEffect, useRef, useState } from "/vendor/hooks.js";
import { get, post, setPage, watch } from "/api.js";
import { Audit } from "/audit.js";
import { Board, entries } from "/board.js";
import { ExpertDetail, ExpertList } from "/experts.js";
import { change, current, free, redo, settle, START, undo } from "/history.js";
import { ImageDetail, ImageList, OwnPicture } from "/images.js";
import { Choice, html, Problem, Progress } from "/parts.js";
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

// The address after #: experts, expert/LEVEL/N, images, image/N, own, audit, edits, texts.
function place() {
  const [page, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  const numbers = rest.map(Number);
  if (page === "expert" && numbers.length === 2 && numbers.every(Number.isInteger)) return { page, level: numbers[0], expert: numbers[1] };
  if (page === "image" && numbers.length === 1 && Number.isInteger(numbers[0])) return { page, image: numbers[0] };
  return { page: ["images", "own", "audit", "edits", "texts"].includes(page) ? page : "experts" };
}

const go = (path) => {
  location.hash = `#/${path}`;
};

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

function useWhere() {
  const [where, setWhere] = useState(place);
  useEffect(() => {
    const moved = () => setWhere(place());
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  return where;
}

function useTitle(name) {
  useEffect(() => {
    document.title = `${name} · mumoe dashboard`;
  }, [name]);
}

function Texts({ run }) {
  const where = useWhere();
  const theme = useTheme();
  useTitle(run.name);
  return html`<${TextDashboard} run=${run} theme=${theme} tab=${where.page === "texts" ? "texts" : "experts"} />`;
}

function Dashboard({ run }) {
  const where = useWhere();
  const theme = useTheme();
  const [split, setSplit] = useState(run.split);
  const [job, setJob] = useState(null);
  const [problem, setProblem] = useState("");
  const [level, setLevel] = useState(0);
  const [selected, setSelected] = useState([]);
  const [history, setHistory] = useState(START);
  const [kind, setKind] = useState("all");
  const edits = current(history);
  const heading = useRef(null);
  useTitle(run.name);
  useEffect(() => {
    const onKey = (event) => {
      const typing = event.target.matches?.("input[type=text], input[type=number], textarea");
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
      setSplit(name);
    } catch (error) {
      setProblem(error.message);
    }
    setJob(null);
  };
  const openExpert = (whichLevel, expert) => {
    setLevel(whichLevel);
    go(`expert/${whichLevel}/${expert}`);
  };
  const openImage = (image) => go(`image/${image}`);
  const sent = useSent(edits);
  const tabs = [["experts", "Experts"], ["images", "Images"], ["own", "Your picture"], ...(run.editable ? [["audit", "Audit"]] : []), ["edits", `Edits${edits.length ? ` (${edits.length})` : ""}`]];
  const tab = { expert: "experts", image: "images" }[where.page] ?? where.page;
  const opened = where.page === "expert" ? `${where.level}/${where.expert}` : "";
  const splits = Object.entries(run.splits).map(([name, images]) => [name, `${name} (${images.toLocaleString("en-US")} images)`]);
  return html`<div class="page at-${where.page} in-${tab}">
    <a class="skip" href="#main" onClick=${(event) => (event.preventDefault(), heading.current.focus())}>To the content</a>
    <header class="top"><h1 title=${run.path}>${run.name}</h1><span class="spec">${run.head} · ${run.data}</span>
      <${Choice} label="Split" value=${split} onChange=${takeSplit} options=${splits} className="inline" />
      ${theme}</header>
    <nav class="tabs" aria-label="Pages">${tabs.map(([key, text]) => html`<a key=${key} href=${`#/${key}`} class="tab-${key}" aria-current=${tab === key ? "page" : undefined}>${text}</a>`)}</nav>
    ${job && html`<${Progress} job=${job} />`}<${Problem} text=${problem} onClose=${() => setProblem("")} />
    <main id="main" tabindex="-1" ref=${heading}>
      ${tab === "images" ? html`<${ImageList} run=${run} split=${split} edits=${sent} kind=${kind} setKind=${setKind} opened=${where.image} onOpen=${openImage} />`
        : tab === "own" ? html`<${OwnPicture} run=${run} edits=${sent} onOpenExpert=${openExpert} />`
        : tab === "audit" ? html`<${Audit} run=${run} split=${split} onOpenExpert=${openExpert} />`
        : html`<${ExpertList} run=${run} split=${split} level=${level} setLevel=${setLevel} opened=${opened} onOpen=${openExpert} selected=${selected} setSelected=${setSelected} />`}
      ${where.page === "expert" && html`<${ExpertDetail} run=${run} split=${split} level=${where.level} expert=${where.expert}
        onOpenExpert=${openExpert} onOpenImage=${openImage} onEdit=${addEdit} onClose=${() => go("experts")} />`}
      ${where.page === "image" && html`<${ImageDetail} run=${run} image=${where.image} edits=${sent} onOpenExpert=${openExpert} onClose=${() => (window.history.length > 1 ? window.history.back() : go("images"))} />`}
      ${(where.page === "experts" || where.page === "edits") && html`<section class="pane detail empty-pane"><p class="note">Choose an expert in the list: arrow keys and Enter, or a click.</p></section>`}
      ${where.page === "images" && html`<section class="pane detail empty-pane"><p class="note">Choose an image to see which experts made its logits.</p></section>`}
      <${Board} run=${run} split=${split} edits=${edits} setEdits=${setEdits} addEdits=${addEdits} history=${history} onUndo=${() => setHistory(undo)} onRedo=${() => setHistory(redo)}
        onSettle=${() => setHistory(settle)} selected=${selected} setSelected=${setSelected} onOpenExpert=${openExpert}
        onOpenImages=${(which) => (setKind(which), go("images"))} />
    </main></div>`;
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
