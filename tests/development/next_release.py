"""A started application, and made-up releases that follow the one in this repository.

Release 0.2.0 adds a column to a table of the toolkit, with its migration, and renames a function.
"""

import re
import shutil
import subprocess
from pathlib import Path

from rehearsal.tests.sample import commit, git
from tests.development.clone import share_packages
from tests.migrations.recipes import HEADER, head
from tests.repository import checkout

MIGRATION = "alembic/versions/20991231_5e1fc0de0002_subject_of_mails.py"
TEAM_MIGRATION = "alembic/versions/20991230_5e1fc0de0001_team.py"
ALIAS = 'clean_lines = renamed(clean_text, "quart_upsun.text.clean_lines", removed_in="0.3.0")\n'
OLD = 'def clean_lines(text: str, limit: int | None = None) -> str:\n    """Clean multi-line text'
RECORD = '\n[tool.quart-upsun]\nrelease = "0.1.0"\nstarted = 2026-11-30\nkeep = ["links"]\n'
NOTES = f'''
[[release]]
version = "0.2.0"
date = 2099-12-31
upgrade_from = "0.1.0"
migrations = ["{MIGRATION}"]
settings = [{{ old = "MAIL_URL", new = "SMTP_URL", note = "Its format stays." }}]
steps = [
  {{ text = "Install the new hook.", files = ["Makefile", "no-such-file"] }},
  {{ text = "The macro has another argument.", search = "no such macro(" }},
  {{ text = "The footer has another class.", search = "<footer" }},
]

[[release.renamed]]
old = "quart_upsun.text.clean_lines"
new = "quart_upsun.text.clean_text"
removed_in = "0.3.0"

[[release.renamed]]
old = "quart_upsun.http.unused"
new = "quart_upsun.http.used"
removed_in = "0.3.0"

[[release.renamed]]
old = "quart_upsun.database.Database.read_replica"
new = "quart_upsun.database.Database.read"
removed_in = "0.3.0"
'''


def edit(path: Path, *changes: tuple[str, str]) -> None:
    """Replace texts in a file; each must occur."""
    text = path.read_text()
    for old, new in changes:
        assert old in text, f"{path} does not contain {old!r}"
        text = text.replace(old, new, 1)
    path.write_text(text)


def set_version(root: Path, version: str) -> None:
    for package in ("quart_upsun", "rehearsal"):
        path = root / package / "pyproject.toml"
        path.write_text(re.sub(r'(?m)^version = ".*"$', f'version = "{version}"', path.read_text()))


def start(directory: Path) -> Path:
    """Create an application with the record of `make start`, and without some of the tests."""
    checkout(directory)
    for name in ("embedded_postgres/tests", "tests/development"):
        shutil.rmtree(directory / name)
    with (directory / "pyproject.toml").open("a") as file:
        file.write(RECORD)
    git(directory, "init", "--quiet", "--initial-branch=main")
    git(directory, "config", "user.name", "Ada")
    git(directory, "config", "user.email", "ada@example.com")
    git(directory, "config", "commit.gpgsign", "false")
    # .gitignore covers these directories, but not symbolic links of the same name.
    (directory / ".git" / "info" / "exclude").write_text(".venv\nnode_modules\n")
    commit(directory, {}, "Start")
    header = HEADER.format(name="team", revision="5e1fc0de0001", down_revision=head())
    header = re.sub(r"(?m)^(import|from) .*\n", "", header).replace('"""\n\n\n', '"""\n\n')
    empty = "def upgrade() -> None:\n    pass\n\n\ndef downgrade() -> None:\n    pass\n"
    commit(directory, {TEAM_MIGRATION: header + empty}, "A migration of the team")
    share_packages(directory)
    return directory


def make_release(directory: Path) -> Path:
    """Create release 0.2.0 as an unpacked directory."""
    checkout(directory)
    set_version(directory, "0.2.0")
    edit(
        directory / "quart_upsun" / "releases.toml",
        ("# Newest first.\n", f"# Newest first.{NOTES}\n"),
    )
    edit(
        directory / "quart_upsun" / "text.py",
        (OLD, OLD.replace("clean_lines", "clean_text")),
        (
            "from typing import Literal\n",
            "from typing import Literal\n\nfrom quart_upsun.deprecation import renamed\n",
        ),
        (
            "def clean(text: str",
            f"{ALIAS}\n\ndef clean(text: str",
        ),
    )
    edit(
        directory / "quart_upsun" / "mail" / "models.py",
        (
            "    message: Mapped[str]",
            "    subject: Mapped[str | None] = mapped_column(String(200))\n"
            "    message: Mapped[str]",
        ),
    )
    header = HEADER.format(name="subject", revision="5e1fc0de0002", down_revision=head())
    (directory / MIGRATION).write_text(
        f"{header}def upgrade() -> None:\n"
        '    op.add_column("mails", sa.Column("subject", sa.String(200)))\n\n\n'
        'def downgrade() -> None:\n    op.drop_column("mails", "subject")\n'
    )
    (directory / "rehearsal" / "brand_new.py").write_text('"""New in this release."""\n')
    return directory


def make_remote(directory: Path, release: Path) -> str:
    """Create a Git remote with the tags v0.2.0 and v0.10.0; return its URL."""
    shutil.copytree(release, directory)
    commit(directory, {}, "Release 0.2.0")
    git(directory, "tag", "v0.2.0")
    set_version(directory, "0.10.0")
    edit(
        directory / "quart_upsun" / "releases.toml",
        (
            "# Newest first.\n",
            '# Newest first.\n[[release]]\nversion = "0.10.0"\ndate = 2100-01-01\n'
            'upgrade_from = "0.2.0"\n',
        ),
    )
    commit(directory, {}, "Release 0.10.0")
    git(directory, "tag", "v0.10.0")
    git(directory, "tag", "v1.0.0-rc1")
    return f"file://{directory}"


def archive(repository: Path, path: Path) -> Path:
    """Write an archive of v0.2.0, as hosts of Git repositories offer it."""
    subprocess.run(
        ["git", "archive", "--prefix=quart-upsun-0.2.0/", f"--output={path}", "v0.2.0"],
        cwd=repository,
        check=True,
    )
    return path
