"""The processes of an application: the web server `serve.main()` and the worker `worker.main()`."""

__all__ = ["serve", "worker"]  # modules
