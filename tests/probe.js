// Writes what a reader would stumble over to the page that shows this one in a frame (tests/test_browser.py).
const probe = { errors: [] };
const asked = new URLSearchParams(location.search);
localStorage.setItem("mode", asked.get("theme") || "light");
localStorage.setItem("theme", asked.get("theme") || "light");
const complain = (event) => probe.errors.push(event.message || String(event.target.src || event.target.href));
addEventListener("error", complain, true);
for (const kind of ["error", "warn"]) {
  const say = console[kind];
  console[kind] = (...words) => {
    probe.errors.push(words.join(" "));
    say(...words);
  };
}
// A headless browser may draw no frames in a frame that nobody sees.
window.requestAnimationFrame = (draw) => setTimeout(() => draw(performance.now()), 16);
const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const scrolls = (node) => /auto|scroll/.test(getComputedStyle(node).overflowX);
const named = (node) => `${node.tagName.toLowerCase()}.${node.getAttribute("class") || ""} ${node.textContent.trim().slice(0, 40)}`;

// What sticks out of the window although nothing around it scrolls, and what is wider than a box that hides the rest.
function cut(article) {
  const found = [];
  for (const node of article.querySelectorAll("*")) {
    const box = node.getBoundingClientRect();
    if (!box.width || node.closest("mjx-assistive-mml, .visually-hidden, svg, .headerlink, button")) continue;
    let around = node.parentElement, inside = false;
    for (; around && around !== document.body && !inside; around = around.parentElement) inside = scrolls(around) || getComputedStyle(around).position === "absolute";
    if (!inside && box.right > innerWidth + 1) found.push(named(node));
    const hides = getComputedStyle(node).overflowX === "hidden" && !node.matches("details, summary, .sd-card, span.math, mjx-container *");
    if (hides && node.scrollWidth > node.clientWidth + 2) found.push(named(node));
  }
  return found.slice(0, 5);
}

addEventListener("load", async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  await wait(300); // fit.js
  const article = document.querySelector("article") || document.body;
  const within = [...article.querySelectorAll("a[href^='#']")].map((link) => link.getAttribute("href").slice(1));
  const fetched = performance.getEntriesByType("resource").map((entry) => entry.name);
  const pictures = [...article.querySelectorAll("img")].filter((image) => !image.closest("a.reference.external, .sd-badge"));
  probe.theme = document.documentElement.dataset.theme;
  probe.width = innerWidth;
  probe.overflow = document.documentElement.scrollWidth - innerWidth;
  probe.formulas = article.querySelectorAll(".math").length;
  probe.rendered = article.querySelectorAll(".math mjx-container").length;
  probe.broken = article.querySelectorAll("mjx-merror, [data-mjx-error]").length;
  probe.anchors = within.filter((id) => id && !document.getElementById(decodeURIComponent(id)));
  probe.images = pictures.filter((image) => !image.naturalWidth).map((image) => image.src);
  probe.wordless = pictures.filter((image) => !/\w+\s+\w+/.test(image.alt) || /\.(png|svg)$/.test(image.alt)).map((image) => image.src);
  probe.uncaptioned = pictures.filter((image) => !image.closest("figure") || !image.closest("figure").querySelector("figcaption")).map((image) => image.src);
  probe.requests = fetched.filter((name) => !/^(file|data|blob):/.test(name));
  probe.cut = cut(article);
  const proofs = [...article.querySelectorAll("details.sd-dropdown")];
  probe.folded = 0;
  for (const proof of proofs) {
    const before = proof.getBoundingClientRect().height;
    if (!proof.open) proof.querySelector("summary").click();
    if (!(proof.getBoundingClientRect().height > before + 10 || proof.open)) probe.folded++;
  }
  probe.proofs = proofs.length;
  const slider = document.querySelector("#collapse.collapse-ready input");
  probe.player = Boolean(slider);
  if (slider) {
    const button = document.querySelector("#collapse button");
    slider.value = 0;
    slider.dispatchEvent(new Event("input")); // it may have played to its end by now
    if (button.textContent.startsWith("Play")) button.click();
    for (let tries = 0; tries < 40 && !(Number(slider.value) > 0); tries++) await wait(200); // frames are few here
    probe.played = Number(slider.value) > 0;
  }
  const explore = document.getElementById("explore");
  if (explore) {
    const depth = explore.querySelector("[name=depth]"), before = explore.dataset.product;
    probe.explored = [Number(before), Number(explore.dataset.gap)];
    depth.value = 3;
    depth.dispatchEvent(new Event("input"));
    probe.explored.push(Number(explore.dataset.product), Number(explore.dataset.gap));
  }
  const links = [...article.querySelectorAll("p a.internal[href*='#thm-'], p a.internal[href*='#equation-']")];
  const link = links.find((a) => a.getClientRects().length);
  if (link) {
    link.focus();
    const box = document.getElementById("preview");
    for (let tries = 0; tries < 40 && box.hidden; tries++) await wait(100);
    await wait(300);
    const around = box.getBoundingClientRect(), fits = around.left >= 0 && around.right <= innerWidth;
    probe.preview = [box.textContent.trim(), box.querySelectorAll(".math").length, box.querySelectorAll("mjx-container").length, fits];
    link.blur();
    probe.preview.push(box.hidden);
  }
  const filters = document.querySelector(".ledger-filters");
  if (filters) {
    const rows = () => [...document.querySelectorAll("table.ledger tbody tr")].filter((row) => row.getClientRects().length).length;
    const all = rows();
    filters.querySelector("input").value = "F3";
    filters.querySelector("input").dispatchEvent(new Event("input"));
    probe.filtered = [all, rows()];
  }
  const map = document.querySelector("svg.statement-map");
  if (map) {
    const nodes = [...map.querySelectorAll(".map-node")];
    nodes.find((node) => node.dataset.id === "thm-4-4").focus();
    probe.dimmed = [nodes.length, map.querySelectorAll(".map-node.map-dim").length];
  }
  if (/search\.html$/.test(location.pathname)) {
    for (let tries = 0; tries < 40 && !document.querySelector("#search-results li a"); tries++) await wait(100);
    await wait(500);
    probe.results = [...document.querySelectorAll("#search-results li a")].slice(0, 5).map((link) => link.getAttribute("href"));
  }
  parent.postMessage(JSON.stringify(probe), "*");
});
