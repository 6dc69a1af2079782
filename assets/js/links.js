// Keeps the links of an open page as they are in the database; without it, reloading does.

import { listen } from "./lib/live.js";

const AT_ONCE = 4; // questions to the server: an import changes thousands of links
const MOST_ROWS = 100; // from then on, who wants to see more loads the page again

const list = document.getElementById("links");
const status = document.getElementById("links-status");

const due = new Set(); // ids of links that have changed
const asked = new Set(); // of those, the ones that the server is asked for
let updated = 0;

const rowOf = (id) => document.getElementById(`link-${id}`);

/** Whether a link may have to do with this page: its row is here, or would have to be. */
function concerns(id) {
  if (rowOf(id)) return true;
  if (!("growing" in list.dataset)) return false;
  if (list.childElementCount >= MOST_ROWS) {
    outdated();
    return false;
  }
  return "complete" in list.dataset || id > Number(list.lastElementChild?.dataset.link ?? 0);
}

function outdated() {
  document.getElementById("links-outdated").hidden = false;
}

/** Ask for the rows that are due: one question for each link at a time, or answers might cross. */
function work() {
  for (const id of due) {
    if (asked.size >= AT_ONCE) return;
    if (asked.has(id)) continue;
    due.delete(id);
    asked.add(id);
    update(id)
      .catch(outdated)
      .finally(() => {
        asked.delete(id);
        if (due.size + asked.size > 0) return work();
        status.textContent = updated === 1 ? "One link was updated." : `${updated} links were updated.`;
        updated = 0;
      });
  }
}

async function update(id) {
  const response = await fetch(`${list.dataset.rows}${id}/row/?${list.dataset.query}`, {
    redirect: "error", // to the login
  });
  updated += 1;
  if (response.status === 200) {
    const template = document.createElement("template");
    template.innerHTML = await response.text();
    show(id, template.content.firstElementChild);
  } else if (response.status === 204 || response.status === 404) {
    remove(rowOf(id));
  } else {
    throw new Error(`status ${response.status}`);
  }
}

function show(id, row) {
  const old = rowOf(id);
  if (old) {
    const focused = old.contains(document.activeElement) ? document.activeElement : null;
    old.replaceWith(row);
    if (focused) sameIn(row, focused).focus({ preventScroll: true });
  } else if ("growing" in list.dataset) {
    // The newest is on top; one that comes back from the archive is older than others.
    const rows = [...list.children];
    list.insertBefore(row, rows.find((each) => Number(each.dataset.link) < id) ?? null);
  }
}

/** The element of the new row that is what another one was of the old. */
function sameIn(row, element) {
  const controls = [...row.querySelectorAll("a, button")];
  return (
    controls.find((each) => (element.id ? each.id === element.id : each.href === element.href)) ??
    controls[0]
  );
}

function remove(row) {
  if (!row) return;
  const next = row.nextElementSibling ?? row.previousElementSibling;
  const hadFocus = row.contains(document.activeElement);
  row.remove();
  if (hadFocus) (next?.querySelector("a") ?? document.getElementById("main")).focus();
}

if (list) {
  document.addEventListener("live:link", ({ detail }) => {
    if (!concerns(detail.id)) return;
    due.add(detail.id);
    work();
  });

  document.addEventListener("live:reset", () => {
    const fields = [...document.querySelectorAll("main input, main textarea")];
    if (fields.some((field) => field.value !== field.defaultValue)) outdated();
    else location.reload();
  });

  listen(list.dataset.events, list.dataset.after ?? "", ["link"]);
}

