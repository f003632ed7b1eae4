// Statements and equations shown where a link to them is pointed at or focused. Their text comes from tools/previews.py.
(function () {
  "use strict";
  const base = new URL(document.documentElement.dataset.content_root || "./", location.href);
  const data = new URL("_static/previews-data.js", base);
  const box = document.createElement("div");
  box.className = "preview";
  box.id = "preview";
  box.setAttribute("role", "tooltip");
  box.hidden = true;
  let shown = null, timer = 0, loading = null;

  function load() {
    loading = loading || new Promise((resolve) => {
      const script = document.createElement("script");
      script.src = data.href;
      script.onload = () => resolve(window.PREVIEWS || {});
      script.onerror = () => resolve({});
      document.head.append(script);
    });
    return loading;
  }

  // book/02_sufficient_conditions.html#thm-3-1, or null for links that lead elsewhere
  function key(link) {
    const target = new URL(link.href, location.href);
    if (!target.hash || !target.href.startsWith(base.href)) return null;
    return decodeURIComponent(target.pathname.slice(base.pathname.length) + target.hash);
  }

  function place(link) {
    const at = link.getClientRects()[0] || link.getBoundingClientRect();
    box.style.maxWidth = Math.min(680, innerWidth - 24) + "px";
    box.style.left = Math.max(12, Math.min(at.left, innerWidth - box.offsetWidth - 12)) + "px";
    const below = at.bottom + 8, above = at.top - 8 - box.offsetHeight;
    box.style.top = (below + box.offsetHeight > innerHeight && above > 0 ? above : below) + "px";
  }

  async function show(link) {
    const wanted = key(link);
    if (!wanted) return;
    const text = (await load())[wanted];
    if (!text || shown !== link) return;
    box.innerHTML = text;
    box.hidden = false;
    link.setAttribute("aria-describedby", box.id);
    place(link);
    if (window.MathJax && MathJax.typesetPromise) {
      await MathJax.typesetPromise([box]).catch(() => {});
      if (shown === link) place(link);
    }
  }

  function hide() {
    clearTimeout(timer);
    if (shown) shown.removeAttribute("aria-describedby");
    shown = null;
    if (window.MathJax && MathJax.typesetClear) MathJax.typesetClear([box]);
    box.hidden = true;
    box.textContent = "";
  }

  function point(event) {
    const link = event.target.closest && event.target.closest("article a.internal[href*='#'], .bd-article a[href*='#']");
    if (!link || link.classList.contains("headerlink")) return;
    // not where a finger taps a link to follow it
    if (event.type === "focusin" ? !link.matches(":focus-visible") : !matchMedia("(hover: hover)").matches) return;
    if (shown === link) return;
    hide();
    shown = link;
    timer = setTimeout(() => show(link), event.type === "focusin" ? 0 : 250);
  }

  document.addEventListener("DOMContentLoaded", () => document.body.append(box));
  document.addEventListener("mouseover", point);
  document.addEventListener("focusin", point);
  document.addEventListener("mouseout", (event) => { if (shown && !shown.contains(event.relatedTarget)) hide(); });
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  // A link that is given the focus is scrolled into view, and its preview goes with it.
  document.addEventListener("scroll", () => { if (shown && !box.hidden) place(shown); }, { passive: true });
})();
