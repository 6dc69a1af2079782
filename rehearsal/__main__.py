"""The command `upsun-rehearse`, also `python -m rehearsal`.

Each subcommand is imported only when it runs, so that `validate` takes a fraction of a second.
"""

import sys


def main() -> int:
    """Run the command; return the exit code."""
    if sys.argv[1:2] == ["validate"]:
        from rehearsal import validate_command

        return validate_command.main(sys.argv[2:])
    from rehearsal import command

    return command.main()


if __name__ == "__main__":
    sys.exit(main())
