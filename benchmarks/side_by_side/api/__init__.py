"""The list of links as JSON, in Flask and FastAPI."""
