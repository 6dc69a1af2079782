"""Orders, and the views that behave as a view can: stream, read a body or not, raise, take long."""

import hashlib
import time

from flask import Blueprint, Response, jsonify, render_template, request, stream_with_context
from flask_login import current_user, login_required

from bookshop.extensions import csrf_protect, db
from bookshop.orders.models import Order

blueprint = Blueprint("orders", __name__, url_prefix="/orders")


@blueprint.route("/")
@login_required
def index():
    found = db.session.scalars(db.select(Order).filter_by(user_id=current_user.id))
    return render_template("orders/index.html", orders=found.all())


@blueprint.route("/export.csv")
def export():
    """Stream as many lines as the query parameter `lines` says, one each `delay` seconds."""
    lines = request.args.get("lines", 10, int)
    delay = request.args.get("delay", 0.0, float)

    def generate():
        for number in range(lines):
            time.sleep(delay)
            yield f"{number},An order\n"

    return Response(stream_with_context(generate()), mimetype="text/csv")


@blueprint.route("/upload", methods=["POST"])
@csrf_protect.exempt
def upload():
    """Read the body in parts, and answer with its length and digest."""
    digest, length = hashlib.sha256(), 0
    while part := request.stream.read(64 * 1024):
        digest.update(part)
        length += len(part)
    return jsonify(length=length, sha256=digest.hexdigest())


@blueprint.route("/ignore", methods=["POST"])
@csrf_protect.exempt
def ignore():
    """Answer without reading the body."""
    return "ignored\n"


@blueprint.route("/broken")
def broken():
    raise RuntimeError("broken on purpose")


@blueprint.route("/broken-stream")
def broken_stream():
    """Raise after the first part of the answer."""

    def generate():
        yield "the first part\n"
        raise RuntimeError("broken on purpose, in a stream")

    return Response(generate(), mimetype="text/plain")


@blueprint.route("/slow")
def slow():
    """Answer after as many seconds as the query parameter `seconds` says."""
    time.sleep(request.args.get("seconds", 1.0, float))
    return "done\n"


@blueprint.route("/environ")
def environ():
    """Answer with what the server says of the request."""
    names = ("REMOTE_ADDR", "HTTP_HOST", "SCRIPT_NAME", "PATH_INFO", "wsgi.url_scheme")
    return jsonify({name: request.environ.get(name) for name in names})
