// Filters of the ledger's table: words, verdict, source, chapter. Without scripts the table is whole and there are none.
(function () {
  "use strict";
  const table = document.querySelector("table.ledger");
  if (!table) return;
  const rows = [...table.tBodies[0].rows];
  const text = (row, head) => row.querySelector(`[data-head="${head}"]`).textContent.trim();
  const bar = document.createElement("form");
  bar.className = "ledger-filters";
  bar.setAttribute("role", "search");
  bar.addEventListener("submit", (event) => event.preventDefault());
  const parts = [];
  const labelled = (words, control) => {
    const label = document.createElement("label");
    label.append(words + " ", control);
    control.addEventListener("input", filter);
    bar.append(label);
    return control;
  };
  const words = labelled("Words", document.createElement("input"));
  words.type = "search";
  words.placeholder = "NC2, imbalance, F4 …";
  const choice = (name, of) => {
    const select = document.createElement("select");
    select.append(new Option("all", ""));
    [...new Set(rows.map(of))].filter(Boolean).sort().forEach((value) => select.append(new Option(value, value)));
    parts.push([labelled(name, select), of]);
  };
  choice("verdict", (row) => text(row, "verdict").replace(/^\S+ /, ""));
  choice("source", (row) => text(row, "source"));
  choice("chapter", (row) => row.dataset.page.slice(0, 2).replace(/^0/, ""));
  const count = document.createElement("output");
  count.setAttribute("aria-live", "polite");
  bar.append(count);
  function filter() {
    const asked = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const all = row.textContent.toLowerCase();
      const fits = asked.every((word) => all.includes(word)) && parts.every(([select, of]) => !select.value || of(row) === select.value);
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${rows.length}`;
  }
  table.before(bar);
  filter();
})();
