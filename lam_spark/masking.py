"""Recognises secrets: names that stand for one, and the parts of a text that hold one. Imports nothing of the package.

Error texts of other libraries may quote a connection string or a setting. They pass `masked` before they are shown,
logged or stored. The configuration refuses values in which `secret_names` finds a secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

MASK = "***"

# Parts of a name without its separators: `trustStorePassword`, `fs.s3a.access.key`, `aws_secret_access_key`.
_SECRET_PARTS = re.compile(
    "password|passwd|passphrase|secret|credential|apikey|accesskey|accountkey|privatekey|sharedkey|sharedaccesssignature"
)
_SECRET_WORDS = frozenset(["pwd", "token", "sas", "sig", "signature"])
# Last words of names that only say where a secret is, or how it is handled.
_REFERENCE = re.compile(
    "class|dir|directory|enabled?|endpoint|env|file|folder|helper|location|name|path|providers?|type|uri|url|variable"
)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
_SWITCH = re.compile("(true|false|null|none|)", re.IGNORECASE)
_NUMBER = re.compile("[0-9.]{1,12}")
# Of other names a number is no secret: `token_limit`.
_MAY_BE_NUMBER = re.compile("passw|passphrase|pwd|secret", re.IGNORECASE)

_VALUE = r"""'[^']*'|"[^"]*"|[^\s&;,"'(){}]+"""
# `name=value` in a connection string, an URL, a Java option; `"name": "value"` in JSON; `password: value`.
_ASSIGNMENT = re.compile(rf"(?P<name>[A-Za-z][\w.-]*)(?P<between>\s*=\s*)(?P<value>{_VALUE})")
_JSON = re.compile(r"""(?P<name>[A-Za-z][\w.-]*)(?P<between>["']\s*:\s*)(?P<value>"[^"]*"|'[^']*')""")
# Not after a dot: an error about the key `secrets.password` names it so.
_COLON = re.compile(
    rf"(?<![\w.])(?P<name>(?i:\w*(?:password|passwd|passphrase)))(?P<between>\s*:\s*)(?P<value>{_VALUE})"
)
# `//user:secret@host` and Oracle's `user/secret@host`.
_USER_INFO = re.compile(r"(?P<before>//[^/?;\s:@]*:|:thin:[^/@\s]+/)[^/?;\s@]+(?=@)")
_FORMS = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # AWS
    r"|\bdapi[0-9a-f]{32}\b"  # Databricks
    r"|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"  # JSON web token
    r"|(?<=Bearer )[\w.~+/=-]{8,}|(?<=Basic )[\w+/=-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END[^-]*-----|\Z)",
    re.DOTALL,
)
# In the environment `PWD` is the working folder, in a connection string a password.
_WORKING_FOLDERS = frozenset(["PWD", "OLDPWD"])
# A shorter value of an environment variable may occur in any text.
_MIN_CHARACTERS = 8


def is_secret_name(name: str) -> bool:
    """Whether a value of this name is a secret by its name, such as `accessToken` or `fs.s3a.secret.key`."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or _REFERENCE.fullmatch(words[-1]):
        return False
    return bool(_SECRET_PARTS.search("".join(words))) or not _SECRET_WORDS.isdisjoint(words)


def _is_secret(name: str, value: str) -> bool:
    """Whether this value of this name is a secret; a switch such as `true` never is."""
    if not is_secret_name(name) or _SWITCH.fullmatch(value):
        return False
    return _NUMBER.fullmatch(value) is None or _MAY_BE_NUMBER.search(name) is not None


def secret_names(value: Any, name: str = "") -> Iterator[str]:
    """Dotted names of the secrets in a value of the configuration: a text, or mappings and lists of texts.

    A secret that stands inside of a text has the name that the text gives it: `password=...` in an URL.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from secret_names(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from secret_names(inner, name)
    elif isinstance(value, str | int | float):
        if _is_secret(name, str(value)):
            yield name
        else:
            yield from (f"{name} ({part})" if name else part for part in _inner_names(str(value)))


def _inner_names(text: str) -> Iterator[str]:
    for pattern in (_ASSIGNMENT, _JSON, _COLON):
        for match in pattern.finditer(text):
            if _is_secret(match["name"], match["value"].strip("\"'")):
                is_java_option = match.string[: match.start()].endswith("-")
                yield match["name"].removeprefix("D") if is_java_option else match["name"]
    if _USER_INFO.search(text):
        yield "password"
    if _FORMS.search(text):
        yield "a key"


def masked(text: str) -> str:
    """A text with `***` in place of secrets: those that it names, and values of environment variables so named."""
    for name, value in os.environ.items():
        if len(value) >= _MIN_CHARACTERS and is_secret_name(name) and name not in _WORKING_FOLDERS:
            text = text.replace(value, MASK)
    text = _FORMS.sub(MASK, text)
    text = _USER_INFO.sub(lambda match: match["before"] + MASK, text)
    for pattern in (_ASSIGNMENT, _JSON, _COLON):
        text = pattern.sub(_mask_value, text)
    return text


def _mask_value(match: re.Match[str]) -> str:
    if not _is_secret(match["name"], match["value"].strip("\"'")):
        return match[0]
    return f"{match['name']}{match['between']}{MASK}"


def masked_values(value: Any) -> Any:
    """JSON values with all texts `masked`; of mappings also those whose key names a secret."""
    if isinstance(value, dict):
        return {
            key: MASK if isinstance(inner, str) and _is_secret(str(key), inner) else masked_values(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [masked_values(inner) for inner in value]
    return masked(value) if isinstance(value, str) else value
