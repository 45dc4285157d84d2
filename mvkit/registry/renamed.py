"""Renamed methods of parts: packages that still define the old ones work for one version."""

from __future__ import annotations

import warnings
from typing import ClassVar


class RenamedMethods:
    """Base of the abstract classes of parts; `renamed` maps old names of methods to new ones."""

    renamed: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for old, new in cls.renamed.items():
            if old not in vars(cls):
                continue
            warnings.warn(
                f"{cls.__qualname__}.{old} is now called {new}; the old name goes with the next "
                "version",
                DeprecationWarning,
                stacklevel=2,
            )
            setattr(cls, new, vars(cls)[old])
