"""Which parts there are, how they are named, and what their options are: all that packages declare their parts with."""

from mvkit.registry.component import KINDS as KINDS
from mvkit.registry.component import Component as Component
from mvkit.registry.component import hookimpl as hookimpl
from mvkit.registry.plugins import available as available
from mvkit.registry.plugins import declare as declare
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
from mvkit.registry.spec import spec as spec
from mvkit.registry.spec import to_dict as to_dict
