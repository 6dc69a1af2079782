// Updates the progress of imports; without it, reloading the page does.

import { listen } from "./lib/live.js";

const imports = document.getElementById("imports");
const file = document.getElementById("file");

/** Reload the page, unless that would discard a file that the user has just chosen. */
function reload() {
  if (file.value) document.getElementById("links-outdated").hidden = false;
  else location.reload();
}

if (imports) {
  document.addEventListener("live:import", ({ detail }) => {
    const shown = document.getElementById(`import-${detail.id}`);
    const bar = shown?.querySelector("progress");
    if (!bar || !["waiting", "running"].includes(detail.state)) return reload();
    bar.value = detail.percent;
    bar.textContent = `${detail.percent} %`;
    shown.querySelector("[data-state]").textContent =
      detail.state === "running" ? `in progress, ${detail.percent} %` : "waiting";
    shown.querySelector("[data-counts]").textContent =
      `${detail.seen.toLocaleString("en")} processed, ${detail.added.toLocaleString("en")} added.`;
  });

  document.addEventListener("live:reset", reload);

  listen(imports.dataset.events, imports.dataset.after ?? "", ["import"]);
}
