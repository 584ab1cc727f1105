// Makes the tables inside `.sortable` sort by a click, or Enter, on a column's name.
"use strict";

(() => {
  const cell = (row, column) => row.cells[column].textContent.trim();

  // A number at the beginning of both texts decides; else the texts do. Cells without a value come last.
  function compare(a, b, down) {
    const empty = [a, b].map((text) => text === "" || text === "–");
    if (empty[0] || empty[1]) return empty[0] - empty[1];
    const numbers = [a, b].map((text) => parseFloat(text.replace("−", "-")));
    const order = numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1];
    return down ? -order : order;
  }

  function sort(table, column, button) {
    const down = button.parentElement.getAttribute("aria-sort") === "ascending";
    const body = table.tBodies[0];
    const rows = [...body.rows].sort((a, b) => compare(cell(a, column), cell(b, column), down));
    body.append(...rows);
    for (const heading of table.tHead.rows[0].cells) heading.removeAttribute("aria-sort");
    button.parentElement.setAttribute("aria-sort", down ? "descending" : "ascending");
  }

  function prepare(table) {
    for (const [column, heading] of [...table.tHead.rows[0].cells].entries()) {
      if (heading.textContent.trim() === "") continue;
      const button = document.createElement("button");
      button.type = "button";
      button.append(heading.textContent.trim());
      button.addEventListener("click", () => sort(table, column, button));
      heading.replaceChildren(button);
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll(".sortable table").forEach(prepare);
    // What is wider than the page scrolls by itself, and can be reached by the keyboard for that.
    for (const box of document.querySelectorAll(".sortable, .cell_output, article .table-wrapper")) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    }
  });
})();
