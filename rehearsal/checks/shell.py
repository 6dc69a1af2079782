"""A tolerant shell parser that yields the commands of a text, their order and their operators.

It never fails: dash reports syntax errors.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

BLANK = re.compile(r"(?:[ \t\r]|\\\n)+|#[^\n]*")
REDIRECTION = re.compile(r"\d*(?:<<-?|>>|>\||<>|[<>]&?)")
OPERATOR = re.compile(r"&&|\|\||;;|[;&|()\n]")
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
SEPARATORS = {";", "\n", "&", ";;", ""}

# Commands whose failure does not matter.
HARMLESS = {":", "echo", "exit", "export", "printf", "readonly", "return", "set", "trap", "true"}
HARMLESS |= {"umask", "unset"}
OPENING = {"if", "while", "until", "for", "{", "("}
CLOSING = {"fi", "done", "}", ")", "esac"}


@dataclass(frozen=True)
class Command:
    """One simple command."""

    words: tuple[str, ...]
    """The words, without quotes and redirections."""
    line: int
    """The line in the text, counted from 1."""
    end: str
    """The operator after it, such as `&&`; "" at the end of the text."""
    depth: int
    """The number of compound commands around it."""
    files: tuple[str, ...] = ()
    """The targets of its redirections."""

    @property
    def assignments(self) -> dict[str, str]:
        """Return the variables that it sets for the following commands."""
        words = self.words
        if words and words[0] in {"export", "readonly"}:
            words = words[1:]
        found = [ASSIGNMENT.fullmatch(word) for word in words]
        if words is self.words and None in found:
            return {}  # A=1 command: set for this command only
        return {match[1]: match[2] for match in found if match}

    @property
    def program(self) -> tuple[str, ...]:
        """Return the program's name and arguments, without assignments, `exec` and `env`."""
        words = list(self.words)
        while words and (ASSIGNMENT.fullmatch(words[0]) or words[0] in {"exec", "env"}):
            del words[0]
        return tuple(words)


class Script(NamedTuple):
    """The parsed commands of a text."""

    commands: list[Command]
    lost: Command | None
    """The first command whose failure is ignored because another command follows."""


def read(text: str) -> Script:
    """Parse a shell text."""
    return _Reader(text).script()


class _Token(NamedTuple):
    kind: Literal["word", "operator", "redirection"]
    text: str
    line: int


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    here: list[str] = []  # delimiters of the here-documents that start on the next line
    while position < len(text):
        line = text.count("\n", 0, position) + 1
        if match := BLANK.match(text, position):
            position = match.end()
        elif match := OPERATOR.match(text, position):
            yield _Token("operator", match[0], line)
            position = match.end()
            while match[0] == "\n" and here:
                closing = re.compile(rf"^\t*{re.escape(here.pop(0))}$", re.MULTILINE)
                after = closing.search(text, position)
                position = after.end() if after else len(text)
        elif match := REDIRECTION.match(text, position):
            yield _Token("redirection", match[0], line)
            position = match.end()
            if "<<" in match[0]:
                begin = position + len(text[position:]) - len(text[position:].lstrip(" \t"))
                here.append(_plain(text[begin : _end_of_word(text, begin)]))
        else:
            end = _end_of_word(text, position)
            yield _Token("word", text[position:end], line)
            position = end


def _end_of_word(text: str, position: int) -> int:
    while position < len(text) and text[position] not in " \t\r\n;&|()<>":
        position = _skip(text, position)
    return position


def _skip(text: str, position: int) -> int:
    """Return the position after one character, quoted string or substitution."""
    character = text[position]
    if character == "\\":
        return position + 2
    if character in "'`":
        end = text.find(character, position + 1)
        return end + 1 if end >= 0 else len(text)
    if character == '"':
        return _closed(text, position + 1, '"')
    if text.startswith(("$(", "${"), position):
        return _closed(text, position + 2, ")" if text[position + 1] == "(" else "}")
    return position + 1


def _closed(text: str, position: int, closing: str) -> int:
    while position < len(text) and text[position] != closing:
        if closing == ")" and text[position] == "(":
            position = _closed(text, position + 1, ")")
        elif closing == '"' and text[position] == "'":
            position += 1
        else:
            position = _skip(text, position)
    return position + 1


def _plain(word: str) -> str:
    return re.sub(r"['\"]|\\\n|\\(?=.)", "", word)


