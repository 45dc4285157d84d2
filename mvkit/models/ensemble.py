"""Ensemble: copies of one model that were trained from several seeds, asked together.

Axes: e models, n draws, b rows, m modalities, d latent, p private latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from mvkit.core.batch import Batch
from mvkit.core.decoding import Decodes
from mvkit.core.missingness import Missingness
from mvkit.core.modality import Modality
from mvkit.core.posterior import Posterior
from mvkit.core.validation import Schema
from mvkit.data.dataset import Rows
from mvkit.errors import RequestError, ShapeError, SpecError
from mvkit.models.answers import Answer, Answers, in_turns, over_models, spread, stacked
from mvkit.models.inference import Names, check_count, subsets_of
from mvkit.models.model import Model
from mvkit.models.multimodal import MultimodalModel, SeveralModels, check_model
from mvkit.registry.spec import to_dict


class Ensemble(SeveralModels):
    """Copies of one model, trained from several seeds: what they say, and how far they differ.

    An equal mixture of its models: `translate` and `sample` draw from all of them, and
    `log_likelihood` is that of their mean density. Latents of different models have nothing to do
    with one another, so that `encode`, `posterior`, `private`, `clusters` and `relevance` return
    those of each, and `decode` takes them so. Any other question goes to every model by `ask`.
    `mvkit.impute`, `mvkit.calibrate`, `mvkit.evaluate` and `mvkit.save` take an ensemble as they
    take a model; functions of latents, such as `mvkit.embed`, take one of its `members`.

    Args:
        models: of the same modalities, one at least.
        seeds: from which they were trained; none: they are not known.

    Raises:
        SpecError: no model, or models of other modalities.

    Example:
        >>> import torch, mvkit
        >>> models = [mvkit.Model({"a": (2,)}, latent_dim=1, seed=s) for s in range(3)]
        >>> ensemble = mvkit.Ensemble(models)
        >>> rows = {"a": torch.zeros(4, 2)}
        >>> ensemble.translate(rows, latent="mean")["a"].shape
        torch.Size([3, 4, 2])
        >>> ensemble.ask(lambda model: model.log_likelihood(rows, n=10)).sd.shape
        torch.Size([4])

    Reference: Lakshminarayanan, Pritzel and Blundell, Simple and Scalable Predictive Uncertainty
    Estimation using Deep Ensembles, 2017, https://arxiv.org/abs/1612.01474.
    """

    def __init__(self, models: Iterable[MultimodalModel], seeds: Sequence[int] = ()) -> None:
        super().__init__()
        members = list(models)
        _check_alike(members)
        self.models = nn.ModuleList(members)
        self.seeds = tuple(seeds)

    def __len__(self) -> int:
        return len(self.models)

    def __repr__(self) -> str:
        seeds = f", seeds {', '.join(map(str, self.seeds))}" if self.seeds else ""
        return f"Ensemble({len(self)} models{seeds})\n  " + repr(self.first).replace("\n", "\n  ")

    @property
    def members(self) -> tuple[MultimodalModel, ...]:
        """The models."""
        return cast(tuple[MultimodalModel, ...], tuple(self.models))

    @property
    def first(self) -> MultimodalModel:
        """The first model, which knows what all have in common."""
        return self.members[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities, in order."""
        return self.first.names

    @property
    def modalities(self) -> dict[str, Modality]:
        """What they are."""
        return self.first.modalities

    @property
    def schema(self) -> Schema:
        """What the models expect of a batch."""
        return self.first.schema

    @property
    def decoding(self) -> Decodes:
        """What generates in the first model."""
        return self.first.decoding

    @property
    def missingness(self) -> Missingness | None:
        """Why values are missing, as the first model has it; None: at random."""
        return self.first.missingness

    @property
    def like(self) -> Tensor:
        """A tensor of the models' dtype and device."""
        return self.first.like

    @property
    def samplers(self) -> tuple[str, ...]:
        """Names of the samplers that all models have fitted."""
        return tuple(
            name
            for name in self.first.samplers
            if all(name in model.samplers for model in self.members)
        )

    @property
    def latent_dim(self) -> int:
        """Refused, as `n_clusters` is: latents are those of each model.

        Raises:
            RequestError: always.
        """
        raise self.latents_of_each()

    n_clusters = latent_dim

    def latents_of_each(self) -> RequestError:
        """The error of what looks at the latents of one model."""
        return RequestError(
            f"latents of an ensemble are those of each of its {len(self)} models; expected one "
            "model; take one of its .members"
        )

    def modality(self, name: str) -> Modality:
        """The modality of a name, or an error that suggests one."""
        return self.first.modality(name)

    def conform(self, data: Rows) -> Batch:
        """Data as a checked batch on the models' device."""
        return self.first.conform(data)

    def header(self) -> dict[str, Any]:
        """The ensemble as plain JSON data."""
        models = [model.header() for model in self.members]
        return {"name": "ensemble", "seeds": list(self.seeds), "models": models}

    def check_savable(self) -> None:
        """Raises CheckpointError for a model that no file can hold."""
        for model in self.members:
            model.check_savable()

    def in_blocks(
        self,
        function: Callable[[Batch], dict[str, Tensor]],
        data: Rows,
        *,
        dim: int = 0,
        rows: int | None = None,
    ) -> dict[str, Tensor]:
        """Evaluates a function of batches block by block; see `MultimodalModel.in_blocks`."""
        return self.first.in_blocks(function, data, dim=dim, rows=rows)

    def ask(self, question: Callable[[MultimodalModel], Answer]) -> Answers[Answer]:
        """Answers of all models to one question, their mean and their spread.

        Args:
            question: from a model to a tensor, or to a mapping of tensors, of the same shape for
                each; about the data, not about latents, which each model has its own.
        """
        answers = tuple(question(model) for model in self.members)
        mean = over_models(answers, lambda x: x.mean(0))
        sd = over_models(answers, spread)
        return Answers(answers, mean, sd)

    def encode(self, batch: Rows, given: Names = None, **options: Any) -> Tensor:
        """Posterior means by each model, (e, b, d); options as of `Model.encode`.

        They have no mean over the models, whose latents are turned against one another.
        """
        return torch.stack([model.encode(batch, given, **options) for model in self.members])

    def encode_subsets(
        self, batch: Rows, subsets: Iterable[Names] | None = None, **options: Any
    ) -> dict[tuple[str, ...], Tensor]:
        """Posterior means by each model given each of several sets, {set: (e, b, d)}."""
        sets = subsets_of(subsets, self.names)
        each = [model.encode_subsets(batch, sets, **options) for model in self.members]
        return {names: torch.stack([codes[names] for codes in each]) for names in sets}

    def posterior(self, batch: Rows, given: Names = None, **options: Any) -> tuple[Posterior, ...]:
        """q(z|x_given) of each model; options as of `Model.posterior`."""
        return tuple(model.posterior(batch, given, **options) for model in self.members)

    def private(self, batch: Rows) -> dict[str, Tensor]:
        """Means of the private latents by each model, {name: (e, b, p)}."""
        return stacked([model.private(batch) for model in self.members])

    def decode(
        self, z: Tensor, private: Mapping[str, Tensor] | None = None, **options: Any
    ) -> dict[str, Tensor]:
        """Decoder means {name: (e, ..., *shape)} of each model at latents of its own.

        Args:
            z: shared latents of each model, (e, ..., d), as `encode` returns them.
            private: private latents of each model, {name: (e, ..., p)}.
            options: as of `Model.decode`.

        Raises:
            ShapeError: latents of another number of models.
        """
        latents = {"z": z, **(private or {})}
        for name, latent in latents.items():
            if latent.shape[:1] != (len(self),):
                raise ShapeError(
                    f"decode: {name} has shape {tuple(latent.shape)}; expected ({len(self)}, …), "
                    "latents of each model, as encode returns them"
                )
        data = []
        for i, model in enumerate(self.members):
            own = {name: w[i] for name, w in (private or {}).items()}
            data.append(model.decode(z[i], own, **options))
        return stacked(data)

    def relevance(self) -> Tensor:
        """How much each modality needs each latent dimension of each model, (e, d, m).

        Raises:
            RequestError: models whose decoders do not tell.
        """
        tables = []
        for model in self.members:
            if not isinstance(model, Model):
                raise RequestError(
                    f"relevance: a {type(model).__name__} has no decoder that tells; expected "
                    "models of one level; ask the levels of ensemble.members"
                )
            tables.append(model.relevance())
        return torch.stack(tables)

    def loss(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refused: models are trained one by one.

        Raises:
            RequestError: always.
        """
        raise RequestError(
            "loss: an ensemble is not trained as a whole; expected one model; train copies by "
            "mvkit.fit(model, data, seeds=…), or look at the losses of ensemble.members"
        )

    forward = loss

    def clusters(self, batch: Rows, **options: Any) -> Tensor:
        """Clusters by each model, (e, b), numbered by each in its own way."""
        return torch.stack([model.clusters(batch, **options) for model in self.members])

    def translate(
        self, batch: Rows, to: Names = None, given: Names = None, n: int = 1, **options: Any
    ) -> dict[str, Tensor]:
        """Modalities `to` generated from those `given`, {name: ((n e), b, *shape)}.

        N draws of each model, the models taking turns; other options as of `Model.translate`. The
        mean over the first axis is the ensemble's, and its spread is within models and between
        them.
        """
        n = check_count(n)
        draws = [model.translate(batch, to, given, n, **options) for model in self.members]
        return in_turns(draws)

    def sample(self, n: int, **options: Any) -> dict[str, Tensor]:
        """Rows from the prior, {name: (n, *shape)}, drawn from the models in turn.

        Args:
            n: number of rows.
            options: as of `Model.sample`, but for `latents` and `cluster`.

        Raises:
            RequestError: an option that has a meaning in one model alone.
        """
        n = check_count(n)
        for option in ("latents", "cluster"):
            if options.get(option):
                raise RequestError(
                    f"sample: {option}={options[option]!r}, which each model of an ensemble has "
                    f"its own; expected none; ask one of ensemble.members"
                )
        each = math.ceil(n / len(self))
        rows = in_turns([model.sample(each, **options) for model in self.members])
        return {name: x[:n] for name, x in rows.items()}

    def log_weights(self, batch: Rows, n: int, **options: Any) -> Tensor:
        """Log importance weights ((n e), b): n draws of each model, the models taking turns.

        Their log-mean-exp estimates the log of the models' mean density of what each row has.
        """
        log_w = [model.log_weights(batch, n, **options) for model in self.members]
        return rearrange(log_w, "e n b -> (n e) b")

    def log_likelihood(self, batch: Rows, *arguments: Any, **options: Any) -> Tensor:
        """Log of the models' mean density of each row in nats, (b,); see `Model.log_likelihood`.

        Of conditionals, `given=…`, it is the mean of the models' conditional densities.
        """
        log_px = [model.log_likelihood(batch, *arguments, **options) for model in self.members]
        return torch.logsumexp(torch.stack(log_px), 0) - math.log(len(self))


def check_models(model: object, where: str) -> None:
    """Raises RequestError, which names the function, for what is no model and no ensemble."""
    if not isinstance(model, Ensemble):
        check_model(model, where)


def members_of(model: MultimodalModel | Ensemble) -> tuple[MultimodalModel, ...]:
    """The models of an ensemble; of a model, itself alone."""
    return model.members if isinstance(model, Ensemble) else (model,)


def draws_of_each(model: MultimodalModel | Ensemble, n: int) -> int:
    """How often each model draws, so that all of them draw n times at least."""
    return -(-n // len(model)) if isinstance(model, Ensemble) else n


def _check_alike(models: list[MultimodalModel]) -> None:
    """Raises SpecError unless there are models, all of the same modalities."""
    if not models:
        raise SpecError("an ensemble of no models; expected one at least", "models")
    for i, model in enumerate(models):
        if not isinstance(model, MultimodalModel):
            raise SpecError(
                f"got {type(model).__name__}; expected a Model or a Stack", f"models.{i}"
            )
        if _data_of(model) != _data_of(models[0]):
            raise SpecError(
                f"its modalities {list(model.names)} are not those of the first, "
                f"{list(models[0].names)}, in names, shapes or transforms; expected copies of one "
                "model",
                f"models.{i}",
            )


def _data_of(model: MultimodalModel) -> list[Any]:
    """What a model takes its data to be: names, shapes and transforms, in order."""
    data = []
    for name in model.names:
        modality = model.modalities[name]
        steps = to_dict(modality.transform)
        data.append((name, modality.raw_shape, modality.shape, steps))
    return data
