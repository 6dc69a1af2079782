"""The name of the command, in a form that the user can run again."""

import shlex
import shutil
import sys
from pathlib import Path


def program() -> str:
    """Return the command that started this process."""
    script = Path(sys.argv[0]).absolute()
    if script.name == "__main__.py":
        return f"{shortened(Path(sys.executable))} -m rehearsal"
    return shortened(script)


def shortened(path: Path) -> str:
    """Return the program's name if it is on PATH, else its path, relative where possible."""
    if shutil.which(path.name) == str(path):
        return path.name
    here = Path.cwd()
    return shlex.quote(f"./{path.relative_to(here)}" if path.is_relative_to(here) else str(path))
