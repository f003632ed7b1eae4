// On paper nothing is folded and nothing is cut: before printing, proofs and solutions open and wide formulas shrink.
(function () {
  "use strict";
  const WIDTH = 655; // pixels of a printed column, on the narrower of A4 and letter
  let opened = [], shrunk = [], unfolded = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details.sd-dropdown:not([open])")];
    opened.forEach((part) => (part.open = true));
    unfolded = [...document.querySelectorAll(".toggle-hidden")];
    unfolded.forEach((part) => part.classList.remove("toggle-hidden"));
    for (const formula of document.querySelectorAll("mjx-container[display='true']")) {
      const inner = formula.querySelector(":scope > mjx-math"), full = formula.getAttribute("width") === "full";
      const cut = formula.scrollWidth > formula.clientWidth + 1; // a numbered formula is always as wide as its column
      const wide = full ? (cut ? formula.scrollWidth : 0) : inner.getBoundingClientRect().width;
      const inside = formula.closest(".admonition, .sd-card") ? WIDTH - 60 : WIDTH;
      if (wide > inside) {
        shrunk.push([formula, formula.style.fontSize]);
        formula.style.fontSize = `${Math.max(35, Math.floor((100 * inside) / wide))}%`;
      }
    }
  });
  addEventListener("afterprint", () => {
    opened.forEach((part) => (part.open = false));
    unfolded.forEach((part) => part.classList.add("toggle-hidden"));
    shrunk.forEach(([formula, size]) => (formula.style.fontSize = size));
    shrunk = [];
  });
})();
