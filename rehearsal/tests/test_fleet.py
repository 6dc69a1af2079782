"""Several instances of an application: deploys under load, the loss of one, and shared state."""

from pathlib import Path

import pytest

from rehearsal import inspection
from rehearsal.findings import Severity
from rehearsal.inspection import Loss
from rehearsal.tests.sample import FILES, SERVE, commit, errors, rehearse, sample, summary

pytestmark = pytest.mark.requires("bwrap", "nginx")

YAML = ".upsun/config.yaml"
PROJECT = "pyproject.toml"
SLOW_LOAD = FILES[PROJECT] + "rate = 30\n"

# A login that creates a session, and a page that requires it.
SESSIONS = SERVE.replace(
    "class Handler(",
    """\
import secrets
from pathlib import Path
from urllib.parse import parse_qs

def session(name):
    return Path(STORE, f"session-{name}")

class Handler(""",
).replace(
    "    def do_GET(self):\n        found =",
    """\
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        name = secrets.token_hex(8)
        session(name).touch()
        self.send_response(204)
        self.send_header("Set-Cookie", f"session={name}; Secure")
        self.end_headers()

    def do_GET(self):
        name = (self.headers["Cookie"] or "").partition("session=")[2]
        found = self.path == "/mine" and name and session(name).exists() or""",
)
VISITS = """
[[tool.rehearsal.load]]
share = 1
requests = [
  { method = "POST", path = "/login", status = 204 }, { path = "/mine" }, { path = "/mine" }
]
"""


def two_releases(directory: Path, *changes: tuple[str, str, str], **files: str) -> Path:
    """Create a repository with two commits of the sample project."""
    repository = sample(directory, *changes, **{PROJECT: SLOW_LOAD, **files})
    serve = (repository / "serve.py").read_text()
    commit(repository, {"serve.py": serve.replace("<p>Hello", "<p>Hello again")})
    return repository


async def test_rolling_deploys_of_three_instances_lose_no_request(tmp_path: Path) -> None:
    repository = two_releases(tmp_path / "repository")
    report = await rehearse(
        repository,
        tmp_path / "state",
        instances=3,
        strategy="rolling",
        previous="HEAD~1",
        deploys=2,
    )
    assert not errors(report), summary(report)
    assert report.load is not None
    assert report.load["failed"] == 0, summary(report)
    # Each instance of each release has had its share.
    labels = {f"{name}{n}" for name in ("previous", "clone", "app") for n in ("", "-2", "-3")}
    assert set(report.load["instances"]) == labels
    names = [stage.name for stage in report.stages]
    expected = ["clone", "stop previous", "start", "deploy", "switch", "stop clone"]
    assert [name for name in names if name.startswith("deploy ")] == [
        f"deploy {number}: {step}" for number in (1, 2) for step in expected
    ]
    assert names[-5:] == ["probe", "probe 2", "probe 3", "stop", "inspect"]
    # The hook has run once for each deploy, and not once for each instance.
    assert len(list((tmp_path / "state").rglob("style-0123abcd.css"))) >= 1


async def test_stop_start_holds_requests_until_all_instances_have_started(tmp_path: Path) -> None:
    mark = "        cp -R built/. public/\n        echo deployed >>public/deploys\n"
    repository = two_releases(
        tmp_path / "repository", (YAML, "        cp -R built/. public/\n", mark)
    )
    report = await rehearse(
        repository, tmp_path / "state", instances=2, strategy="stop-start", previous="HEAD~1"
    )
    assert not errors(report), summary(report)
    assert report.load is not None
    assert report.load["failed"] == 0, summary(report)
    assert set(report.load["instances"]) == {"previous", "previous-2", "app", "app-2"}
    assert report.hold is not None
    assert set(report.hold.parts) == {"stop", "start", "deploy"}
    # Hooks run in one instance, and the mount is shared.
    deploys = tmp_path / "state" / "environments" / "production" / "mounts" / "public" / "deploys"
    assert deploys.read_text().splitlines() == ["deployed", "deployed"]


async def test_instance_that_does_not_start_is_reported_once(tmp_path: Path) -> None:
    """The second instance finds a file of the first one in the storage that they share."""
    start = "start: test ! -e public/taken && touch public/taken && exec python3 serve.py"
    repository = sample(tmp_path / "repository", (YAML, "start: exec python3 serve.py", start))
    report = await rehearse(repository, tmp_path / "state", instances=3)
    assert report.exit_code == 1, summary(report)
    found = [finding.message for finding in errors(report)]
    assert any("the start command exited" in message for message in found), summary(report)


