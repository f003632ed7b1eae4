// Shows, of the map of statements, only what a box rests on and what rests on it while it is pointed at or focused.
(function () {
  "use strict";
  const map = document.querySelector("svg.statement-map");
  if (!map) return;
  const edges = [...map.querySelectorAll(".map-edge")], nodes = [...map.querySelectorAll(".map-node")];
  function reach(start, from, to) {
    const found = new Set([start]);
    for (let grown = true; grown; ) {
      grown = false;
      for (const edge of edges)
        if (found.has(edge.dataset[from]) && !found.has(edge.dataset[to])) { found.add(edge.dataset[to]); grown = true; }
    }
    return found;
  }
  function show(id) {
    const below = reach(id, "to", "from"), above = reach(id, "from", "to");
    const kept = new Set([...below, ...above]);
    nodes.forEach((node) => node.classList.toggle("map-dim", !kept.has(node.dataset.id)));
    edges.forEach((edge) => {
      const lit = [below, above].some((set) => set.has(edge.dataset.from) && set.has(edge.dataset.to));
      edge.classList.toggle("map-dim", !lit);
      edge.classList.toggle("map-lit", lit);
    });
  }
  function all() {
    [...nodes, ...edges].forEach((part) => part.classList.remove("map-dim", "map-lit"));
  }
  for (const node of nodes) {
    for (const event of ["focus", "mouseenter"]) node.addEventListener(event, () => show(node.dataset.id));
    for (const event of ["blur", "mouseleave"]) node.addEventListener(event, all);
  }
})();
