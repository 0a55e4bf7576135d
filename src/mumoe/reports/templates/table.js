// Tables that sort by a click (or Enter) on a heading and show only rows that fit the filters. Plain, no library.
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
    // Rows without a value stay at the end whichever way the table is sorted; equals keep their order.
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
      });
    });
  }
  for (const form of document.querySelectorAll("form[data-table]")) {
    const table = document.getElementById(form.dataset.table);
    const search = form.querySelector("input[type=search]");
    const boxes = [...form.querySelectorAll("input[data-only]")];
    const status = form.querySelector("[role=status]");
    const noun = status.textContent.trim().split(" ").pop();
    const show = () => {
      const words = search.value.toLowerCase().trim();
      const exact = /^\d+$/.test(words);
      const only = boxes.filter((box) => box.checked).map((box) => box.dataset.only);
      let shown = 0;
      for (const row of table.tBodies[0].rows) {
        const found = exact ? row.cells[0].dataset.value === words : row.dataset.find.includes(words);
        row.hidden = !(found && only.every((name) => name in row.dataset));
        shown += !row.hidden;
      }
      const all = table.tBodies[0].rows.length;
      status.textContent = shown === all ? `${all} ${noun}` : `${shown} of ${all} ${noun}`;
    };
    form.addEventListener("input", show);
    show(); // a browser may have kept what was typed before
  }
})();
