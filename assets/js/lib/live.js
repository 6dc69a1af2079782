// Live updates: server-sent events, dispatched as events of the document.

const BACKOFF_MILLISECONDS = { first: 1000, max: 60_000 };

/**
 * Subscribe to the event stream at `address`, starting after the event with the id `after`, until the
 * page is closed. Dispatches each event of `kinds`, and `hello` and `reset`, on the document as
 * `live:<kind>` with its data as `detail`. A `reset` means that events were missed.
 */
export function listen(address, after, kinds) {
  let last = after;
  let backoff = BACKOFF_MILLISECONDS.first;

  function open() {
    const url = new URL(address, location.href);
    url.searchParams.set("after", last);
    const source = new EventSource(url);
    for (const kind of ["hello", "reset", ...kinds]) {
      source.addEventListener(kind, (event) => {
        last = event.lastEventId || last;
        backoff = BACKOFF_MILLISECONDS.first;
        const detail = event.data ? JSON.parse(event.data) : null;
        document.dispatchEvent(new CustomEvent(`live:${kind}`, { detail }));
      });
    }
    // Browsers reconnect when a stream ends or breaks, but not after an error status. During a deploy
    // the router may respond with a 502 or 503.
    source.addEventListener("error", () => {
      if (source.readyState !== EventSource.CLOSED) return;
      setTimeout(open, backoff * (0.5 + Math.random() / 2)); // with jitter
      backoff = Math.min(2 * backoff, BACKOFF_MILLISECONDS.max);
    });
  }

  open();
}
