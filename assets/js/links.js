// Live updates for the links of an open page; without this script, reload the page.

import { listen } from "./lib/live.js";

const MAX_REQUESTS = 4; // concurrent: an import changes thousands of links
const MAX_ROWS = 100; // to see more rows, users reload the page

const list = document.getElementById("links");
const status = document.getElementById("links-status");

const changed = new Set(); // ids of links whose rows are outdated
const requested = new Set(); // ids of links that are being requested
let updatedCount = 0;

const rowOf = (id) => document.getElementById(`link-${id}`);

/** Return whether a link is on this page, or may have to be added to it. */
function isRelevant(id) {
  if (rowOf(id)) return true;
  if (!("growing" in list.dataset)) return false;
  if (list.childElementCount >= MAX_ROWS) {
    showOutdated();
    return false;
  }
  return "complete" in list.dataset || id > Number(list.lastElementChild?.dataset.link ?? 0);
}

function showOutdated() {
  document.getElementById("links-outdated").hidden = false;
}

/** Request outdated rows, one request per link at a time, so that responses cannot arrive out of order. */
function requestRows() {
  for (const id of changed) {
    if (requested.size >= MAX_REQUESTS) return;
    if (requested.has(id)) continue;
    changed.delete(id);
    requested.add(id);
    update(id)
      .catch(showOutdated)
      .finally(() => {
        requested.delete(id);
        if (changed.size + requested.size > 0) return requestRows();
        status.textContent = updatedCount === 1 ? "1 link updated." : `${updatedCount} links updated.`;
        updatedCount = 0;
      });
  }
}

async function update(id) {
  const response = await fetch(`${list.dataset.rows}${id}/row/?${list.dataset.query}`, {
    redirect: "error", // the session has expired
  });
  updatedCount += 1;
  if (response.status === 200) {
    const template = document.createElement("template");
    template.innerHTML = await response.text();
    show(id, template.content.firstElementChild);
  } else if (response.status === 204) {
    remove(rowOf(id));
  } else {
    throw new Error(`status ${response.status}`);
  }
}

function show(id, row) {
  const oldRow = rowOf(id);
  if (oldRow) {
    const focused = oldRow.contains(document.activeElement) ? document.activeElement : null;
    oldRow.replaceWith(row);
    if (focused) findCounterpart(row, focused).focus({ preventScroll: true });
  } else if ("growing" in list.dataset) {
    // Newest first: a link that was unarchived can be older than others.
    const rows = [...list.children];
    list.insertBefore(row, rows.find((each) => Number(each.dataset.link) < id) ?? null);
  }
}

/** Return the control of the new row that corresponds to one of the old row. */
function findCounterpart(row, element) {
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
    if (!isRelevant(detail.id)) return;
    changed.add(detail.id);
    requestRows();
  });

  document.addEventListener("live:reset", () => {
    const fields = [...document.querySelectorAll("main input, main textarea")];
    if (fields.some((field) => field.value !== field.defaultValue)) showOutdated();
    else location.reload();
  });

  listen(list.dataset.events, list.dataset.after ?? "", ["link"]);
}

