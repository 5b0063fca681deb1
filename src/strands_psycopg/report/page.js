"use strict";
// Browsers take seconds to lay out thousands of rows, so they are shown in steps.
const shownAtOnce = 500;

for (const table of document.querySelectorAll("table")) {
  const section = table.closest("section");
  const rows = [...table.tBodies[0].rows];
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));

  const search = section.querySelector("input");
  const more = section.querySelector(".more");
  const noMatch = section.querySelector(".no-match");
  // Empty if the table has all rows that there are.
  const listed = section.dataset.listed ?? "";
  if (listed) noMatch.textContent = `No matching rows among ${listed}; the others are not on this page.`;
  let limit = shownAtOnce;
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const row of rows) {
      const matches = words.every((word) => texts.get(row).includes(word));
      found += matches;
      row.hidden = !matches || found > limit;
    }
    more.hidden = found <= limit;
    noMatch.hidden = found > 0;
    section.querySelector("output").value = `${found.toLocaleString("en")} of ${rows.length.toLocaleString("en")}${listed && " listed"}`;
  };
  search.addEventListener("input", () => { limit = shownAtOnce; filter(); });
  more.addEventListener("click", () => { limit += shownAtOnce; filter(); });
  search.parentElement.hidden = false;
  filter();

  const key = (row, column) => {
    const { dataset, textContent } = row.cells[column];
    return "value" in dataset ? Number(dataset.value) : textContent.toLowerCase();
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      // Sort numbers in descending order first, and names in ascending order.
      const first = head.classList.contains("number") ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      for (const each of head.parentElement.cells) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const keys = new Map(rows.map((row) => [row, key(row, column)]));
      rows.sort((a, b) => sign * (keys.get(a) < keys.get(b) ? -1 : keys.get(a) > keys.get(b) ? 1 : 0));
      table.tBodies[0].append(...rows);
      filter();
    });
  });
}

const tooltip = document.querySelector(".tooltip");
const showTooltip = (event) => {
  const mark = event.target.closest?.(".plot svg [aria-label]");
  tooltip.hidden = !mark;
  if (!mark) return;
  tooltip.textContent = mark.getAttribute("aria-label");
  const { width, height } = tooltip.getBoundingClientRect();
  const left = Math.min(Math.max(event.clientX - width / 2, 8), document.documentElement.clientWidth - width - 8);
  const above = event.clientY - height - 14;
  tooltip.style.transform = `translate(${left}px, ${above < 8 ? event.clientY + 20 : above}px)`;
};
document.addEventListener("pointermove", showTooltip);
document.addEventListener("pointerdown", showTooltip);
document.addEventListener("scroll", () => { tooltip.hidden = true; }, { capture: true, passive: true });
