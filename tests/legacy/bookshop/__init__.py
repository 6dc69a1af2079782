"""A shop with the stack and the layout of cookiecutter-flask, as a team would bring it."""
