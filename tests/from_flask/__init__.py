"""Coming over from Flask: databases, passwords and templates of a Flask application."""
