"""One library's side of `benchmarks/peers.py`: reads a command a line as JSON, answers a line as JSON.

    python benchmarks/peer_worker.py mvkit|multivae

Both sides build the same networks from `mlp`, on the same data, and are timed by the same clock around their own code.
A command that the library cannot do is answered by `refused`, with its reason.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import itertools
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

BATCH, LATENT, WIDTH, PRIVATE, MESSAGE, FEATURES = 128, 16, 784, 4, 64, 128
BOTTOM, CLUSTERS, DROPOUT, ALPHA, LR = 16, 10, 0.5, 0.1, 1e-3


def mlp(before: int, *after: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for a, b in pairwise((before, *after)):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def hidden(before: int, after: int) -> nn.Sequential:
    """The network of every encoder and decoder."""
    return mlp(before, 512, 512, after)


def head(before: int) -> nn.Sequential:
    """The network from joint features, or the mean message, to the joint posterior."""
    return mlp(before, 256, 2 * LATENT)


def rows(m: int, n: int, missing: bool, seed: int) -> tuple[dict[str, Tensor], Tensor | None]:
    """Data {name: (n, width)} and what is observed, (n, m) bool or None: half of it, one modality a row at least."""
    generator = torch.Generator().manual_seed(seed)
    data = {f"m{i}": torch.rand(n, WIDTH, generator=generator) for i in range(m)}
    if not missing:
        return data, None
    mask = torch.rand(n, m, generator=generator) < 0.5
    mask[torch.arange(n), torch.randint(m, (n,), generator=generator)] = True
    return data, mask


def subsets(names: list[str], model: str) -> list[list[str]]:
    """Sets of modalities to encode from: all there are; for TELBO each alone and all, which is what both can."""
    sizes = [1, len(names)] if model == "telbo" else range(1, len(names) + 1)
    return [list(s) for size in sizes for s in itertools.combinations(names, size)]


class Peer(ABC):
    """A library with a model. To implement one, write these; a step goes once through each of the model's stages."""

    def __init__(self, model: str, m: int, missing: bool, seed: int) -> None:
        torch.manual_seed(seed)
        self.model, self.m, self.missing, self.names = model, m, missing, [f"m{i}" for i in range(m)]
        self.steps = self.stages(*rows(m, BATCH, missing, seed))

    @abstractmethod
    def stages(self, data: dict[str, Tensor], mask: Tensor | None) -> list[Callable[[], None]]:
        """A training step on a batch, for each stage."""

    @abstractmethod
    def train(self, data: dict[str, Tensor], mask: Tensor | None) -> None:
        """Two epochs by the library's own trainer."""

    @abstractmethod
    def likelihood(self, data: dict[str, Tensor], mask: Tensor | None, n: int) -> float:
        """Mean joint log-likelihood of rows by n importance samples."""

    @abstractmethod
    def encode(self, data: dict[str, Tensor], mask: Tensor | None) -> None:
        """Posterior means: from every set of `subsets`, or, of incomplete rows, from what they have."""

    def step(self) -> None:
        """A step of each stage."""
        for step in self.steps:
            step()


