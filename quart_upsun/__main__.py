"""`python -m quart_upsun`: what the hooks of a deploy run."""

import argparse
import os
import sys
from pathlib import Path

from quart_upsun.web import publish


def main(arguments: list[str] | None = None) -> int:
    """Run a command, and return its exit code: 0 when it is done, 1 when it failed."""
    parser = argparse.ArgumentParser(prog="python -m quart_upsun", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    compiling = commands.add_parser(
        "compile-templates",
        help="compile an application's templates into build/templates (build hook)",
    )
    compiling.add_argument("package", help="the package of the application, such as app")
    compiling.set_defaults(run=compile_templates)
    publishing = commands.add_parser(
        "publish-assets",
        help="copy built assets beside those of earlier releases (deploy hook)",
    )
    publishing.add_argument("source", type=Path, help="directory that the build of assets filled")
    publishing.add_argument("target", type=Path, help="directory that the web server serves")
    publishing.add_argument(
        "--manifest",
        type=Path,
        default=Path("app", "manifest.json"),
        help="the manifest of the build (default: %(default)s)",
    )
    publishing.add_argument(
        "--keep-days",
        type=publish.parse_days,
        default=30,
        help="how long files of earlier releases stay (default: %(default)s)",
    )
    publishing.add_argument(
        "--release",
        default=os.environ.get("PLATFORM_TREE_ID"),
        help="name of the release (default: PLATFORM_TREE_ID, else a digest of the manifest)",
    )
    publishing.set_defaults(run=publish_assets)
    options = parser.parse_args(arguments)
    code: int = options.run(options)
    return code


def compile_templates(options: argparse.Namespace) -> int:
    # Imported here: the other command runs while requests are held, and needs no Quart.
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
