"""The Flask application of these tests works on its own, as a team would bring it."""

from tests.flask_application import FlaskApplication

LOG_IN = """
import re
from autoapp import app

client = app.test_client()
token = re.search('name="csrf_token" value="([^"]+)"', client.get("/").text)[1]
data = {"username": "ada", "password": "correct horse", "csrf_token": token}
page = client.post("/", data=data, follow_redirects=True)
print(page.request.path, page.status_code, "Welcome ada" in page.text)
"""


async def test_user_logs_in_on_the_database_of_flask_migrate(
    flask_application: FlaskApplication,
) -> None:
    flask_application.load_users(
        [
            {
                "username": "ada",
                "email": "ada@example.com",
                "password": "correct horse",
                "active": True,
            }
        ]
    )
    assert flask_application.run("-c", LOG_IN) == "/users/ 200 True\n"
    assert "(head)" in flask_application.db("current")
