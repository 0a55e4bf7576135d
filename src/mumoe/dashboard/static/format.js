// Numbers as text. A missing number is a dash.

const NONE = "–";

export function count(value) {
  return value == null ? NONE : value.toLocaleString("en-US");
}

export function percent(value, digits = 1) {
  return value == null ? NONE : `${number(100 * value, digits)}%`;
}

export function number(value, digits = 2) {
  if (value == null) return NONE;
  const text = value.toFixed(digits);
  return text.replace(/^-(0(\.0*)?)$/, "$1").replace("-", "−");
}

export function signed(value, digits = 2) {
  if (value == null) return NONE;
  const text = Math.abs(value).toFixed(digits);
  if (Number(text) === 0) return text;
  return (value > 0 ? "+" : "−") + text;
}

// A difference of two shares, in percentage points.
export function points(before, after, digits = 1) {
  return before == null || after == null ? NONE : signed(100 * (after - before), digits);
}

export function tone(before, after, digits = 1) {
  if (before == null || after == null) return "";
  const moved = Number((100 * (after - before)).toFixed(digits));
  return moved > 0 ? "up" : moved < 0 ? "down" : "";
}

export function index(expert) {
  return expert.length === 1 ? String(expert[0]) : `(${expert.join(", ")})`;
}

export function plural(value, one, many = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : many}`;
}
