"""A selection rule in a Python file that a recipe names: the one place where such a file is read and run.

No torch here; a rule that imports it has its file imported with it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from regate.errors import ConfigError
from regate.selection import SelectionMethod, own_method


@dataclass(frozen=True, slots=True)
class SelectionFile:
    """A score function in a file, loaded when this is made, so on every process that reads the settings.

    Attributes:
        file: relative paths start at the working directory.
        function: its name there; it declares its signals by its parameters, as those of `regate.selection` do.
        sha256: of the file; filled in where it is not given.
        method: what the gate ranks by.

    Raises:
        ConfigError: the file cannot be read or run, is another than `sha256` says, or its function is no score.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    file: str
    function: str
    sha256: str | None = None
    method: SelectionMethod = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        path = Path(self.file)
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe or device may never end
            raise ConfigError(f"file {self.file} is a pipe, socket or device, not a file")
        try:
            source = path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"file {self.file} cannot be read: {error.strerror}; relative paths start at {Path.cwd()}"
            ) from None
        sha256 = hashlib.sha256(source).hexdigest()
        if self.sha256 not in (None, sha256):
            raise ConfigError(
                f"file {self.file} is not the one that these settings were made with (sha256 {sha256[:12]}, "
                f"wanted {str(self.sha256)[:12]}); put that one back, or start a run with this one"
            )
        object.__setattr__(self, "sha256", sha256)
        object.__setattr__(self, "method", _load(self.file, source, self.function))

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process loads the function anew: it belongs to no module that could be imported by name."""
        return type(self), (self.file, self.function, self.sha256)

    def __str__(self) -> str:
        return f"{self.function} of {Path(self.file).name}"


def _load(file: str, source: bytes, function: str) -> SelectionMethod:
    names: dict[str, Any] = {"__name__": f"selection_{Path(file).stem}", "__file__": str(Path(file).absolute())}
    try:
        exec(compile(source, file, "exec"), names)
    except (Exception, SystemExit) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ConfigError(f"file {file} cannot be run{line}: {type(error).__name__}: {error}") from error
    score = names.get(function)
    if not callable(score):
        defined = sorted(name for name, value in names.items() if callable(value) and not name.startswith("_"))
        raise ConfigError(
            f"function {function} is not in {file}; it defines {', '.join(defined) or 'no function'}"
        )
    method = own_method(score)
    return replace(method, label=f"{function} of {Path(file).name}", origin=f"{function} of {file}")
