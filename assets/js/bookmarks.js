// Moves the bars of imports while they are read; without it, reloading does.

import { listen } from "./lib/live.js";

const imports = document.getElementById("imports");
const file = document.getElementById("file");

/** Show the page as it is now, but never take away the file that somebody has just chosen. */
function renew() {
  if (file.value) document.getElementById("links-outdated").hidden = false;
  else location.reload();
}

if (imports) {
  document.addEventListener("live:import", ({ detail }) => {
    const shown = document.getElementById(`import-${detail.id}`);
    const bar = shown?.querySelector("progress");
    if (!bar || !["waiting", "running"].includes(detail.state)) return renew();
    bar.value = detail.percent;
    bar.textContent = `${detail.percent} %`;
    shown.querySelector("[data-state]").textContent =
      detail.state === "running" ? `being read, ${detail.percent} %` : "waiting";
    shown.querySelector("[data-counts]").textContent =
      `${detail.seen.toLocaleString("en")} read, ${detail.added.toLocaleString("en")} added.`;
  });

  document.addEventListener("live:reset", renew);

  listen(imports.dataset.events, imports.dataset.after ?? "", ["import"]);
}
