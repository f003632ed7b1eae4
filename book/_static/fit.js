// On screen a formula a little too wide shrinks, one much too wide scrolls and its edge says so. On paper nothing is
// folded and nothing is cut: before printing, proofs and solutions open and wide formulas shrink.
(function () {
  "use strict";
  const LEAST = 0.78; // of the letters' size, on screen

  // How wide a formula is by itself; a numbered one is always as wide as its column, or wider.
  function natural(formula) {
    if (formula.getAttribute("width") === "full") return formula.scrollWidth > formula.clientWidth + 1 ? formula.scrollWidth : 0;
    return formula.querySelector(":scope > mjx-math").getBoundingClientRect().width;
  }

  function fit() {
    for (const box of document.querySelectorAll(".bd-article div.math")) {
      const formula = box.querySelector("mjx-container");
      if (!formula) continue;
      formula.style.fontSize = "";
      const room = box.clientWidth;
      let wide = natural(formula);
      if (room && wide > room && room / wide >= LEAST) {
        formula.style.fontSize = `${Math.floor((98 * room) / wide)}%`;
        wide = 0;
      }
      box.classList.toggle("wide", wide > room + 1);
    }
    for (const formula of document.querySelectorAll(".bd-article mjx-container:not([display])")) {
      const room = formula.closest("p, li, td, dd, div").clientWidth;
      formula.classList.toggle("wide", room > 0 && formula.querySelector(":scope > mjx-math").getBoundingClientRect().width > room);
    }
    for (const box of document.querySelectorAll(".bd-article .highlight pre, .bd-article div.cell div.output"))
      box.classList.toggle("wide", box.scrollWidth > box.clientWidth + 1);
  }
  addEventListener("load", async () => {
    if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
    fit();
    addEventListener("resize", fit);
    document.querySelectorAll("details").forEach((part) => part.addEventListener("toggle", fit));
  });

  const WIDTH = 655; // pixels of a printed column, on the narrower of A4 and letter
  let opened = [], shrunk = [], unfolded = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details.sd-dropdown:not([open])")];
    opened.forEach((part) => (part.open = true));
    unfolded = [...document.querySelectorAll(".toggle-hidden")];
    unfolded.forEach((part) => part.classList.remove("toggle-hidden"));
    for (const formula of document.querySelectorAll("mjx-container[display='true']")) {
      const wide = natural(formula);
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
