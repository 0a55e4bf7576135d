// The address after #: a place and, behind ?, the state of the page. A copied address opens the same view; it never
// holds the token.

import { useEffect, useRef, useState } from "/vendor/hooks.js";

// What an address says: its path in parts, and the state as plain texts.
export function read(hash = location.hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  return { parts: path.split("/").filter(Boolean), given: Object.fromEntries(new URLSearchParams(query)), stated: hash.includes("?") };
}

export function go(path) {
  location.hash = `#/${path}`;
}

function written(parts, state) {
  const kept = Object.entries(state).filter(([, value]) => value !== "" && value != null);
  const query = new URLSearchParams(kept).toString();
  return `#/${parts.join("/")}${query ? `?${query}` : ""}`;
}

// The place, and a state of texts that the address holds. `defaults` are left out of the address. Going back changes
// the place alone; an address that was pasted or opened sets the state, too.
export function useAddress(defaults) {
  const [parts, setParts] = useState(() => read().parts);
  const [state, setState] = useState(() => known(defaults, read().given));
  const now = useRef(state);
  now.current = state;
  useEffect(() => {
    const moved = () => {
      const found = read();
      setParts(found.parts);
      if (found.stated && !history.state?.mumoe) setState(known(defaults, found.given));
    };
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  useEffect(() => {
    const said = Object.fromEntries(Object.entries(state).filter(([key, value]) => value !== defaults[key]));
    const later = setTimeout(() => {
      const address = written(parts, said);
      if (address !== location.hash && read().parts.join("/") === parts.join("/")) history.replaceState({ mumoe: true }, "", address);
    }, 120); // browsers reject many changes within a second
    return () => clearTimeout(later);
  }, [parts, state]);
  const change = (some) => setState((old) => ({ ...old, ...(typeof some === "function" ? some(old) : some) }));
  return [parts, state, change];
}

function known(defaults, given) {
  return Object.fromEntries(Object.entries(defaults).map(([key, value]) => [key, given[key] ?? value]));
}

// A list of places such as 0/17 in one text.
export function listed(text) {
  return text ? text.split(",") : [];
}

export function toggled(text, item) {
  const old = listed(text);
  return (old.includes(item) ? old.filter((other) => other !== item) : [...old, item]).join(",");
}
