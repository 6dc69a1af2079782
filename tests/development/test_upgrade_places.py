"""Finding the uses of a renamed name in an application."""

from pathlib import Path

import pytest

from development.upgrade.places import Files, Place
from rehearsal.tests.sample import commit

CODE = """\
import quart_upsun.jobs.queue
import quart_upsun.jobs as background
from quart_upsun import jobs
from quart_upsun.jobs import enqueue as add
from quart_upsun.jobs.queue import enqueue

quart_upsun.jobs.queue.enqueue()
background.enqueue()
jobs.enqueue(jobs.later)
add()
other.enqueue()
enqueue.__name__
def f(database): database.read()
"""


@pytest.fixture
def files(tmp_path: Path) -> Files:
    commit(
        tmp_path,
        {
            "app/views.py": CODE,
            "app/own.py": "def enqueue(): enqueue()\n",
            "app/broken.py": "from quart_upsun import (\n",
            "app/templates/page.html": "{{ field(name) }}\n",
            "quart_upsun/jobs/__init__.py": "from quart_upsun.jobs.queue import enqueue\n",
            "requirements.txt": "field(\n",
        },
    )
    (tmp_path / "app" / "image.png").write_bytes(b"\x89PNG")
    commit(tmp_path, {})
    return Files(tmp_path, ["quart_upsun"])


def test_finds_every_form_of_use(files: Files) -> None:
    places = files.uses("quart_upsun.jobs.queue.enqueue")
    assert places == [Place("app/views.py", line) for line in (4, 5, 7, 8, 9, 10, 12)]


def test_does_not_find_the_same_name_in_another_package(files: Files) -> None:
    assert files.uses("quart_upsun.mail.enqueue") == []
    assert files.uses("quart_upsun.jobs.later") == [Place("app/views.py", 9)]


def test_finds_methods_by_name_and_says_so(files: Files) -> None:
    (place,) = files.uses("quart_upsun.database.Database.read")
    assert str(place) == "app/views.py:13 (perhaps)"


def test_finds_texts_in_other_files(files: Files) -> None:
    assert files.contains(r"field\(") == [Place("app/templates/page.html", 1)]


def test_reports_files_that_are_not_valid_python(files: Files) -> None:
    assert files.unreadable == ["app/broken.py"]
