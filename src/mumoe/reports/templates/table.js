// Tables that sort by a click (or Enter) on a heading and show only rows that fit the filters. No library.
"use strict";
(() => {
  const value = (row, column) => {
    const text = row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    return text === "" || Number.isNaN(Number(text)) ? text : Number(text);
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return 0;
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  };
  const sort = (table, column, descending) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row, place) => ({ row, place, key: value(row, column) }));
    // Rows without a value stay at the end in either sort order; equal rows keep their order.
    rows.sort((a, b) =>
      (a.key === "") - (b.key === "") || (descending ? -1 : 1) * compare(a.key, b.key) || a.place - b.place);
    body.append(...rows.map((entry) => entry.row));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button")?.addEventListener("click", () => {
        const numeric = [...table.tBodies[0].rows].some((row) => typeof value(row, column) === "number");
        const was = head.getAttribute("aria-sort");
        const descending = was ? was === "ascending" : numeric && column > 0;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sort(table, column, descending);
        table.dispatchEvent(new Event("sorted"));
      });
    });
  }
  for (const form of document.querySelectorAll("form[data-table]")) {
    const table = document.getElementById(form.dataset.table);
    const more = document.getElementById("more");
    const step = more ? Number(more.dataset.step) : Infinity;
    const search = form.querySelector("input[type=search]");
    const boxes = [...form.querySelectorAll("input[data-only]")];
    const status = form.querySelector("[role=status]");
    const noun = status.textContent.trim().split(" ").pop();
    let most = step; // a long table is shown in parts: only this many rows at a time
    const show = () => {
      const words = search.value.toLowerCase().trim();
      const exact = /^\d+$/.test(words);
      const only = boxes.filter((box) => box.checked).map((box) => box.dataset.only);
      let fitting = 0;
      for (const row of table.tBodies[0].rows) {
        const found = exact ? row.cells[0].dataset.value === words : row.dataset.find.includes(words);
        const fits = found && only.every((name) => name in row.dataset);
        fitting += fits;
        const hidden = !fits || fitting > most;
        if (row.hidden !== hidden) row.hidden = hidden;
      }
      const all = table.tBodies[0].rows.length;
      const shown = Math.min(fitting, most);
      status.textContent = (fitting === all ? `${all} ${noun}` : `${fitting} of ${all} ${noun}`) +
        (shown < fitting ? `, the first ${shown} shown` : "");
      if (more) more.hidden = shown === fitting;
    };
    form.addEventListener("input", () => { most = step; show(); });
    table.addEventListener("sorted", () => { most = step; show(); });
    more?.addEventListener("click", () => { most += step; show(); });
    show(); // a browser may have kept an earlier input
  }
})();
