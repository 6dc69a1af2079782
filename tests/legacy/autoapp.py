"""Create an application instance, for `flask` and WSGI servers."""

from bookshop.app import create_app

app = create_app()
