// Asks before a form with `data-confirm="Delete this?"` is submitted. The dialog repeats the label of
// the button that was pressed. Without a script the form is submitted at once.

const confirmed = new WeakSet();

function createButton(className, text) {
  const button = document.createElement("button");
  button.type = "submit";
  button.className = className;
  button.textContent = text;
  return button;
}

function ask(form, submitter) {
  const dialog = document.createElement("dialog");
  dialog.className = "confirm-dialog";
  dialog.setAttribute("role", "alertdialog");
  dialog.setAttribute("aria-labelledby", "confirm-text");

  const text = document.createElement("p");
  text.id = "confirm-text";
  text.textContent = form.dataset.confirm;

  const cancel = createButton("btn btn-outline-secondary", "Cancel");
  const accept = createButton("btn btn-danger", submitter?.textContent.trim() || "Continue");
  accept.value = "confirm";

  const buttons = document.createElement("form");
  buttons.method = "dialog";
  buttons.append(cancel, accept);

  dialog.append(text, buttons);
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (dialog.returnValue !== "confirm") return;
    confirmed.add(form);
    form.requestSubmit(submitter);
  });
  document.body.append(dialog);
  dialog.showModal();
  cancel.focus(); // an accidental Enter changes nothing
}

// Captured, because no other listener may take this for a submission before it is confirmed.
document.addEventListener(
  "submit",
  (event) => {
    const form = event.target;
    if (form.method === "dialog") {
      event.stopPropagation(); // only closes the dialog
    } else if ("confirm" in form.dataset && !confirmed.delete(form)) {
      event.preventDefault();
      event.stopPropagation();
      ask(form, event.submitter);
    }
  },
  { capture: true },
);
