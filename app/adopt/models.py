"""What `quart sanitize` does with the tables of the Flask application."""

from app.adopt.shape import SCHEMA
from quart_upsun.database.anonymization import EMPTIED_SCHEMAS

# They hold personal data, and this application does not know where.
EMPTIED_SCHEMAS.add(SCHEMA)