@dataclass
class _Body:
    """A list of commands: the whole text, or the body of a compound command."""

    word: str
    risk: Command | None = None  # may fail, in the current and-or list
    handled: bool = False  # `||` handles that failure
    pending: Command | None = None  # may have failed, in the previous and-or list
    out: Command | None = None  # may fail at the end of a branch
    begun: bool = False


@dataclass
class _Reader:
    text: str
    bodies: list[_Body] = field(default_factory=lambda: [_Body("")])
    found: list[Command] = field(default_factory=list)
    lost: Command | None = None
    errexit: bool = False
    words: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    line: int = 0
    skipping: str = ""  # inside a `case` pattern, the head of `for` or `case`, or a function's `()`
    target: bool = False  # the next word is the target of a redirection
    joined: bool = False  # after `&&`, `||` or `|` the list continues on the next line
    function: bool = False  # a function's body follows

    def script(self) -> Script:
        for token in _tokens(self.text):
            if token.kind == "redirection":
                self.target = True
            elif token.kind == "word":
                self._word(_plain(token.text), token.line)
            else:
                self._operator(token.text)
        self._finish("")
        return Script(self.found, self.lost)

    def _word(self, word: str, line: int) -> None:
        if self.target:
            self.target = False
            self.files.append(word)
        elif self.skipping == "pattern" and word == "esac":
            self.skipping = ""
            self._close()
        elif self.skipping == "case" and word == "in":
            self.skipping = "pattern"
        elif self.skipping == "for" and word == "do":
            self.skipping = ""
        elif self.skipping:
            pass
        elif self.words or not self._reserved(word):
            self.line = self.line if self.words else line
            self.words.append(word)

    def _reserved(self, word: str) -> bool:
        """Handle a reserved word; return whether it is one."""
        if word in OPENING or word == "case":
            self._begin()
            self.bodies.append(_Body("function" if self.function else word))
            self.function = False
            self.skipping = word if word in {"for", "case"} else ""
        elif word in {"then", "do"}:
            self._reset()
        elif word in {"else", "elif"}:
            self.bodies[-1].out = self.bodies[-1].out or self.bodies[-1].pending
            self._reset()
        elif word in CLOSING:
            self._close()
        elif word != "!":
            return False
        return True

    def _reset(self) -> None:
        body = self.bodies[-1]
        body.risk = body.pending = None
        body.handled = body.begun = False

    def _operator(self, operator: str) -> None:
        self.target = False
        if self.skipping:
            if (self.skipping, operator) == ("for", ";") or (
                (self.skipping, operator) in {("for", "\n"), ("pattern", ")"), ("function", ")")}
            ):
                self.skipping = ""
        elif operator == "(":
            if self.words:  # a function definition
                self.words, self.skipping, self.function = [], "function", True
            else:
                self._reserved("(")
        elif operator == ")":
            self._close()
        else:
            self._finish(operator)
            if operator == ";;":
                self.bodies[-1].out = self.bodies[-1].out or self.bodies[-1].pending
                self._reset()
                self.skipping = "pattern"

    def _begin(self) -> None:
        """Start an and-or list, unless inside one: it discards the previous list's exit code."""
        body = self.bodies[-1]
        if not body.begun and body.pending and not self.errexit:
            self.lost = self.lost or body.pending
        body.begun = True

    def _finish(self, operator: str) -> None:
        """End a simple command."""
        body = self.bodies[-1]
        if self.words:
            self._begin()
            command = Command(
                tuple(self.words), self.line, operator, len(self.bodies) - 1, tuple(self.files)
            )
            self.found.append(command)
            program = command.program
            if program and program[0] not in HARMLESS:
                body.risk = body.risk or command
            if command.words[0] == "set":
                self._set(command.words[1:])
            self.joined = False
        self.words, self.files = [], []
        if operator == "||":
            body.handled = True
        if operator not in SEPARATORS:
            self.joined = True
        elif body.begun and not (self.joined and operator == "\n"):
            body.pending = None if body.handled or operator == "&" else body.risk
            body.risk, body.handled, body.begun = None, False, False

    def _set(self, options: tuple[str, ...]) -> None:
        for option in options:
            if option == "errexit" or re.fullmatch(r"[-+][a-z]*e[a-z]*", option):
                self.errexit = not option.startswith("+")

    def _close(self) -> None:
        """End a compound command, which counts as a command of the enclosing body."""
        self._finish("\n")
        if len(self.bodies) > 1:
            body = self.bodies.pop()
            around = self.bodies[-1]
            around.begun = True
            if body.word != "function":  # a definition does not run the body
                around.risk = around.risk or body.out or body.pending
        self.joined = False
