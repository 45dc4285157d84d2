"""Which parts there are, how they are named and which options they have.

Packages declare their parts with what is imported here.
"""

from mvkit.registry.component import KINDS as KINDS
from mvkit.registry.component import Component as Component
from mvkit.registry.component import hookimpl as hookimpl
from mvkit.registry.plugins import available as available
from mvkit.registry.plugins import declare as declare
from mvkit.registry.plugins import lookup as lookup
from mvkit.registry.plugins import name_of as name_of
from mvkit.registry.plugins import problems as problems
from mvkit.registry.spec import Check as Check
from mvkit.registry.spec import as_part as as_part
from mvkit.registry.spec import factors as factors
from mvkit.registry.spec import field as field
from mvkit.registry.spec import flag as flag
from mvkit.registry.spec import integer as integer
from mvkit.registry.spec import is_spec as is_spec
from mvkit.registry.spec import names as names
from mvkit.registry.spec import number as number
from mvkit.registry.spec import numbers as numbers
from mvkit.registry.spec import one_of as one_of
from mvkit.registry.spec import part as part
from mvkit.registry.spec import parts as parts
from mvkit.registry.spec import positional_spec as positional_spec
from mvkit.registry.spec import spec as spec
from mvkit.registry.spec import to_dict as to_dict
