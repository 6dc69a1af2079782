"""The application that FLASK_APP names."""

from flask_app import create_app

app = create_app()
