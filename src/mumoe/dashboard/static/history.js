// Edits with undo and redo. A gesture (the drag of one slider) is one step.

export const START = { steps: [[]], at: 0, gesture: null };

export function change(history, edits, gesture = null) {
  const goesOn = gesture !== null && gesture === history.gesture;
  const kept = history.steps.slice(0, history.at + (goesOn ? 0 : 1));
  return { steps: [...kept, edits], at: kept.length, gesture };
}

export function settle(history) {
  return history.gesture === null ? history : { ...history, gesture: null };
}

export function undo(history) {
  return history.at > 0 ? { ...history, at: history.at - 1, gesture: null } : history;
}

export function redo(history) {
  return history.at + 1 < history.steps.length ? { ...history, at: history.at + 1, gesture: null } : history;
}

export function current(history) {
  return history.steps[history.at];
}

// A name that is not used by any edit.
export function free(edits, kind) {
  for (let n = 1; ; n += 1) {
    if (!edits.some((edit) => edit.name === `${kind}-${n}`)) return `${kind}-${n}`;
  }
}
