"use strict";
// What every page does: tables that are sorted and filtered, columns that are chosen, marks that tell their values.
// Texts are set as text only: what a page shows may come from anywhere.
(() => {
  document.documentElement.classList.add("scripted");

  function sortable(table) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, at) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const numeric = heading.classList.contains("number");
        const first = numeric ? "descending" : "ascending";
        const other = numeric ? "ascending" : "descending";
        const way = heading.getAttribute("aria-sort") === first ? other : first;
        headings.forEach((each) => each.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", way);
        sort(table, at, numeric, way === "descending" ? -1 : 1);
      });
    });
  }

  function sort(table, at, numeric, sign) {
    const body = table.tBodies[0];
    const order = (row) => row.cells[at].dataset.order ?? row.cells[at].textContent;
    const key = (row) => (numeric ? (order(row) === "" ? NaN : Number(order(row))) : order(row).toLowerCase());
    const keyed = [...body.rows].map((row) => [key(row), row]);
    const missing = (value) => Number.isNaN(value);
    keyed.sort(([a], [b]) => {
      if (missing(a) || missing(b)) return missing(a) - missing(b);
      return sign * (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true }));
    });
    body.append(...keyed.map(([, row]) => row));
  }

  function filterable(box) {
    const input = box.querySelector(".filter");
    const count = box.querySelector(".count");
    const rows = [...box.querySelectorAll("tbody tr")];
    const filter = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const faded = {};
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        if (row.dataset.row) faded[row.dataset.row] = row.hidden;
      }
      for (const each of document.querySelectorAll("svg [data-row]")) {
        if (each.dataset.row in faded) each.classList.toggle("faded", faded[each.dataset.row]);
      }
      const shown = rows.filter((row) => !row.hidden).length;
      count.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
    };
    input.addEventListener("input", filter);
    for (const choice of box.querySelectorAll("[data-shows]")) {
      choice.addEventListener("change", () => {
        for (const each of document.querySelectorAll(`[data-column="${CSS.escape(choice.dataset.shows)}"]`)) {
          each.toggleAttribute("hidden", !choice.checked);
        }
      });
    }
  }

  const tip = document.getElementById("tip");
  let current = null;

  function show(mark, x, y) {
    if (current) current.classList.remove("current");
    current = mark;
    if (!mark) {
      tip.hidden = true;
      return;
    }
    tip.textContent = mark.dataset.tip;
    tip.hidden = false;
    const size = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - size.width - 4))}px`;
    tip.style.top = `${y + 16 + size.height > innerHeight ? Math.max(4, y - size.height - 12) : y + 16}px`;
  }

  function chart(svg) {
    const marks = [...svg.querySelectorAll(".mark")];
    for (const mark of marks) {
      const title = mark.querySelector("title");
      mark.dataset.tip = title.textContent;
      title.remove();
    }
    svg.addEventListener("pointermove", (event) => {
      const mark = event.target.closest(".mark");
      if (mark || !current?.classList.contains("current")) show(mark, event.clientX, event.clientY);
    });
    svg.addEventListener("pointerleave", () => show(null));
    svg.addEventListener("blur", () => show(null));
    svg.addEventListener("keydown", (event) => {
      const at = marks.indexOf(current);
      const next = event.key === "Escape" ? null : neighbour(marks, at, event.key);
      if (next === undefined) return;
      event.preventDefault();
      if (next) next.scrollIntoView({ block: "nearest", inline: "nearest" });
      const place = next?.getBoundingClientRect();
      show(next, place?.right, place?.bottom);
      next?.classList.add("current");
    });
  }

  // The mark to which a key leads: beside the current one, or above or below it where marks lie in rows and columns.
  function neighbour(marks, at, key) {
    const last = marks.length - 1;
    if (key === "Home") return marks[0];
    if (key === "End") return marks[last];
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[key];
    if (!step) return undefined;
    if (at < 0) return marks[step > 0 ? 0 : last];
    const column = marks[at].dataset.c;
    const beside = marks[Math.min(Math.max(at + step, 0), last)];
    if (column === undefined || key === "ArrowLeft" || key === "ArrowRight") return beside;
    for (let other = at + step; other >= 0 && other <= last; other += step) {
      if (marks[other].dataset.c === column && marks[other].dataset.r !== marks[at].dataset.r) return marks[other];
    }
    return marks[at];
  }

  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll(".table:has(.filter)").forEach(filterable);
  document.querySelectorAll("svg.chart").forEach(chart);
})();
