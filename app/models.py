"""Foreign keys from the toolkit's tables to this application's users.

The toolkit stores only user ids. Its rows of a user are deleted with the account.
"""

from sqlalchemy import ForeignKeyConstraint

from app.user.models import User
from quart_upsun.api.models import IdempotentAnswer
from quart_upsun.database import Base
from quart_upsun.live.models import LiveEvent

for _model in (IdempotentAnswer, LiveEvent):
    Base.metadata.tables[_model.__tablename__].append_constraint(
        ForeignKeyConstraint(["user_id"], [User.id], ondelete="CASCADE")
    )
