"""Single cells and bulk omics for mvkit. Imported at discovery, so it stays light."""

from mvkit.registry import Component, hookimpl

# kind, name, class or function, a few words for listings
PARTS = """
aggregator mean               fusion:Mean                  mean of the experts, by moments
likelihood discretised_normal likelihoods:DiscretisedNormal normal law of log1p counts
network    last_latents       networks:LastLatents         decoders that see the last latents
objective  consistency        objectives:Consistency       draws of single modalities together
objective  jeffreys           objectives:Jeffreys          experts together, by KL both ways
objective  latent_kl          objectives:LatentKL          a further KL of the last latents
recipe     cite_mopoe         recipes:cite_mopoe           counts by a mixture of products
recipe     midas              recipes:midas                mosaics, the batch as a modality
recipe     multivi            recipes:multivi              genes and peaks, unpaired cells too
recipe     scvi               recipes:scvi                 counts of genes
recipe     totalvi            recipes:totalvi              genes, proteins on background
schedule   warmup             schedules:Warmup             AdamW, KL from 0 to 1
"""


@hookimpl
def mvkit_components() -> list[Component]:
    """Every part of `PARTS`."""
    components = []
    for line in PARTS.strip().splitlines():
        kind, name, target, summary = line.split(maxsplit=3)
        components.append(Component(kind, name, f"mvkit_omics.{target}", summary))
    return components
