// Plays the animation of the first page: the frames of collapse-data.js, drawn on one canvas. No library, no network.
(function () {
  "use strict";
  const COLOURS = ["#0173b2", "#de8f05", "#029e73"]; // seaborn's colour-blind palette
  const LINES = ["#949494", "#cc78bc", "#ca9161", "#d55e00"]; // one a layer, apart from the classes' colours
  const SECONDS = 16;
  const REACH = 2.6; // as in tools/draw_collapse.py

  function bytes(text) {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  }

  function mark(context, kind, x, y, r) { // circle, square, triangle: shape says the class too
    context.beginPath();
    if (kind === 0) context.arc(x, y, r, 0, 2 * Math.PI);
    else if (kind === 1) context.rect(x - r, y - r, 2 * r, 2 * r);
    else { context.moveTo(x, y - 1.3 * r); context.lineTo(x + 1.2 * r, y + r); context.lineTo(x - 1.2 * r, y + r); context.closePath(); }
    context.fill();
  }

  function number(value) {
    return String(Number(value.toPrecision(2)));
  }

  function start(root) {
    const data = window.COLLAPSE, frames = data.frames, count = frames.step.length;
    const layers = data.layers.length, points = data.digits.length * data.each;
    const levels = bytes(data.positions);
    const canvas = root.querySelector("canvas"), context = canvas.getContext("2d");
    const slider = root.querySelector("input"), button = root.querySelector("button");
    const status = root.querySelector(".collapse-status");
    slider.max = count - 1;
    let at = 0, playing = false, last = 0;

    const position = (frame, layer, point, axis) =>
      (levels[((frame * layers + layer) * points + point) * 2 + axis] / 127.5 - 1) * REACH;

    function clouds(left, top, side, layer, ink) {
      const frame = Math.floor(at), share = at - frame, next = Math.min(frame + 1, count - 1);
      context.save();
      context.beginPath(); context.rect(left, top, side, side); context.clip();
      const toX = (v) => left + side * (v / REACH + 1) / 2, toY = (v) => top + side * (1 - v / REACH) / 2;
      context.setLineDash([4, 4]); context.strokeStyle = ink; context.globalAlpha = 0.35; context.beginPath();
      const half = Math.sqrt(3) / 2; // the equilateral triangle of the same size
      [[-half, -0.5], [half, -0.5], [0, 1]].forEach(([x, y], i) => context[i ? "lineTo" : "moveTo"](toX(x), toY(y)));
      context.closePath(); context.stroke(); context.setLineDash([]);
      context.globalAlpha = 0.65;
      for (let point = 0; point < points; point++) {
        const kind = Math.floor(point / data.each);
        context.fillStyle = COLOURS[kind];
        const mix = (axis) => (1 - share) * position(frame, layer, point, axis) + share * position(next, layer, point, axis);
        mark(context, kind, toX(mix(0)), toY(mix(1)), Math.max(2, side / 75));
      }
      context.restore();
      context.globalAlpha = 0.3; context.strokeStyle = ink; context.strokeRect(left, top, side, side);
      context.globalAlpha = 1;
    }

    function curves(left, top, width, height, name, values, floor, ceiling, ink, font) {
      const x = (i) => left + width * i / (count - 1);
      const y = (v) => top + height * (1 - (Math.log10(Math.max(v, floor)) - Math.log10(floor)) / (Math.log10(ceiling) - Math.log10(floor)));
      context.strokeStyle = ink; context.globalAlpha = 0.3; context.strokeRect(left, top, width, height);
      context.globalAlpha = 1; context.fillStyle = ink; context.textAlign = "left"; context.fillText(name, left, top - font * 0.45);
      context.textAlign = "right";
      for (const tick of [floor, ceiling]) context.fillText(number(tick), left - 4, y(tick) + font * 0.35);
      values.forEach((series, k) => {
        context.strokeStyle = LINES[k]; context.lineWidth = 2; context.beginPath();
        series.forEach((v, i) => context[i ? "lineTo" : "moveTo"](x(i), y(v)));
        context.stroke();
        const now = series[Math.round(at)];
        context.fillStyle = LINES[k]; context.beginPath(); context.arc(x(at), y(now), 4, 0, 7); context.fill();
      });
      context.lineWidth = 1; context.strokeStyle = ink; context.globalAlpha = 0.6; context.beginPath();
      context.moveTo(x(at), top); context.lineTo(x(at), top + height); context.stroke(); context.globalAlpha = 1;
    }

    function draw() {
      const width = root.clientWidth, narrow = width < 560, ratio = window.devicePixelRatio || 1;
      const ink = getComputedStyle(root).color, font = narrow ? 12 : 13;
      const columns = narrow ? 2 : 4, gap = 10, side = (width - gap * (columns - 1)) / columns;
      const block = side + font * 3.4, rows = layers / columns;
      const plot = narrow ? 90 : 100, plots = narrow ? 2 : 2;
      const below = rows * block + font;
      const height = below + (narrow ? plots * (plot + font * 2.2) : plot + font * 2.2);
      if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
        canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
        canvas.style.height = height + "px";
      }
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, width, height);
      context.font = font + "px system-ui, sans-serif";
      const frame = Math.round(at);
      for (let layer = 0; layer < layers; layer++) {
        const left = (layer % columns) * (side + gap), top = Math.floor(layer / columns) * block + font * 1.5;
        clouds(left, top, side, layer, ink);
        context.textAlign = "left"; context.fillStyle = LINES[layer];
        context.fillRect(left, top - font * 1.05, font * 0.8, font * 0.8);
        context.fillStyle = ink;
        context.fillText(data.layers[layer], left + font * 1.2, top - font * 0.4, side - font * 1.2);
        context.fillText("NC1 " + number(frames.nc1[frame][layer]) + "   NC2 " + number(frames.nc2[frame][layer]), left, top + side + font * 1.2, side);
      }
      const column = (key) => data.layers.map((_, k) => frames[key].map((row) => row[k]));
      const margin = 48, half = narrow ? width - margin - 8 : (width - 2 * margin - 8) / 2;
      curves(margin, below + font * 1.2, half, plot, "NC1 of the four layers: to 0", column("nc1"), 1e-3, 10, ink, font);
      const left2 = narrow ? margin : 2 * margin + half, top2 = narrow ? below + plot + font * 3.4 : below + font * 1.2;
      curves(left2, top2, half, plot, "NC2 of the four layers: to 1", column("nc2"), 1, 200, ink, font);
      status.textContent = "step " + frames.step[frame].toLocaleString("en") +
        (frames.step[frame] >= data.drop ? " (small steps)" : "") +
        ", accuracy " + (100 * frames.accuracy[frame]).toFixed(1) + " %, NC3 " + frames.nc3[frame].toFixed(3);
      slider.setAttribute("aria-valuetext", status.textContent);
    }

    function tick() {
      if (!playing) return;
      const now = performance.now(); // the time a frame is given may lie before the click that asked for it
      at += Math.min(now - last, 100) / 1000 * (count - 1) / SECONDS;
      last = now;
      if (at >= count - 1) { at = count - 1; play(false); }
      slider.value = Math.round(at);
      draw();
      if (playing) requestAnimationFrame(tick);
    }

    function play(on) {
      playing = on;
      button.textContent = on ? "Pause" : at >= count - 1 ? "Play again" : "Play";
      if (on) {
        if (at >= count - 1) at = 0;
        last = performance.now();
        requestAnimationFrame(tick);
      }
    }

    button.addEventListener("click", () => play(!playing));
    slider.addEventListener("input", () => { play(false); at = Number(slider.value); draw(); });
    new ResizeObserver(draw).observe(root);
    new MutationObserver(draw).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    root.classList.add("collapse-ready");
    at = count - 1; // a still of the end, until somebody plays
    slider.value = at;
    draw();
    button.textContent = "Play";
    if (!window.matchMedia("(prefers-reduced-motion: reduce)").matches) {
      at = 0;
      new IntersectionObserver((seen, observer) => {
        if (seen[0].isIntersecting) { observer.disconnect(); play(true); }
      }, { threshold: 0.4 }).observe(root);
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    const root = document.getElementById("collapse");
    if (root && window.COLLAPSE) start(root);
  });
})();
