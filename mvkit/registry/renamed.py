"""Methods of parts that got another name: packages that still define the old one work for one version."""

from __future__ import annotations

import warnings


class RenamedMethods:
    """Base of the abstract classes of parts; a subclass lists its renamed methods in `renamed`, old to new."""

    renamed: dict[str, str] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for old, new in cls.renamed.items():
            if old in vars(cls):
                warnings.warn(
                    f"{cls.__qualname__}.{old} is now called {new}; the old name goes with the "
                    "next version",
                    DeprecationWarning,
                    stacklevel=2,
                )
                setattr(cls, new, vars(cls)[old])
