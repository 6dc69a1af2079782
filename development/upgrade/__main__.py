"""Run `python -m development.upgrade`."""

import sys

from development.upgrade.command import main

sys.exit(main())
