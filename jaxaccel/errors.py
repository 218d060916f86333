"""The one exception for mistakes that a person can mend, and how it names options."""

import re

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


class UserError(ValueError):
    """Something the user asked for cannot be done; the message is one line that says what to do instead.

    Command lines print it as ``error: MESSAGE`` and exit with code 2, without a traceback. Options in it are marked by
    `option`: ``str(error)`` has them as Python writes them, `as_flags` as a command line does.
    """

    @property
    def message(self) -> str:
        """The message with its marks, for the message of another `UserError`."""
        return str(self.args[0]) if self.args else ""

    @property
    def options(self) -> tuple[str, ...]:
        """Paths of the options that the message names, in order."""
        return tuple(path for path, _ in _NAMED.findall(self.message))

    def __str__(self) -> str:
        return _NAMED.sub(_as_keyword, self.message)

    def as_flags(self) -> str:
        """The message for a command line: ``--optimizer.clip-norm must be at least 0, got -1``."""
        return _NAMED.sub(_as_flag, self.message)

    def under(self, prefix: str, only: frozenset[str] | None = None) -> "UserError":
        """The same error of options that are fields of `prefix`: ``clip_norm`` becomes ``optimizer.clip_norm``.

        Args:
          prefix: a path.
          only: the first names of the paths to change; by default all.
        """

        def longer(found: re.Match[str]) -> str:
            if only is not None and found[1].partition(".")[0] not in only:
                return found[0]
            return f"{_MARK}{prefix}.{found[1]}{found[2] or ''}{_MARK}"

        return type(self)(_NAMED.sub(longer, self.message))


def _as_keyword(found: re.Match[str]) -> str:
    path, value = found[1], (found[2] or "")[1:]
    if not value:
        return path
    plain = value.isupper() or value in ("True", "False", "None") or re.fullmatch(r"[-+.\deE]+", value)
    return f"{path}={value if plain else repr(value)}"


def _as_flag(found: re.Match[str]) -> str:
    path, value = found[1], (found[2] or "")[1:]
    flag = "--" + path.replace("_", "-")
    return flag if value in ("", "True") else f"{flag} {value}"
