// Relative times ("5 minutes ago"). The tooltip has the exact time in UTC.

const UPDATE_MILLISECONDS = 30_000;
const MAX_RELATIVE_SECONDS = 30 * 86_400; // beyond this, show the date
const UNITS = [
  ["day", 86_400],
  ["hour", 3600],
  ["minute", 60],
];

const relative = new Intl.RelativeTimeFormat(document.documentElement.lang || "en", {
  numeric: "auto",
});

function describe(element) {
  const seconds = (Date.parse(element.dateTime) - Date.now()) / 1000;
  if (Math.abs(seconds) >= MAX_RELATIVE_SECONDS) {
    return element.title.replace(/ \d\d:\d\d:\d\d UTC$/, "");
  }
  for (const [unit, length] of UNITS) {
    if (Math.abs(seconds) >= length) {
      return relative.format(Math.round(seconds / length), unit);
    }
  }
  return relative.format(0, "second"); // "now"
}

function update() {
  for (const element of document.querySelectorAll("time[data-relative]")) {
    const text = describe(element);
    if (element.textContent !== text) {
      element.textContent = text;
    }
  }
}

/** Show relative times, keep them up to date, and include times that are inserted later. */
export function showRelativeTimes() {
  update();
  setInterval(update, UPDATE_MILLISECONDS);
  new MutationObserver(update).observe(document.body, { childList: true, subtree: true });
}
