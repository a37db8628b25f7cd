"""The state layer of Codex-style agent services.

Everything public is named in ``__init__.pyi``, once for type checkers and for Python. Names are imported when they are
first used, so that a command line that only prints its help doesn't wait for SQLAlchemy.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
