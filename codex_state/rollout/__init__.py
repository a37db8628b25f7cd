"""The JSONL side: rollouts, the truth about threads.

Names are those of ``__init__.pyi``. They are imported when they are first used: a decoding process needs little of this
package, and should start in a moment.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
