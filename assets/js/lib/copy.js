// Copy buttons: `<button type="button" data-copy="ID" hidden>` copies the value, the link or the text
// of the element with this id. Without a script or a clipboard the buttons stay hidden.

const FEEDBACK_MILLISECONDS = 3000;

const status = document.createElement("p");
status.className = "visually-hidden";
status.setAttribute("role", "status");

function textOf(element) {
  return element.value ?? element.href ?? element.textContent.trim();
}

async function copy(button) {
  const source = document.getElementById(button.dataset.copy);
  button.dataset.label ??= button.textContent;
  let message = "Copied";
  try {
    await navigator.clipboard.writeText(textOf(source));
  } catch {
    source.select?.();
    message = "Copy failed";
  }
  button.textContent = status.textContent = message;
  clearTimeout(button.copyTimer);
  button.copyTimer = setTimeout(() => {
    button.textContent = button.dataset.label;
    status.textContent = "";
  }, FEEDBACK_MILLISECONDS);
}

if (navigator.clipboard) {
  const buttons = document.querySelectorAll("button[data-copy]");
  if (buttons.length > 0) document.body.append(status);
  for (const button of buttons) {
    button.hidden = false;
    button.addEventListener("click", () => copy(button));
  }
}
