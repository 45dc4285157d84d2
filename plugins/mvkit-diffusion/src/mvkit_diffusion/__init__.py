"""Flow matching and diffusion for mvkit. Imported at discovery, so it stays light."""

from mvkit.registry import Component, hookimpl

# kind, name, class or function, a few words for listings
PARTS = """
sampler    latent_diffusion latent_diffusion:LatentDiffusion diffusion of latents, any subset
sampler    latent_flow      latent_flow:LatentFlow           flow matching of latents, any subset
"""


@hookimpl
def mvkit_components() -> list[Component]:
    """Every part of `PARTS`."""
    components = []
    for line in PARTS.strip().splitlines():
        kind, name, target, summary = line.split(maxsplit=3)
        components.append(Component(kind, name, f"mvkit_diffusion.{target}", summary))
    return components
