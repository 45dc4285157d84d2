"""Data sets by name."""

from mvkit.data.datasets.catalogue import SPLITS as SPLITS
from mvkit.data.datasets.catalogue import Splits as Splits
from mvkit.data.datasets.catalogue import load_dataset as load_dataset
from mvkit.data.datasets.catalogue import share as share
