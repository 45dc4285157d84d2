"""One library's side of `benchmarks/peers.py`: reads a command a line as JSON, answers a line as
JSON.

    python benchmarks/peer_worker.py mvkit|multivae|bare

All sides build the same networks, on the same data, and are timed by the same clock around their
own code. A command that the library cannot do is answered by `refused`, with its reason.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peer_nets import (
    ALPHA,
    BATCH,
    BOTTOM,
    CLUSTERS,
    DROPOUT,
    FEATURES,
    LATENT,
    LR,
    MESSAGE,
    PRIVATE,
    Bare,
    Peer,
    head,
    hidden,
    rows,
    subsets,
)
from torch import Tensor, nn


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
                (self.width,),
                likelihood,
                encoder=hidden(self.width, 2 * (LATENT + private)),
                decoder=hidden(LATENT + private, self.width),
            )
            for name in names
        }
        joint = {"name": "joint", "network": head(FEATURES * self.m)} | {
            "trunks": {name: hidden(self.width, FEATURES) for name in names}
        }
        if self.model == "jmvae":
            return mvkit.Model(
                made,
                latent_dim=LATENT,
                aggregator=joint,
                objective={"name": "jmvae", "alpha": ALPHA},
            )
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
            nets = {
                "encoder": hidden(self.width, 2 * BOTTOM),
                "decoder": hidden(BOTTOM, self.width),
            }
            low[name] = mvkit.Modality((self.width,), likelihood, private_dim=BOTTOM, **nets)
            nets = {"encoder": hidden(BOTTOM, MESSAGE), "decoder": hidden(LATENT, BOTTOM)}
            high[name] = mvkit.Modality((BOTTOM,), likelihood, **nets)
        fusion = {
            "name": "mean_message",
            "message_dim": MESSAGE,
            "head": head(MESSAGE),
            "dropout_rate": DROPOUT,
        }
        return mvkit.Stack(
            [
                mvkit.Model(low, latent_dim=0),
                mvkit.Model(high, latent_dim=LATENT, aggregator=fusion),
            ]
        )

    def stages(
        self, data: dict[str, Tensor], mask: Tensor | None, fused: bool
    ) -> list[Callable[[], None]]:
        from mvkit.training.optimizers import Adam
        from mvkit.training.stages import as_stages, trainable

        made = []
        self.frozen = (
            contextlib.ExitStack()
        )  # held as long as the models, each of which is for one stage alone
        for index in range(2 if self.model == "telbo" else 1):
            model = self.build().train()
            stage = as_stages(None, model, 2)[index]
            parameters = self.frozen.enter_context(trainable(model, stage.trainable))
            optimizer = Adam().optimizer(list(parameters), LR)  # fused
            objective = None if stage.objective is None else model.build_objective(stage.objective)
            made.append(
                self._step(model, model.conform(self._batch(data, mask)), objective, optimizer)
            )
        self.live = model.eval() if self.model == "telbo" else self.build().eval()
        return made

    @staticmethod
    def _step(
        model: Any, batch: Any, objective: Any, optimizer: torch.optim.Optimizer
    ) -> Callable[[], None]:
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

        mvkit.fit(
            self.build(),
            self._batch(data, mask),
            epochs=2,
            batch_size=BATCH,
            lr=LR,
            progress=False,
        )

    def likelihood(self, data: dict[str, Tensor], mask: Tensor | None, n: int) -> float:
        return float(self.live.log_likelihood(self._batch(data, mask), n=n).mean())

    def encode(self, data: dict[str, Tensor], mask: Tensor | None) -> None:
        if mask is not None:
            self.live.encode(self._batch(data, mask))
            return
        self.live.encode_subsets(data, subsets(self.names, self.model))


class Theirs(Peer):
    """multivae."""

    def build(self) -> Any:
        """A model with fresh networks."""
        from multivae import models

        options: dict[str, Any] = {"n_modalities": self.m, "latent_dim": LATENT}
        options["input_dims"] = dict.fromkeys(self.names, (self.width,))
        private = PRIVATE if self.model == "cmvae" else 0
        encoders = {
            k: _encoder(hidden(self.width, 2 * (LATENT + private)), LATENT, private)
            for k in self.names
        }
        decoders = {k: _decoder(hidden(LATENT + private, self.width)) for k in self.names}
        if self.model in ("jmvae", "telbo"):
            joint = _joint(
                {k: hidden(self.width, FEATURES) for k in self.names}, head(FEATURES * self.m)
            )
            if self.model == "jmvae":
                return models.JMVAE(
                    models.JMVAEConfig(**options, alpha=ALPHA, warmup=1), encoders, decoders, joint
                )
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
            {k: _encoder(hidden(self.width, 2 * BOTTOM), BOTTOM) for k in self.names},
            {k: _decoder(hidden(BOTTOM, self.width)) for k in self.names},
            {k: _encoder(hidden(BOTTOM, MESSAGE), MESSAGE) for k in self.names},
            _encoder(head(MESSAGE), LATENT),
            {k: _decoder(hidden(LATENT, BOTTOM)) for k in self.names},
        )

    def stages(
        self, data: dict[str, Tensor], mask: Tensor | None, fused: bool
    ) -> list[Callable[[], None]]:
        made = []
        for epoch in (1, 2) if self.model == "telbo" else (1,):
            model = self.build().train()
            optimizer = torch.optim.Adam(model.parameters(), LR, fused=True if fused else None)
            made.append(self._step(model, self._rows(data, mask), epoch, optimizer))
        self.live = model.eval() if self.model == "telbo" else self.build().eval()
        return made

    @staticmethod
    def _step(
        model: Any, batch: Any, epoch: int, optimizer: torch.optim.Optimizer
    ) -> Callable[[], None]:
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
        from multivae.trainers import (
            BaseTrainer,
            BaseTrainerConfig,
            MultistageTrainer,
            MultistageTrainerConfig,
        )

        two = self.model == "telbo"
        trainer, config = (
            (MultistageTrainer, MultistageTrainerConfig)
            if two
            else (BaseTrainer, BaseTrainerConfig)
        )
        with tempfile.TemporaryDirectory() as folder:
            options = {"output_dir": folder, "per_device_train_batch_size": BATCH, "num_epochs": 2}
            made = config(**options, learning_rate=LR, no_cuda=True)
            trainer(
                self.build(), train_dataset=self._rows(data, mask), training_config=made
            ).train()

    def likelihood(self, data: dict[str, Tensor], mask: Tensor | None, n: int) -> float:
        with torch.no_grad():
            return -float(self.live.compute_joint_nll(self._rows(data, mask), K=n)) / len(
                data["m0"]
            )

    @torch.no_grad()
    def encode(self, data: dict[str, Tensor], mask: Tensor | None) -> None:
        if mask is None:
            for given in subsets(self.names, self.model):
                self.live.encode(self._rows(data, None), cond_mod=given, return_mean=True)
            return
        patterns, which = mask.unique(
            dim=0, return_inverse=True
        )  # it encodes rows that observe the same
        for i, pattern in enumerate(patterns):
            chosen = {name: x[which == i] for name, x in data.items()}
            given = [name for name, seen in zip(self.names, pattern.tolist(), strict=True) if seen]
            self.live.encode(self._rows(chosen, None), cond_mod=given, return_mean=True)


def _encoder(network: nn.Module, d: int, p: int = 0) -> Any:
    """A network that emits locs and raw scales of d, then of p, numbers, in multivae's form; with
    d alone: messages.
    """
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
    """Lets torchvision, which multivae imports, be imported beside a torch for CPUs; no operator
    of it is used here.

    Its wheels on PyPI are built for CUDA, so its operators do not load, and their meta kernels
    miss them.
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


