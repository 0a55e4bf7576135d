// Files that the browser saves: tables as CSV, cards as PNG.

export function download(name, content, type) {
  const address = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  const link = document.createElement("a");
  link.href = address;
  link.download = name.replace(/[^\w.=-]+/g, "-");
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

function cell(value) {
  const text = value == null ? "" : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// A table as CSV, numbers with all digits.
export function csv(heads, rows) {
  return [heads, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

export function saveCsv(name, heads, rows) {
  download(`${name}.csv`, csv(heads, rows), "text/csv;charset=utf-8");
}
