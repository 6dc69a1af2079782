"""The processes of an application: `serve.main()` is the web server, `worker.main()` the worker."""

__all__ = ["serve", "worker"]  # modules
