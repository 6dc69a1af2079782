"""Commands for the build and deploy hooks."""

import argparse
import os
import sys
from pathlib import Path

from quart_upsun.web import publish


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0 on success, 1 on failure."""
    parser = argparse.ArgumentParser(prog="python -m quart_upsun", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    compiling = commands.add_parser(
        "compile-templates",
        help="compile the application's templates into build/templates (build hook)",
    )
    compiling.add_argument("package", help="the application's package, for example app")
    compiling.set_defaults(run=compile_templates)
    publishing = commands.add_parser(
        "publish-assets",
        help="copy built assets into the directory that the web server serves (deploy hook)",
        description="Copy built assets into the directory that the web server serves. "
        "Keep the assets of recent releases.",
    )
    publishing.add_argument("source", type=Path, help="directory with the built assets")
    publishing.add_argument("target", type=Path, help="directory that the web server serves")
    publishing.add_argument(
        "--manifest",
        type=Path,
        default=Path("app", "manifest.json"),
        help="asset manifest (default: %(default)s)",
    )
    publishing.add_argument(
        "--keep-days",
        type=publish.parse_days,
        default=30,
        metavar="DAYS",
        help="days to keep the assets of previous releases (default: %(default)s)",
    )
    publishing.add_argument(
        "--release",
        default=os.environ.get("PLATFORM_TREE_ID"),
        metavar="NAME",
        help="release name (default: PLATFORM_TREE_ID, or a digest of the manifest)",
    )
    publishing.set_defaults(run=publish_assets)
    options = parser.parse_args(arguments)
    code: int = options.run(options)
    return code


def compile_templates(options: argparse.Namespace) -> int:
    # Imported here: publish-assets runs while the router holds requests, so it must start fast.
    from quart_upsun.web import templating

    sys.path.insert(0, str(Path.cwd()))
    templating.compile_all(options.package)
    return 0


def publish_assets(options: argparse.Namespace) -> int:
    try:
        report = publish.publish(
            options.source, options.target, options.manifest, options.release, options.keep_days
        )
    except publish.PublishError as error:
        print(f"publish-assets: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        reason = error.strerror or error
        print(f"publish-assets: cannot publish{where}: {reason}", file=sys.stderr)
        return 1
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
