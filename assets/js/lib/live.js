// What happens on the server while a page is open: server-sent events, handed on to the document.

const PAUSE = { first: 1000, longest: 60_000 }; // milliseconds

/**
 * Listens at `address` from the event with the id `after` on, for as long as the page is open. Each
 * event of `kinds`, and `reset`, comes out of the document as `live:<kind>` with its data as
 * `detail`. After `reset` something has been missed.
 */
export function listen(address, after, kinds) {
  let last = after;
  let pause = PAUSE.first;

  function open() {
    const url = new URL(address, location.href);
    url.searchParams.set("after", last);
    const source = new EventSource(url);
    for (const kind of ["hello", "reset", ...kinds]) {
      source.addEventListener(kind, (event) => {
        last = event.lastEventId || last;
        pause = PAUSE.first;
        const detail = event.data ? JSON.parse(event.data) : null;
        document.dispatchEvent(new CustomEvent(`live:${kind}`, { detail }));
      });
    }
    // A browser comes back by itself when a stream ends or breaks. It gives up when the answer is
    // none: a router whose application is just being replaced may say 502 or 503.
    source.addEventListener("error", () => {
      if (source.readyState !== EventSource.CLOSED) return;
      setTimeout(open, pause * (0.5 + Math.random() / 2)); // not all at once
      pause = Math.min(2 * pause, PAUSE.longest);
    });
  }

  open();
}
