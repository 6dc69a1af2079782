"""The probe's requests, and projects whose pages are not all 200."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from rehearsal import inspection, scene
from rehearsal.configuration import Route
from rehearsal.findings import Finding, Severity
from rehearsal.probe import probe
from rehearsal.project import Project
from rehearsal.router import Page, entrances
from rehearsal.tests.sample import CONFIG, errors, rehearse, sample, summary

YAML = ".upsun/config.yaml"
HOST = "main-abc1234-xyz.eu-5.platformsh.site"
STATIC = """\
applications:
  site:
    type: "python:3.13"
    container_profile: BALANCED
    web:
      locations:
        "/":
          root: public
          index: [index.html]
routes:
  "https://{default}/":
    type: upstream
    upstream: "site:http"
"""


@asynccontextmanager
async def serving(answers: Mapping[str, tuple[int, str]]) -> AsyncIterator[str]:
    """Run a server that responds with a status and a Location by path, and with 404 to others."""

    async def answer(request: web.Request) -> web.Response:
        status, location = answers.get(request.path, (404, ""))
        if location == "only www.example.com":
            status, location = (200 if request.host == "www.example.com" else 400), ""
        return web.Response(status=status, headers={"Location": location} if location else {})

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def check(
    answers: Mapping[str, tuple[int, str]], *, host: str = HOST, **settings: object
) -> tuple[list[Finding], str]:
    """Probe "/", and return the findings except notes, and what was seen."""
    project = Project.model_validate(settings)
    pages = [Page(host, path) for path in project.pages or ["/"]]
    async with serving(answers) as address:
        found, seen = await probe(address, pages, project, with_files=True)
    return [finding for finding in found if finding.severity is not Severity.NOTE], seen


@pytest.mark.parametrize(
    ("answers", "seen"),
    [
        ({"/": (200, "")}, "/ 200"),
        ({"/": (302, "/login/"), "/login/": (200, "")}, "/login/ 200"),
        ({"/": (302, f"https://{HOST}/login/?next=/"), "/login/": (200, "")}, "/login/?next=/ 200"),
        ({"/": (302, "https://accounts.example/")}, "/ 302"),
        ({}, "/ 404"),
        ({"/": (401, "")}, "/ 401"),
        ({"/": (302, "http://[")}, "/ 302"),
    ],
)
async def test_any_response_below_500_is_an_answer(
    answers: Mapping[str, tuple[int, str]], seen: str
) -> None:
    found, text = await check(answers)
    assert found == []
    assert text.startswith(f"{seen}, ")


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"/": (500, "")}, "/ responds with 500"),
        ({"/": (302, "/a"), "/a": (503, "")}, "/a responds with 503"),
        ({"/": (301, "/")}, "/ redirects more than 5 times"),
    ],
)
async def test_server_errors_and_redirect_loops_are_errors(
    answers: Mapping[str, tuple[int, str]], message: str
) -> None:
    (finding,), _ = await check(answers)
    assert finding.severity is Severity.ERROR
    assert finding.message.startswith(message)


async def test_named_pages_must_respond_with_200() -> None:
    found, _ = await check({"/": (200, ""), "/a": (302, "/")}, pages=["/", "/a", "/b"])
    assert [finding.message for finding in found] == [
        "/a responds with 302",
        "/b responds with 404",
    ]


async def test_rejected_host_is_a_warning() -> None:
    answers = {"/": (200, "only www.example.com")}
    (finding,), _ = await check(answers)
    assert finding.severity is Severity.WARNING
    assert HOST in finding.message
    assert "--domain" in finding.fix
    assert await check(answers, host="www.example.com") == ([], "/ 200, 0 assets")


def test_entrances_of_an_application() -> None:
    routes = {
        "https://{default}/": Route(type="upstream", upstream="site:http"),
        "https://{default}/api": Route(type="upstream", upstream="api:http"),
        "https://*.{default}/v2/": Route(type="upstream", upstream="api:http"),
        "https://www.{default}/": Route(type="redirect", to="https://{default}/"),
    }
    assert entrances(routes, "site", HOST) == [Page(HOST, "/")]
    assert entrances(routes, "api", HOST) == [Page(HOST, "/api/"), Page(f"www.{HOST}", "/v2/")]
    assert entrances(routes, "worker", HOST) == []


@pytest.mark.requires("bwrap", "nginx")
@pytest.mark.parametrize("start", ["", "exit 0", "sleep infinity"])
async def test_site_without_a_server(start: str, tmp_path: Path) -> None:
    config = STATIC
    if start:
        config = config.replace("    web:\n", f"    web:\n      commands: {{start: {start}}}\n")
    files = {YAML: config, "public/index.html": "<p>Hello", "pyproject.toml": ""}
    report = await rehearse(sample(tmp_path / "repository", **files), tmp_path / "state")
    assert report.exit_code == 0, summary(report)
    (probed,) = [stage for stage in report.stages if stage.name == "probe"]
    assert probed.detail == "/ 200, 0 assets"
    # The platform restarts a command that ends.
    restarted = any("exited" in finding.message for finding in report.findings)
    assert restarted == (start == "exit 0")


@pytest.mark.requires("bwrap", "nginx")
async def test_application_with_workers_only(tmp_path: Path) -> None:
    config = """\
