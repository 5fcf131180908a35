"""A function in a file of one's own, named `path/file.py:function`: found, loaded and called.

What goes wrong in it is told in one line that names the file and the line in it.
"""

import ast
import hashlib
import symtable
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from importlib.util import decode_source
from pathlib import Path
from types import ModuleType

from n2nfx.errors import CannotOperate, UsageError, described, did_you_mean

# What can give a module names that its source does not show at the top.
_NAMING = {"exec", "globals", "locals", "vars", "setattr", "__getattr__"}


def is_file(name: str) -> bool:
    """Whether a name means a file of Python, with or without a function in it."""
    return name.endswith(".py") or name.rpartition(":")[0].endswith(".py")


def canonical(name: str, example: str = "build") -> str:
    """The path with forward slashes, a colon and the function; raises UsageError for any other."""
    path, _, function = name.rpartition(":")
    if name.endswith(".py"):
        raise UsageError(f"{name} is a file: name the function in it too, as in {name}:{example}")
    return f"{Path(path).as_posix()}:{function}"


def require(canonical_name: str) -> Path:
    """The file, not opened; raises UsageError where it is not there."""
    path = Path(canonical_name.rpartition(":")[0])
    if not path.is_file():
        near = did_you_mean(path.name, [file.name for file in path.parent.glob("*.py")])
        raise UsageError(f"there is no file {canonical_name.rpartition(':')[0]}{near}")
    return path


def digest(name: str) -> str:
    """SHA-256 of the file. Raises UsageError where it is not there or cannot be read."""
    path = require(canonical(name))
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def require_function(canonical_name: str) -> None:
    """Raise UsageError where the file or the function is not there, by its source: nothing runs.

    Where the source does not show all its names, none is missed. Raises CannotOperate where it
    cannot be read, or is no Python.
    """
    path_text, _, name = canonical_name.rpartition(":")
    path = require(canonical_name)
    with _blaming(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the source's own are for who runs it
        content, file = path.read_bytes(), str(path.resolve())
        compile(content, file, "exec", dont_inherit=True)  # finds more faults than what follows
        source = decode_source(content)
        top = symtable.symtable(source, file, "exec").get_symbols()
        hides = any(map(_may_name, ast.walk(ast.parse(source))))
    bound = {one.get_name() for one in top if one.is_assigned() or one.is_imported()}
    if not hides and name not in bound:
        raise _absent(path_text, name, [one.get_name() for one in top if one.is_namespace()])


def load(canonical_name: str) -> Callable[..., object]:
    """The function; its file can import its neighbours while it is loaded, and while it is called.

    Raises UsageError where the file or the function is not there, CannotOperate for whatever the
    file raises, here and when the function is called.
    """
    path_text, _, name = canonical_name.rpartition(":")
    path = require(canonical_name)
    with _importable(path.parent):
        function = _function(path_text, _loaded(path), name)

    @wraps(function)
    def called(*args: object, **options: object) -> object:
        with _importable(path.parent), _blaming(path):
            return function(*args, **options)

    return called


def _may_name(node: ast.AST) -> bool:
    """Whether a piece of source may give its module a name that stands nowhere at its top."""
    match node:
        case ast.ImportFrom(names=[ast.alias(name="*")]) | ast.Global():
            return True
        case ast.Name(id=name) | ast.FunctionDef(name=name):
            return name in _NAMING
        case _:
            return False


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let a file import its neighbours while it is loaded and called."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:  # the file may have changed the path itself
            sys.path.remove(entry)


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Turn whatever a person's file raises into one line that names the file and its line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        line = _line_in(path, error)
        where = f"{path.as_posix()}:{line}" if line else path.as_posix()
        raise CannotOperate(f"{where}: {described(error)}") from error


def _line_in(path: Path, error: BaseException) -> int | None:
    file = str(path.resolve())
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return lines[-1] if lines else None


def _loaded(path: Path) -> ModuleType:
    """The file as a module with a private name, which stays known so that its classes pickle.

    The name is made from path and content, so an edited file is loaded anew. Compiled here
    and not by the import system, whose cached bytecode can be older than an edit.
    """
    file = path.resolve()
    source = file.read_bytes()
    digest = hashlib.sha256(str(file).encode() + b"\0" + source).hexdigest()
    name = f"_n2nfx_file_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module
    try:
        with _blaming(path):
            exec(compile(source, str(file), "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _function(path: str, module: ModuleType, name: str) -> Callable[..., object]:
    function = getattr(module, name, None)
    if callable(function):
        return function
    own = [
        key
        for key, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
    ]
    raise _absent(path, name, own)


def _absent(path: str, name: str, own: Sequence[str]) -> UsageError:
    has = f" (it has {', '.join(own)})" if own else " (it has none)"
    return UsageError(f"{path} has no function {name!r}{did_you_mean(name, own)}{has}")
