"""jsonschema, imported without the parsers that its own format checkers want.

Rules. Import jsonschema from here and only inside functions: it takes a while. With its "format" extras installed
(Jupyter brings them) it also imports a library that builds a grammar of all IRIs, a second or more, for checkers that
nothing here asks for: `formats` has its own. That import is put off until somebody calls one of those checkers, which
work as ever.

Must not know: schemas.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

_SLOW, _FUNCTION = "rfc3987_syntax", "is_valid_syntax"


@contextmanager
def _put_off() -> Iterator[None]:
    """Inside, ``from rfc3987_syntax import is_valid_syntax`` gives a function that imports it when it is called."""
    if _SLOW in sys.modules or find_spec(_SLOW) is None:
        yield
        return

    def is_valid_syntax(term: str, value: str) -> bool:
        return bool(getattr(import_module(_SLOW), _FUNCTION)(term, value))

    stand_in = ModuleType(_SLOW)
    setattr(stand_in, _FUNCTION, is_valid_syntax)
    sys.modules[_SLOW] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(_SLOW) is stand_in:
            del sys.modules[_SLOW]


with _put_off():
    import jsonschema as jsonschema
