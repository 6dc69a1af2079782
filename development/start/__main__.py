"""The command line of `make start`."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 it runs before the interpreter is checked elsewhere
    sys.exit(
        f"Python 3.11 or later is required, but {sys.executable} is {sys.version.split()[0]}."
        " Choose another interpreter, for instance"
        " `make start PYTHON=python3.13 NAME=my-service`."
    )

from development.start.command import main

sys.exit(main())
