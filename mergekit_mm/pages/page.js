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
    lead(table);
  }

  // Brings charts, and tables of values, whose rows are also rows of a table, into its order, without those it hides.
  function lead(table) {
    const rows = [...table.tBodies[0].rows].filter((row) => row.dataset.row);
    if (!rows.length) return;
    const told = [];
    const sorted = table.querySelector("[aria-sort]");
    if (sorted) told.push(`by ${sorted.textContent.trim()}, ${sorted.getAttribute("aria-sort")}`);
    if (rows.some((row) => row.hidden)) told.push(`${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`);
    const keyed = [...document.querySelectorAll("figure [data-row]")];
    for (const holder of new Set(keyed.map((each) => each.parentElement))) {
      const held = new Map([...holder.children].map((each) => [each.dataset.row, each]));
      const moved = rows.filter((row) => held.has(row.dataset.row));
      if (!moved.length) continue;
      for (const row of moved) {
        const following = held.get(row.dataset.row);
        following.toggleAttribute("hidden", row.hidden);
        holder.append(following);
      }
      if (holder.tagName === "g") arrange(holder);
      tellOrder(holder.closest("figure"), told.length ? `As in the table: ${told.join("; ")}.` : "");
    }
    show(null);
  }

  // Places the rows of a drawing that are shown one below the other, and ends the drawing beneath them.
  function arrange(holder) {
    const svg = holder.ownerSVGElement;
    const [top, pitch] = [Number(holder.dataset.top), Number(holder.dataset.pitch)];
    const shown = [...holder.children].filter((row) => !row.hasAttribute("hidden"));
    shown.forEach((row, at) => row.setAttribute("transform", `translate(0 ${top + pitch * (at + 0.5)})`));
    const bottom = top + pitch * shown.length;
    svg.querySelectorAll(".upright line").forEach((line) => line.setAttribute("y2", bottom));
    svg.querySelector(".foot").setAttribute("transform", `translate(0 ${bottom})`);
    svg.dataset.height ??= svg.getAttribute("height");
    const height = Number(svg.dataset.height) - pitch * (holder.children.length - shown.length);
    svg.setAttribute("height", height);
    svg.setAttribute("viewBox", `0 0 ${svg.getAttribute("width")} ${height}`);
  }

  // Tells beneath a caption, and to those who come to the drawings by keyboard, which rows there are in which order.
  function tellOrder(figure, text) {
    let note = figure.querySelector(".order");
    if (!note) {
      note = document.createElement("p");
      note.className = "note order";
      note.id = `${figure.id}-order`;
      figure.querySelector("figcaption").after(note);
      figure.querySelectorAll("svg.chart").forEach((svg) => svg.setAttribute("aria-describedby", note.id));
    }
    note.textContent = text;
    note.hidden = !text;
  }

  function filterable(box) {
    const input = box.querySelector(".filter");
    const count = box.querySelector(".count");
    const rows = [...box.querySelectorAll("tbody tr")];
    const filter = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
      lead(box.querySelector("table"));
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
    for (const mark of svg.querySelectorAll(".mark")) {
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
      const marks = [...svg.querySelectorAll(":not([hidden]) > .mark")];
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
