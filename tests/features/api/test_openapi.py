"""The OpenAPI document, and responses that conform to it."""

import json
import re
from typing import Any

import jsonschema
import pytest
from quart import Quart
from quart.testing import QuartClient as Client

from app import create_app
from app.settings import Settings
from quart_upsun.testing.things import bearer
from tests.features.factories import Person

THINGS = "/api/v1/things"


@pytest.fixture
async def document(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = await (await client.get("/openapi.json")).get_json()
    return found


async def test_openapi_document_is_public_and_cacheable(client: Client) -> None:
    response = await client.get("/openapi.json")
    assert response.mimetype == "application/json"
    assert response.headers["Cache-Control"] == "public, max-age=0, s-maxage=300"
    assert "Set-Cookie" not in response.headers


async def test_openapi_document_names_the_public_origin(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"public_origin": "https://www.example.com"}))
    response = await app.test_client().get("/openapi.json", headers={"Host": "evil.example"})
    assert (await response.get_json())["servers"] == [{"url": "https://www.example.com"}]


async def test_openapi_document_contains_only_api_routes(settings: Settings) -> None:
    response = await create_app(settings).test_client().get("/openapi.json")
    document = await response.get_json()
    assert document["openapi"].startswith("3.1")
    assert "/api/v1/me" in document["paths"]
    assert all(path.startswith("/api/v1/") for path in document["paths"])


async def test_operations_document_security_scopes_and_responses(
    document: dict[str, Any],
) -> None:
    identifiers = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            name = f"{method} {path}"
            identifiers.append(operation["operationId"])
            assert operation["summary"], name
            scope = operation["security"][0]["bearer"][0]
            assert f"`{scope}`" in operation["description"], name
            assert {tuple(each) for each in operation["security"]} == {
                ("bearer",),
                ("key",),
                ("session",),
            }
            responses = operation["responses"]
            assert {"401", "403", "503"} <= responses.keys(), name
            assert any(status.startswith("2") for status in responses), name
            for status, response in responses.items():
                assert response["description"], (name, status)
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"]
    assert len(set(identifiers)) == len(identifiers)
    assert document["components"]["securitySchemes"].keys() == {"bearer", "key", "session"}
    references = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document))
    assert set(references) <= document["components"]["schemas"].keys()


async def test_decorators_add_to_the_openapi_document(document: dict[str, Any]) -> None:
    make = document["paths"][THINGS]["post"]
    assert make["requestBody"]["required"] is True
    assert make["responses"].keys() >= {"201", "400", "409", "413", "415", "422", "429"}
    assert "Location" in make["responses"]["201"]["headers"]
    assert "Idempotency-Key" in [each["name"] for each in make["parameters"]]
    listed = document["paths"][THINGS]["get"]
    assert {each["name"] for each in listed["parameters"]} == {"limit", "kind"}
    assert "422" in listed["responses"]
    assert "429" not in listed["responses"]
    one = document["paths"][f"{THINGS}/{{number}}"]["get"]
    assert "404" in one["responses"]


async def test_problem_response_matches_its_schema(
    client: Client, token: str, document: dict[str, Any]
) -> None:
    response = await client.post(THINGS, json={"name": ""}, headers=bearer(token))
    problem = document["components"]["schemas"]["Problem"]
    jsonschema.validate(
        await response.get_json(force=True), {**problem, "components": document["components"]}
    )


async def test_docs_load_no_external_resources(client: Client) -> None:
    response = await client.get("/docs")
    text = await response.get_data(as_text=True)
    assert response.headers["Cache-Control"] == "public, max-age=0, s-maxage=300"
    assert re.search(r'src="/static/docs-\w+\.js"', text)
    for address in re.findall(r'(?:src|href)="([^"]+)"', text):
        assert address.startswith(("/", "#")), address
    home = await (await client.get("/")).get_data(as_text=True)
    assert 'href="/docs"' in home
    assert "docs-" not in home


async def test_documentation_pages_of_quart_schema_are_disabled(client: Client) -> None:
    for path in ("/redocs", "/scalar", "/docs/"):
        assert (await client.get(path)).status_code == 404


async def test_me_works_without_the_example_feature(
    app: Quart, client: Client, ada: Person
) -> None:
    """The API of the user feature does not depend on other features."""
    await ada.log_in(client)
    assert (await client.get("/api/v1/me")).status_code == 200