def answer(
    peer: Peer | None, command: dict[str, Any], kind: type[Peer]
) -> tuple[Peer | None, dict[str, Any]]:
    """The peer afterwards, and what came of a command: seconds, a value, the peak memory."""
    do = command.pop("do")
    if do == "make":
        peer = None
        gc.collect()
        return kind(**command), {}
    if do == "memory":
        return peer, {"peak MB": peak()}
    if peer is None:
        raise RuntimeError("no model")
    if do == "fuse":
        peer.fuse()
        return peer, {}
    if do == "once":
        peer.step()
        return peer, {}
    if do == "step":
        return peer, {"seconds": steady(peer.step)}
    n = command.pop("rows")
    arguments = (*rows(peer.m, n, peer.width, peer.missing, 1), *command.values())
    start = time.perf_counter()
    value = getattr(peer, do)(*arguments)
    found = {"seconds": time.perf_counter() - start}
    return peer, found if value is None else {**found, "value": value}


def peak() -> float:
    """The most memory that this process held, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # rusage would count what the parent held when it forked
        return next(
            int(line.split()[1]) / 1024
            for line in status.read_text().splitlines()
            if line.startswith("VmHWM")
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def steady(step: Callable[[], None], least: float = 0.3) -> float:
    """Seconds a step takes when others went before, as in training; at least one and, together, so
    many seconds.
    """
    start = time.perf_counter()
    step()  # caches went cold while another library had its turn
    took = time.perf_counter() - start
    if took > least:
        return took
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < least:
        step()
        count += 1
    return (time.perf_counter() - start) / count


def main() -> None:
    """Answers until standard input ends."""
    library = sys.argv[1]
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    _kept = (
        _vision() if library == "multivae" else None
    )  # a library that is collected takes its operators along
    peer: Peer | None = None
    with _replies() as answers:
        versions = {
            name: importlib.metadata.version(name) for name in {library, "torch"} - {"bare"}
        }
        print(json.dumps({"versions": versions}), file=answers, flush=True)
        for line in sys.stdin:
            try:
                peer, found = answer(
                    peer,
                    json.loads(line),
                    {"mvkit": Ours, "multivae": Theirs, "bare": Bare}[library],
                )
            except Exception as error:
                found = {"refused": f"{type(error).__name__}: {error}"[:300]}
            print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
