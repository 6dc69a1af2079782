"""Models of orders."""

from bookshop.extensions import db


class Order(db.Model):
    """An order. Its table stays the shop's own when the users are adopted."""

    __tablename__ = "orders"

    id = db.Column(db.Integer, primary_key=True)
    user_id = db.Column(db.Integer, db.ForeignKey("users.id"), nullable=False, index=True)
    title = db.Column(db.String(200), nullable=False)
    user = db.relationship("User", backref="orders")