class Ours(Peer):
    """mvkit."""

    def build(self) -> Any:
        """A model with fresh networks."""
        import mvkit
        from mvkit import recipes

        likelihood, names = {"name": "normal", "scale": 1.0}, self.names
        private = PRIVATE if self.model == "cmvae" else 0
        made = {
            name: mvkit.Modality(
                (WIDTH,),
                likelihood,
                encoder=hidden(WIDTH, 2 * (LATENT + private)),
                decoder=hidden(LATENT + private, WIDTH),
            )
            for name in names
        }
        joint = {"name": "joint", "network": head(FEATURES * self.m)} | {
            "trunks": {name: hidden(WIDTH, FEATURES) for name in names}
        }
        if self.model == "jmvae":
            return mvkit.Model(made, latent_dim=LATENT, aggregator=joint, objective={"name": "jmvae", "alpha": ALPHA})
        if self.model == "telbo":
            joint["incomplete"] = "skip"
            options = {"objective": "telbo", "schedule": "joint_then_unimodal"}
            return mvkit.Model(made, latent_dim=LATENT, aggregator=joint, **options)
        if self.model == "mopoe":
            return recipes.mopoe(made, LATENT)
        if self.model == "cmvae":
            return recipes.cmvae(made, LATENT, private_dim=PRIVATE, clusters=CLUSTERS, samples=1)
        low, high = {}, {}
        for name in names:
            nets = {"encoder": hidden(WIDTH, 2 * BOTTOM), "decoder": hidden(BOTTOM, WIDTH)}
            low[name] = mvkit.Modality((WIDTH,), likelihood, private_dim=BOTTOM, **nets)
            nets = {"encoder": hidden(BOTTOM, MESSAGE), "decoder": hidden(LATENT, BOTTOM)}
            high[name] = mvkit.Modality((BOTTOM,), likelihood, **nets)
        fusion = {"name": "mean_message", "message_dim": MESSAGE, "head": head(MESSAGE), "dropout_rate": DROPOUT}
        return mvkit.Stack([mvkit.Model(low, latent_dim=0), mvkit.Model(high, latent_dim=LATENT, aggregator=fusion)])

    def stages(self, data: dict[str, Tensor], mask: Tensor | None) -> list[Callable[[], None]]:
        from mvkit.stages import as_stages, trainable

        made = []
        self.frozen = contextlib.ExitStack()  # held as long as the models, each of which is for one stage alone
        for index in range(2 if self.model == "telbo" else 1):
            model = self.build().train()
            stage = as_stages(None, model, 2)[index]
            parameters = self.frozen.enter_context(trainable(model, stage.trainable))
            optimizer = torch.optim.Adam(parameters, LR, fused=True)
            objective = None if stage.objective is None else model.build_objective(stage.objective)
            made.append(self._step(model, model.conform(self._batch(data, mask)), objective, optimizer))
        self.live = model.eval() if self.model == "telbo" else self.build().eval()
        return made

    @staticmethod
    def _step(model: Any, batch: Any, objective: Any, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            model(batch, objective=objective).loss.backward()
            optimizer.step()

        return step

    @staticmethod
    def _batch(data: dict[str, Tensor], mask: Tensor | None) -> Any:
        import mvkit

        return mvkit.Batch(data, mask)

    def train(self, data: dict[str, Tensor], mask: Tensor | None) -> None:
        import mvkit

        mvkit.fit(self.build(), self._batch(data, mask), epochs=2, batch_size=BATCH, lr=LR, progress=False)

    def likelihood(self, data: dict[str, Tensor], mask: Tensor | None, n: int) -> float:
        return float(self.live.log_likelihood(self._batch(data, mask), n=n).mean())

    def encode(self, data: dict[str, Tensor], mask: Tensor | None) -> None:
        if mask is not None:
            self.live.encode(self._batch(data, mask))
            return
        for given in subsets(self.names, self.model):
            self.live.encode(data, given=given)


class Theirs(Peer):
    """multivae."""

    def build(self) -> Any:
        """A model with fresh networks."""
        from multivae import models

        options: dict[str, Any] = {"n_modalities": self.m, "latent_dim": LATENT}
        options["input_dims"] = dict.fromkeys(self.names, (WIDTH,))
        private = PRIVATE if self.model == "cmvae" else 0
        encoders = {k: _encoder(hidden(WIDTH, 2 * (LATENT + private)), LATENT, private) for k in self.names}
        decoders = {k: _decoder(hidden(LATENT + private, WIDTH)) for k in self.names}
        if self.model in ("jmvae", "telbo"):
            joint = _joint({k: hidden(WIDTH, FEATURES) for k in self.names}, head(FEATURES * self.m))
            if self.model == "jmvae":
                return models.JMVAE(models.JMVAEConfig(**options, alpha=ALPHA, warmup=1), encoders, decoders, joint)
            return models.TELBO(models.TELBOConfig(**options, warmup=1), encoders, decoders, joint)
        if self.model == "mopoe":
            return models.MoPoE(models.MoPoEConfig(**options), encoders, decoders)
        if self.model == "cmvae":
            config = models.CMVAEConfig(
                **options,
                K=1,
                prior_and_posterior_dist="normal",
                modalities_specific_dim=PRIVATE,
                reconstruction_option="single_prior",
                number_of_clusters=CLUSTERS,
            )
            return models.CMVAE(config, encoders, decoders)
        config = models.NexusConfig(
            **options,
            modalities_specific_dim=dict.fromkeys(self.names, BOTTOM),
            dropout_rate=DROPOUT,
            msg_dim=MESSAGE,
            warmup=1,
        )
        return models.Nexus(
            config,
            {k: _encoder(hidden(WIDTH, 2 * BOTTOM), BOTTOM) for k in self.names},
            {k: _decoder(hidden(BOTTOM, WIDTH)) for k in self.names},
            {k: _encoder(hidden(BOTTOM, MESSAGE), MESSAGE) for k in self.names},
            _encoder(head(MESSAGE), LATENT),
            {k: _decoder(hidden(LATENT, BOTTOM)) for k in self.names},
        )

    def stages(self, data: dict[str, Tensor], mask: Tensor | None) -> list[Callable[[], None]]:
        made = []
        for epoch in (1, 2) if self.model == "telbo" else (1,):
            model = self.build().train()
            optimizer = torch.optim.Adam(model.parameters(), LR, fused=True)
            made.append(self._step(model, self._rows(data, mask), epoch, optimizer))
        self.live = model.eval() if self.model == "telbo" else self.build().eval()
        return made

    @staticmethod
    def _step(model: Any, batch: Any, epoch: int, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        def step() -> None:
            loss = model(batch, epoch=epoch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step

    @staticmethod
    def _rows(data: dict[str, Tensor], mask: Tensor | None) -> Any:
        from multivae.data.datasets import IncompleteDataset, MultimodalBaseDataset

        if mask is None:
            return MultimodalBaseDataset(data)
        return IncompleteDataset(data, dict(zip(data, mask.unbind(1), strict=True)))

    def train(self, data: dict[str, Tensor], mask: Tensor | None) -> None:
        from multivae.trainers import BaseTrainer, BaseTrainerConfig, MultistageTrainer, MultistageTrainerConfig

        two = self.model == "telbo"
        trainer, config = (MultistageTrainer, MultistageTrainerConfig) if two else (BaseTrainer, BaseTrainerConfig)
        with tempfile.TemporaryDirectory() as folder:
            options = {"output_dir": folder, "per_device_train_batch_size": BATCH, "num_epochs": 2}
            made = config(**options, learning_rate=LR, no_cuda=True)
            trainer(self.build(), train_dataset=self._rows(data, mask), training_config=made).train()

    def likelihood(self, data: dict[str, Tensor], mask: Tensor | None, n: int) -> float:
        with torch.no_grad():
            return -float(self.live.compute_joint_nll(self._rows(data, mask), K=n)) / len(data["m0"])

    @torch.no_grad()
    def encode(self, data: dict[str, Tensor], mask: Tensor | None) -> None:
        if mask is None:
            for given in subsets(self.names, self.model):
                self.live.encode(self._rows(data, None), cond_mod=given, return_mean=True)
            return
        patterns, which = mask.unique(dim=0, return_inverse=True)  # it encodes rows that observe the same
        for i, pattern in enumerate(patterns):
            chosen = {name: x[which == i] for name, x in data.items()}
            given = [name for name, seen in zip(self.names, pattern.tolist(), strict=True) if seen]
            self.live.encode(self._rows(chosen, None), cond_mod=given, return_mean=True)


def _encoder(network: nn.Module, d: int, p: int = 0) -> Any:
    """A network that emits locs and raw scales of d, then of p, numbers, in multivae's form; with d alone: messages."""
    from multivae.models.base import BaseEncoder, ModelOutput
    from multivae.models.nn.base_architectures import BaseMultilatentEncoder

    class Encoder(BaseMultilatentEncoder if p else BaseEncoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network, self.latent_dim, self.style_dim = network, d, p

        def forward(self, x: Tensor) -> Any:
            out = self.network(x)
            if out.shape[-1] == d:
                return ModelOutput(embedding=out)
            found = ModelOutput(embedding=out[..., :d], log_covariance=out[..., d : 2 * d])
            if p:
                found["style_embedding"] = out[..., 2 * d : 2 * d + p]
                found["style_log_covariance"] = out[..., 2 * d + p :]
            return found

    return Encoder()


def _decoder(network: nn.Module) -> Any:
    """A network in multivae's form."""
    from multivae.models.base import BaseDecoder, ModelOutput

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.network(z))

    return Decoder()


def _joint(trunks: dict[str, nn.Module], top: nn.Module) -> Any:
    """The joint encoder in multivae's form."""
    from multivae.models.base import ModelOutput
    from multivae.models.nn.base_architectures import BaseJointEncoder

    class Joint(BaseJointEncoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.trunks, self.top, self.latent_dim = nn.ModuleDict(trunks), top, LATENT

        def forward(self, x: dict[str, Tensor]) -> Any:
            out = self.top(torch.cat([trunk(x[name]) for name, trunk in self.trunks.items()], -1))
            return ModelOutput(embedding=out[..., :LATENT], log_covariance=out[..., LATENT:])

    return Joint()


def _vision() -> Any:
    """Lets torchvision, which multivae imports, be imported beside a torch for CPUs; no operator of it is used here.

    Its wheels on PyPI are built for CUDA, so its operators do not load, and their meta kernels miss them.
    """
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # it did load
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


@contextlib.contextmanager
def _replies() -> Iterator[Any]:
    """Standard output for answers alone; whatever a library prints goes to standard error."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        yield answers


def answer(peer: Peer | None, command: dict[str, Any], kind: type[Peer]) -> tuple[Peer | None, dict[str, Any]]:
    """The peer afterwards, and what came of a command: seconds, a value, the peak memory."""
    do = command.pop("do")
    if do == "make":
        peer = None
        gc.collect()
        return kind(**command), {}
    if do == "memory":
        return peer, {"peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if peer is None:
        raise RuntimeError("no model")
    arguments: tuple[Any, ...] = ()
    if do != "step":
        n = command.pop("rows")
        arguments = (*rows(peer.m, n, peer.missing, 1), *command.values())
    start = time.perf_counter()
    value = getattr(peer, do)(*arguments)
    found = {"seconds": time.perf_counter() - start}
    return peer, found if value is None else {**found, "value": value}


def main() -> None:
    """Answers until standard input ends."""
    library = sys.argv[1]
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    _kept = _vision() if library == "multivae" else None  # a library that is collected takes its operators along
    peer: Peer | None = None
    with _replies() as answers:
        versions = {name: importlib.metadata.version(name) for name in (library, "torch")}
        print(json.dumps({"versions": versions}), file=answers, flush=True)
        for line in sys.stdin:
            try:
                peer, found = answer(peer, json.loads(line), Ours if library == "mvkit" else Theirs)
            except Exception as error:
                found = {"refused": f"{type(error).__name__}: {error}"[:300]}
            print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