applications:
  queue:
    type: "python:3.13"
    container_profile: BALANCED
    workers:
      queue:
        commands:
          start: sleep 600
"""
    repository = sample(tmp_path / "repository", **{YAML: config, "pyproject.toml": ""})
    report = await rehearse(repository, tmp_path / "state")
    assert errors(report) == [], summary(report)
    assert report.exit_code == 0
    assert any("no route leads" in finding.message for finding in report.findings)


@pytest.mark.requires("bwrap", "nginx")
async def test_route_below_a_path_and_own_domain(tmp_path: Path) -> None:
    config = CONFIG.replace("https://{default}/", "https://{default}/api")
    repository = sample(
        tmp_path / "repository",
        ("serve.py", '"/ready"}', '"/api/"} and self.headers["Host"] == "www.example.com"'),
        **{YAML: config, "pyproject.toml": ""},
    )
    report = await rehearse(repository, tmp_path / "state", domain="www.example.com")
    assert report.exit_code == 0, summary(report)
    (probed,) = [stage for stage in report.stages if stage.name == "probe"]
    assert probed.detail.startswith("/api/ 200")


@pytest.mark.requires("bwrap", "nginx")
async def test_page_of_a_static_site_needs_no_application(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`passthru: /index.html` is how single-page applications serve their page for all paths."""
    config = STATIC.replace(
        "      locations:\n", "      commands: {start: sleep infinity}\n      locations:\n"
    ).replace("root: public\n", "root: public\n          passthru: /index.html\n")
    files = {YAML: config, "public/index.html": "a page"}
    report = await rehearse(sample(tmp_path / "site", **files), tmp_path / "state")
    assert report.exit_code == 0, summary(report)
    # Without the page, the requests are for the application, which never listens.
    monkeypatch.setattr(inspection, "START_SECONDS", 1)
    files = {YAML: config.replace("passthru: /index.html", "passthru: /missing.html")}
    files["public/index.html"] = "a page"
    report = await rehearse(sample(tmp_path / "other", **files), tmp_path / "other-state")
    assert any("does not listen" in finding.message for finding in errors(report)), summary(report)


@pytest.mark.requires("bwrap", "nginx")
async def test_server_error_comes_with_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene, "READY_SECONDS", 2.0)  # it never responds with 200
    changes = ("serve.py", "        body = ", "        raise OSError('no space')\n        body = ")
    report = await rehearse(sample(tmp_path / "site", changes), tmp_path / "state")
    assert any("OSError: no space" in finding.excerpt for finding in errors(report)), summary(
        report
    )


@pytest.mark.requires("bwrap", "nginx")
async def test_single_application_has_a_default_route(tmp_path: Path) -> None:
    config = CONFIG.partition("routes:")[0]
    files = {YAML: config, "pyproject.toml": ""}
    report = await rehearse(sample(tmp_path / "site", **files), tmp_path / "state")
    assert report.exit_code == 0, summary(report)
    (stage,) = [stage for stage in report.stages if stage.name == "probe"]
    assert stage.detail.startswith("/ 200")
