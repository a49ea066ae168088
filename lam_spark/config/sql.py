"""Types of keys that hold Spark SQL: it may read inputs and views, and nothing else.

A person who may write a configuration must not be able to call Java, start a program, read a file by its path or change
data through it: the driver's environment holds the key of the pseudonyms. Every key that holds SQL has one of the
types `SqlQuery` and `SqlExpression`, so that one check covers all of them. The session settings under which the SQL
is analysed (`storage.session_settings.CONFIGURED_SQL`) complete it: texts are read as here, no variable is
substituted, and no file is read by its path.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

# Functions that call Java, or read files, tables, secrets or other systems that are no input.
_FORBIDDEN_FUNCTIONS = frozenset(
    [
        "reflect",
        "java_method",
        "try_reflect",
        "read_files",
        "cloud_files",
        "cloud_files_state",
        "read_kafka",
        "read_kinesis",
        "read_pubsub",
        "read_pulsar",
        "read_statestore",
        "read_state_metadata",
        "table_changes",
        "table_changes_by_path",
        "remote_query",
        "http_request",
        "secret",
        "try_secret",
        "list_secrets",
        "ai_query",
    ]
)
# Data sources that Spark and its common packages read by path: SELECT ... FROM csv.`path`.
_FILE_FORMATS = frozenset(
    [
        "avro",
        "binaryfile",
        "csv",
        "delta",
        "hudi",
        "iceberg",
        "image",
        "jdbc",
        "json",
        "libsvm",
        "orc",
        "parquet",
        "socket",
        "text",
        "xml",
    ]
)
_QUERY_STARTS = frozenset(["select", "with", "from", "values", "table", "("])
_CHANGES = frozenset(
    [("insert", "into"), ("insert", "overwrite"), ("delete", "from"), ("merge", "into"), ("merge", "with")]
)
# In the parentheses of these functions, FROM is no clause: EXTRACT(HOUR FROM event_time).
_FUNCTIONS_WITH_FROM = frozenset(["extract", "trim", "substring", "substr", "overlay", "position"])

_SPACE_OR_LINE_COMMENT = re.compile(r"\s+|--(?:\\\n|[^\r\n])*")
# As in Spark's lexer: text in single or double quotes with backslash escapes, raw text, quoted name, word.
_TOKEN = re.compile(
    r"""(?P<text>[rR]'[^']*'|[rR]"[^"]*"|'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*")"""
    r"|(?P<quoted>`(?:[^`]|``)*`)|(?P<word>\w+)|(?P<symbol>.)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Token:
    """A token of Spark SQL.

    Attributes:
        kind: `text` (a string literal), `quoted` (a name in backticks), `word` or `symbol`.
        value: Lower-case text without backticks; of a string literal, the text as it stands.
    """

    kind: str
    value: str

    @property
    def is_name(self) -> bool:
        """Whether it may be the name of a function, table or column."""
        return self.kind in ("word", "quoted")


_OPEN, _CLOSE, _DOT = Token("symbol", "("), Token("symbol", ")"), Token("symbol", ".")


def tokens(sql: str) -> Iterator[Token]:
    """Tokens without white space and comments; hints (`/*+ ... */`) are read as tokens.

    Raises:
        ValueError: A comment is not closed.
    """
    position = 0
    while position < len(sql):
        skipped = _SPACE_OR_LINE_COMMENT.match(sql, position)
        if skipped:
            position = skipped.end()
        elif sql.startswith("/*", position) and not sql.startswith("/*+", position):
            position = _comment_end(sql, position)
        else:
            match = _TOKEN.match(sql, position)
            assert match is not None  # the last alternative matches any character
            kind, value = str(match.lastgroup), match[0]
            if kind == "quoted":
                value = value[1:-1].replace("``", "`")
            yield Token(kind, value if kind == "text" else value.lower())
            position = match.end()


