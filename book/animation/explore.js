// Three numbers through a few diagonal layers: gradient descent with weight decay, drawn as SVG. No library, no network.
(function () {
  "use strict";
  const root = document.getElementById("explore");
  if (!root) return;
  const MODES = 3, KEPT = 240, COLOURS = ["#0173b2", "#de8f05", "#029e73"];
  const first = (mode, layer) => 0.5 * (1 + 0.6 * Math.cos(2.1 * layer + 1.3 * mode)); // as in tools/draw_explore.py

  function descend(decay, step, depth) {
    const w = [...Array(MODES)].map((_, mode) => [...Array(depth)].map((_, layer) => first(mode, layer)));
    const gap = () => Math.max(...w.flatMap((row) => row.slice(1).map((x, i) => Math.abs(x * x - row[i] * row[i]))));
    const steps = Math.ceil(4 / decay / step), start = gap(), rows = [];
    for (let k = 0; k <= steps; k++) {
      const products = w.map((row) => row.reduce((a, b) => a * b, 1));
      if (k % Math.max(1, Math.floor(steps / KEPT)) === 0 || k === steps) rows.push({ t: k * step, products, gap: gap() / start });
      if (!products.every((p) => Math.abs(p) < 1e3)) return { rows, diverged: true };
      w.forEach((row, mode) => {
        const slopes = row.map((_, i) => row.reduce((a, b, j) => (j === i ? a : a * b), 1) * (products[mode] - 1));
        row.forEach((x, i) => (row[i] = x - step * (slopes[i] + decay * x)));
      });
    }
    return { rows, diverged: false };
  }

  const short = (x) => String(Number(x.toPrecision(2)));
  const raised = (n) => [...String(n)].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] || "⁻").join("");
  const power = (x) => (x >= 0.01 ? short(x) : x < 1e-12 ? "below 10⁻¹²" : x.toExponential(0).replace(/e(.*)/, (_, n) => " · 10" + raised(n)));

  function draw(run, decay, narrow) {
    const wide = narrow ? 340 : 330, high = 230, left = 46, bottom = 38, top = 24;
    const end = run.rows[run.rows.length - 1].t || 1, low = -5;
    const x = (t, at) => at + left + ((wide - left - 8) * t) / end;
    const panel = (at, down, title, ylabel, toY, ticks, curves) => {
      const y = (v) => down + top + (high - top - bottom) * (1 - Math.min(1.02, Math.max(0, toY(v))));
      let out = `<text x="${at + left}" y="${down + 14}" font-weight="600">${title}</text>`;
      for (const [value, words] of ticks)
        out += `<line x1="${at + left}" x2="${at + wide - 8}" y1="${y(value)}" y2="${y(value)}" class="grid"/><text x="${at + left - 5}" y="${y(value) + 4}" text-anchor="end">${words}</text>`;
      for (const part of [0, 0.5, 1])
        out += `<text x="${x(end * part, at)}" y="${down + high - bottom + 16}" text-anchor="${part === 1 ? "end" : "middle"}">${short(end * part)}</text>`;
      out += `<text x="${at + (wide + left) / 2}" y="${down + high - 4}" text-anchor="middle">flow time</text>`;
      for (const [of, look] of curves)
        out += `<polyline fill="none" ${look} points="${run.rows.map((row) => `${x(row.t, at).toFixed(1)},${y(of(row)).toFixed(1)}`).join(" ")}"/>`;
      return out;
    };
    const solid = (colour) => `stroke="${colour}" stroke-width="2"`, dashed = 'stroke="currentColor" stroke-width="1.3" stroke-dasharray="5 4"';
    const fit = panel(0, 0, "fit: products", "", (v) => v / 1.4, [[0, "0"], [0.5, "0.5"], [1, "1"]],
      [[() => 1, dashed], ...COLOURS.map((colour, i) => [(row) => row.products[i], solid(colour)])]);
    const law = panel(narrow ? 0 : wide, narrow ? high : 0, "balance: imbalance", "", (v) => (Math.log10(Math.max(v, 1e-9)) - low) / (0.4 - low),
      [[1, "1"], [1e-2, "10⁻²"], [1e-4, "10⁻⁴"]],
      [[(row) => row.gap, solid("#cc78bc")], [(row) => Math.exp(-2 * decay * row.t), dashed]]);
    const w = narrow ? wide : 2 * wide, h = narrow ? 2 * high : high;
    return `<svg viewBox="0 0 ${w} ${h}" aria-hidden="true">${fit}${law}</svg>`;
  }

  const inputs = [...root.querySelectorAll("input")], words = root.querySelector(".explore-words");
  function update() {
    const [d, s, l] = inputs.map((input) => Number(input.value));
    const decay = 10 ** d, step = 10 ** s;
    const shown = [short(decay), short(step), String(l)];
    inputs.forEach((input, i) => {
      input.nextElementSibling.textContent = shown[i];
      input.setAttribute("aria-valuetext", shown[i]);
    });
    const run = descend(decay, step, l), last = run.rows[run.rows.length - 1];
    root.querySelector(".explore-picture").innerHTML = draw(run, decay, root.clientWidth < 560);
    const fitted = run.rows.find((row) => row.products.every((p) => Math.abs(p - last.products[0]) < 0.05));
    words.textContent = run.diverged
      ? "The products diverge: the step is too large."
      : last.products.every((p) => Math.abs(p) < 0.05)
        ? `The products die: weight decay ${shown[0]} makes zero the cheapest. The imbalance ends at ${power(last.gap)} of its first value.`
        : `At flow time ${short(last.t)} the products are ${last.products.map(short).join(", ")}; they came within 0.05 of that at ${short((fitted || last).t)}. ` +
          `The imbalance is ${power(last.gap)} of its first value; the law says ${power(Math.exp(-2 * decay * last.t))}.`;
    root.dataset.gap = last.gap;
    root.dataset.product = last.products[0];
  }
  root.querySelector(".explore-controls").hidden = false;
  root.classList.add("explore-ready");
  inputs.forEach((input) => input.addEventListener("input", update));
  addEventListener("resize", update);
  update();
})();
