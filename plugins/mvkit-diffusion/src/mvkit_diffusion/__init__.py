"""Flow matching and diffusion for mvkit. Imported at discovery, so it stays light."""

from mvkit.registry import Component, hookimpl

# kind, name, class or function, a few words for listings
PARTS = """
objective  generative_augmentation information:GenerativeAugmentation exchanged latents tell
objective  mutual_information information:MutualInformation shared codes tell each other
recipe     d_cmvae          recipes:d_cmvae                  CMVAE with diffusion decoders
recipe     idmvae           recipes:idmvae                   shared and private information apart
recipe     mld              recipes:mld                      autoencoders, for latent diffusion
refiner    diffusion        diffusion:Diffusion              sharp draws by diffusion
sampler    latent_diffusion latent_diffusion:LatentDiffusion diffusion of latents, any subset
sampler    latent_flow      latent_flow:LatentFlow           flow matching of latents, any subset
schedule   then_refine      refined:ThenRefine               refiners after everything else
"""


@hookimpl
def mvkit_components() -> list[Component]:
    """Every part of `PARTS`."""
    components = []
    for line in PARTS.strip().splitlines():
        kind, name, target, summary = line.split(maxsplit=3)
        components.append(Component(kind, name, f"mvkit_diffusion.{target}", summary))
    return components