def _comment_end(sql: str, start: int) -> int:
    """Position after a comment in `/* */`, which may hold further ones."""
    depth, position = 1, start + 2
    while depth:
        match = re.compile(r"/\*(?!\+)|\*/").search(sql, position)
        if match is None:
            raise ValueError("a comment that begins with /* is not closed")
        depth += 1 if match[0] == "/*" else -1
        position = match.end()
    return position


def _check(found: Sequence[Token]) -> None:
    enclosing: list[str] = []  # per open parenthesis, the token before it
    for index, token in enumerate(found):
        before = found[index - 1] if index else Token("symbol", "")
        after = found[index + 1] if index + 1 < len(found) else Token("symbol", "")
        if token == _OPEN:
            _check_call(before)
            enclosing.append(before.value)
        elif token == _CLOSE:
            del enclosing[-1:]
        elif token.kind == "word" and (token.value, after.value) in _CHANGES:
            raise ValueError(f"expected SQL that only reads, got {token.value.upper()} {after.value.upper()}")
        elif token.kind == "word" and token.value == "using" and after.kind == "text":
            raise ValueError("expected SQL that starts no program, got TRANSFORM ... USING with a text")
        elif token.is_name and after == _DOT and before != _DOT:
            is_relation = before.kind == "word" and before.value in ("from", "join", "table")
            in_function = bool(enclosing) and enclosing[-1] in _FUNCTIONS_WITH_FROM
            _check_path(found[index:], is_relation and not in_function)


def _check_call(name: Token) -> None:
    """Check the token before an opening parenthesis."""
    if name.is_name and name.value in _FORBIDDEN_FUNCTIONS:
        raise ValueError(f"expected SQL over inputs and views, got a call of {name.value}: it is not allowed")
    if name == Token("word", "identifier"):
        raise ValueError("expected names as they are, got IDENTIFIER(...): it is not allowed")


def _check_path(chain: Sequence[Token], is_relation: bool) -> None:
    """Check the dotted name that `chain` begins with: it must not be a data source with a path."""
    parts, index = [chain[0]], 1
    while index + 1 < len(chain) and chain[index] == _DOT and chain[index + 1].is_name:
        parts.append(chain[index + 1])
        index += 2
    by_format = len(parts) == 2 and parts[0].value in _FILE_FORMATS
    is_path = parts[-1].kind == "quoted" and re.search(r"[/\\:*]", parts[-1].value) is not None
    if (by_format and (is_relation or parts[-1].kind == "quoted")) or (is_relation and is_path):
        raise ValueError(
            f"expected SQL over inputs and views, got a path after {'.'.join(p.value for p in parts[:-1])}: declare "
            "the file under inputs and use its name"
        )


def checked_expression(sql: str) -> str:
    """Check an SQL expression, such as a predicate.

    Raises:
        ValueError: It calls Java, starts a program, reads a file by its path, or changes data.
    """
    _check(list(tokens(sql)))
    return sql


def checked_query(sql: str) -> str:
    """Check a SELECT.

    Raises:
        ValueError: It is another statement, or does what `checked_expression` refuses.
    """
    found = list(tokens(sql))
    if not found or found[0].value not in _QUERY_STARTS:
        start = found[0].value.upper() if found else "nothing"
        raise ValueError(f"expected a SELECT, got a statement that begins with {start}")
    if found[0] == Token("word", "with"):
        _check_with(found)
    _check(found)
    return sql


def _check_with(found: Sequence[Token]) -> None:
    """Check the statement after the named queries of WITH: they may also stand before an UPDATE, for example."""
    depth = 0
    for before, token in itertools.pairwise(found):
        if depth == 0 and before == _CLOSE and (token == _OPEN or token.kind == "word"):
            if token.value in ("as", "max"):  # after the columns of a named query
                continue
            if token.value not in _QUERY_STARTS:
                raise ValueError(f"expected a SELECT after WITH, got {token.value.upper()}")
            return
        depth += {_OPEN: 1, _CLOSE: -1}.get(token, 0)


SqlQuery = Annotated[str, AfterValidator(checked_query)]
SqlExpression = Annotated[str, AfterValidator(checked_expression)]
