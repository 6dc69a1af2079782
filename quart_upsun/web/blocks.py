"""Find blocks of templates that nothing renders, because the layout does not have them.

Jinja ignores such a block: a page would silently lack, for instance, the scripts of a template that
comes from another application.
"""

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from jinja2 import BaseLoader, Environment, Template, TemplateAssertionError, nodes


class BlockChecker(BaseLoader):
    """A loader that refuses templates with blocks that nothing renders. For development.

    Args:
        loader: the loader of the templates.
    """

    def __init__(self, loader: BaseLoader) -> None:
        self._loader = loader

    def get_source(
        self, environment: Environment, template: str
    ) -> tuple[str, str | None, Callable[[], bool] | None]:
        return self._loader.get_source(environment, template)

    def list_templates(self) -> list[str]:
        return self._loader.list_templates()

    def load(
        self,
        environment: Environment,
        name: str,
        globals: MutableMapping[str, Any] | None = None,
    ) -> Template:
        """Load a template.

        Raises:
            TemplateNotFound: this loader does not have it.
            TemplateAssertionError: it has a block that the template it extends does not have.
        """
        self._loader.get_source(environment, name)  # another loader may have the template
        check_blocks(environment, name)
        return self._loader.load(environment, name, globals)


def check_blocks(environment: Environment, name: str) -> None:
    """Check that all blocks of a template are rendered.

    Raises:
        TemplateAssertionError: a block is not.
    """
    tree = parse(environment, name)
    parent = find_parent(tree)
    if parent is None:
        return
    known = find_blocks(environment, parent)
    for block in outer_blocks(tree):
        if block.name not in known:
            raise TemplateAssertionError(
                f"{parent} has no block “{block.name}”, so its content would not be on the page."
                f" It has: {', '.join(sorted(known))}.",
                block.lineno,
                name,
                get_source(environment, name)[1],
            )


def get_source(environment: Environment, name: str) -> tuple[str, str | None]:
    """Return the source of a template and its path."""
    if environment.loader is None:
        raise TypeError("The environment has no loader.")
    return environment.loader.get_source(environment, name)[:2]


def parse(environment: Environment, name: str) -> nodes.Template:
    source, path = get_source(environment, name)
    return environment.parse(source, name, path)


def find_parent(tree: nodes.Template) -> str | None:
    """Return the template that a template extends; None if there is none, or it is a variable."""
    found = tree.find(nodes.Extends)
    if found is None or not isinstance(found.template, nodes.Const):
        return None
    return str(found.template.value)


def find_blocks(environment: Environment, name: str) -> set[str]:
    """Return the names of all blocks of a template and those that it extends."""
    tree = parse(environment, name)
    parent = find_parent(tree)
    own = {block.name for block in tree.find_all(nodes.Block)}
    return own | (find_blocks(environment, parent) if parent else set())


def outer_blocks(node: nodes.Node) -> Iterator[nodes.Block]:
    """Yield the blocks that are not part of another block, which would render them."""
    for child in node.iter_child_nodes():
        if isinstance(child, nodes.Block):
            yield child
        else:
            yield from outer_blocks(child)
