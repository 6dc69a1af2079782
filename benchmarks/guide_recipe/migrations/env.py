"""Run the migrations on the application's database."""

import logging

from alembic import context
from flask import current_app

logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
logging.getLogger("alembic").setLevel(logging.INFO)

database = current_app.extensions["migrate"].db
with database.engine.connect() as connection:
    context.configure(connection=connection, target_metadata=database.metadata)
    with context.begin_transaction():
        context.run_migrations()
