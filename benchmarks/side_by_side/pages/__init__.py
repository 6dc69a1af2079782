"""The pages home, members and list of links, in Flask and FastAPI."""
