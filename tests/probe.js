// Writes what a reader would stumble over into the page's own element, for tests/test_browser.py to read.
const probe = { errors: [] };
const complain = (event) => probe.errors.push(event.message || String(event.target.src || event.target.href));
addEventListener("error", complain, true);
for (const kind of ["error", "warn"]) {
  const say = console[kind];
  console[kind] = (...words) => {
    probe.errors.push(words.join(" "));
    say(...words);
  };
}
addEventListener("load", async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  const article = document.querySelector("article");
  const within = [...article.querySelectorAll("a[href^='#']")].map((link) => link.getAttribute("href").slice(1));
  const fetched = performance.getEntriesByType("resource").map((entry) => entry.name);
  probe.overflow = document.documentElement.scrollWidth - innerWidth;
  probe.formulas = article.querySelectorAll(".math").length;
  probe.rendered = article.querySelectorAll(".math mjx-container").length;
  probe.broken = article.querySelectorAll("mjx-merror, [data-mjx-error]").length;
  probe.anchors = within.filter((id) => id && !document.getElementById(decodeURIComponent(id)));
  probe.images = [...document.images].filter((image) => !image.naturalWidth).map((image) => image.src);
  probe.requests = fetched.filter((name) => !/^(file|data|blob):/.test(name));
  probe.player = Boolean(document.querySelector("#collapse.collapse-ready canvas"));
  document.documentElement.dataset.probe = JSON.stringify(probe);
});
