// Live updates of the operations page; without this script, reload the page.

import { listen } from "./lib/live.js";

const content = document.getElementById("operations");
let isRequested = false;

/** Replace the charts by those of a new page, and keep open tables open. */
async function update() {
  if (isRequested || document.hidden) return;
  isRequested = true;
  try {
    const response = await fetch(location.href, { redirect: "error" });
    if (!response.ok) return;
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const next = page.getElementById("operations");
    for (const each of content.querySelectorAll("details[open]")) {
      next.querySelector(`#${each.id}`)?.setAttribute("open", "");
    }
    const focused = content.contains(document.activeElement)
      ? document.activeElement.closest("details[id]")?.id
      : null;
    content.replaceChildren(...next.childNodes);
    if (focused) content.querySelector(`#${focused} summary`)?.focus({ preventScroll: true });
  } catch {
    // The network is down, or the session has expired. The next event tries again.
  } finally {
    isRequested = false;
  }
}

document.addEventListener("live:operations", update);
document.addEventListener("live:reset", update);
listen(content.dataset.events, content.dataset.after, ["operations"]);
