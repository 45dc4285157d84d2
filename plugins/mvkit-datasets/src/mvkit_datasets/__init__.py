"""Data sets by name, read from files that the user has; imported at discovery, so kept light."""

from mvkit.registry import Component, hookimpl

# name, class, a few words for listings
PARTS = """
mnist         converted:MNIST        handwritten digits and their labels
fsdd          converted:FSDD         spoken digits as log-mel pictures
sign_digits   converted:SignDigits   photographs of signed digits
mfeat         converted:MFeat        six descriptions of a digit
rosmap        converted:ROSMAP       three omics, Alzheimer's disease
polymnist     composed:PolyMNIST     five pictures of a digit over photographs
spoken_digits composed:SpokenDigits  a digit written, spoken and signed
"""


@hookimpl
def mvkit_components() -> list[Component]:
    """Every part of `PARTS`."""
    components = []
    for line in PARTS.strip().splitlines():
        name, target, summary = line.split(maxsplit=2)
        components.append(Component("dataset", name, f"mvkit_datasets.{target}", summary))
    return components