async def test_only_requests_in_flight_are_lost_with_an_instance(tmp_path: Path) -> None:
    # Each request takes long enough that some are in flight when the instance is killed.
    slow = SERVE.replace("        found =", "        import time; time.sleep(0.2)\n        found =")
    repository = sample(tmp_path / "repository", **{"serve.py": slow, PROJECT: SLOW_LOAD})
    report = await rehearse(repository, tmp_path / "state", instances=3, broken="kill")
    assert not errors(report), summary(report)
    assert report.load is not None
    assert report.load["failed"] == 0, summary(report)
    assert report.load["in_flight"] > 0, summary(report)
    (note,) = [each for each in report.findings if "in flight on the lost" in each.message]
    assert note.severity is Severity.NOTE
    assert any("was back after" in line for line in report.seen), report.seen


def failing(*failures: tuple[float, float, str]) -> dict[str, object]:
    """Return the result of a load with these failures: begin, end and reason."""
    reasons = [why for _, _, why in failures]
    return {
        "kinds": {
            "GET /": {
                "answered": 9,
                "failed": len(failures),
                "failures": {why: reasons.count(why) for why in reasons},
            }
        },
        "asked": 1.0,
        "capacity": 9.0,
        "acknowledged": [],
        "failures": [[begun, ended, "GET /", why] for begun, ended, why in failures],
    }


@pytest.mark.parametrize(
    ("failure", "in_flight", "failed"),
    [
        ((9.0, 10.5, "502"), 2, 0),  # in flight during the loss
        ((10.1, 10.3, "502"), 2, 0),  # accepted while the instance was being killed
        ((10.6, 10.7, "502"), 2, 1),  # sent afterwards
        ((8.0, 9.0, "502"), 2, 1),  # answered before
        ((9.0, 10.5, "502"), 0, 1),  # in flight on another instance
    ],
)
async def test_later_requests_are_not_excused_by_a_loss(
    failure: tuple[float, float, str], in_flight: int, failed: int
) -> None:
    result, found = await inspection.judge_load(
        failing(failure),
        None,
        [],
        refuses_unsafe=False,
        losses=[Loss(begun=10.0, ended=10.5, in_flight=in_flight)],
    )
    assert (result["failed"], result["in_flight"]) == (failed, 1 - failed)
    assert result["kinds"]["GET /"]["failures"] == ({"502": 1} if failed else {})
    severity = Severity.ERROR if failed else Severity.NOTE
    assert [finding.severity for finding in found] == [severity]


@pytest.mark.parametrize("store", ["/tmp", "public", "private"])
async def test_state_that_instances_do_not_share_is_an_error(store: str, tmp_path: Path) -> None:
    mount = "      private:\n        source: instance\n    web:\n      upstream"
    repository = sample(
        tmp_path / "repository",
        (YAML, "    web:\n      upstream", mount),
        **{"serve.py": f"STORE = {store!r}\n{SESSIONS}", PROJECT: SLOW_LOAD + VISITS},
    )
    report = await rehearse(repository, tmp_path / "state", instances=2)
    found = [finding for finding in errors(report) if finding.stage == "shared state"]
    if store == "public":
        assert not errors(report), summary(report)
        assert "shared state" in [stage.name for stage in report.stages]
        assert report.load is not None
        assert set(report.load["instances"]) == {"app", "app-2"}
        return
    (finding,) = found
    assert "POST /login -> GET /mine got 404 instead of 200" in finding.message
    assert "source `storage`" in finding.fix
    # With one instance the same project deploys.
    report = await rehearse(repository, tmp_path / "state")
    assert not errors(report), summary(report)


async def test_visit_that_fails_on_one_instance_is_not_about_several(tmp_path: Path) -> None:
    visits = VISITS.replace("status = 204", "status = 201")
    repository = sample(
        tmp_path / "repository",
        **{"serve.py": f"STORE = 'public'\n{SESSIONS}", PROJECT: SLOW_LOAD + visits},
    )
    report = await rehearse(repository, tmp_path / "state", instances=2)
    assert [finding.stage for finding in errors(report)] == ["load"], summary(report)
    assert "the release does not answer" in errors(report)[0].message
