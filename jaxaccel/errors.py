"""The one exception for mistakes that a person can mend, and how it names options."""

import re
from collections.abc import Callable

_MARK = "\x1a"
_NAMED = re.compile(f"{_MARK}([^{_MARK}=]*)(=[^{_MARK}]*)?{_MARK}")


def option(path: str, value: object = None) -> str:
    """An option inside the message of a `UserError`, which a command line prints as a flag and Python as a keyword.

        raise UserError(f"{option('optimizer.clip_norm')} must be at least 0, got -1")
        raise UserError(f"{directory} holds a run already: go on with {option('resume', True)}")

    Args:
      path: names of fields from the outermost options inwards, joined by dots: ``optimizer.clip_norm``.
      value: what to set it to, where the message says so; True is the mere flag. A word in capitals is a placeholder.
    """
    return f"{_MARK}{path}{'' if value is None else f'={value}'}{_MARK}"


def spell_options(message: str) -> str:
    """A message that is no error, with the options in it as Python writes them: ``task.fill_to``."""
    return _NAMED.sub(_as_keyword, message)


class UserError(ValueError):
    """Something the user asked for cannot be done; the message is one line that says what to do instead.

    Command lines print it as ``error: MESSAGE`` and exit with code 2, without a traceback. Options in it are marked by
    `option`: ``str(error)`` has them as Python writes them, `as_flags` as a command line does.

    Args:
      message: one line, with marks.
      owner: the class whose fields the options are, where the message does not say it.
    """

    def __init__(self, message: str, owner: str = "") -> None:
        super().__init__(message, owner) if owner else super().__init__(message)
        self.owner = owner

    @property
    def message(self) -> str:
        """The message with its marks, for the message of another `UserError`."""
        return str(self.args[0])

    @property
    def options(self) -> tuple[str, ...]:
        """Paths of the options that the message names, in order."""
        return tuple(path for path, _ in _NAMED.findall(self.message))

    def __str__(self) -> str:
        text = spell_options(self.message)
        return f"{self.owner}: {text}" if self.owner else text

    def as_flags(self) -> str:
        """The message for a command line: ``--optimizer.clip-norm must be at least 0, got -1``."""
        # Options of some object that a file made, say, are no flags.
        return str(self) if self.owner else _NAMED.sub(_as_flag, self.message)

    def of(self, owner: str) -> "UserError":
        """The same error of options that are fields of the class called `owner`."""
        return type(self)(self.message, self.owner or owner)

    def renamed(self, rename: Callable[[str], str]) -> "UserError":
        """The same error with the paths of its options from the outermost ones inwards, which need no owner."""
        return type(self)(
            _NAMED.sub(lambda found: f"{_MARK}{rename(found[1])}{found[2] or ''}{_MARK}", self.message)
        )

    def under(self, prefix: str) -> "UserError":
        """The same error of options that stand in the field `prefix`: ``clip_norm`` becomes ``optimizer.clip_norm``."""
        return self.renamed(lambda path: f"{prefix}.{path}" if prefix else path)


def _as_keyword(found: re.Match[str]) -> str:
    path, value = found[1], (found[2] or "")[1:]
    if not value:
        return path
    plain = value.isupper() or value in ("True", "False", "None") or re.fullmatch(r"[-+.\deE]+", value)
    return f"{path}={value if plain else repr(value)}"


def _as_flag(found: re.Match[str]) -> str:
    path, value = found[1], (found[2] or "")[1:]
    flag = "--" + path.partition("[")[0].replace("_", "-")
    return flag if value in ("", "True") else f"{flag} {value}"
