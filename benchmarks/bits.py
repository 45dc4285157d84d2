"""Writes the numbers of many models to a file, or compares with a file written before: a change of
layout keeps each bit.

`python benchmarks/bits.py write FILE` before, `python benchmarks/bits.py compare FILE` after, on
one machine with the same torch. Groups of cases (`losses`, `outputs`, `recipes`, `runs`, `data`)
may be named after the file.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

import mvkit
from mvkit import Batch, Modality, Model, SpecError, recipes

AGGREGATORS = ("poe", "moe", "mopoe", "joint", "mean_message", "gpoe", "wasserstein", "set")
PRIORS = ("standard", "learnable", "mog", "vamp")
OBJECTIVES = ("elbo", "telbo", "jmvae", "iwae", "dreg", "mvtcae", "crmvae")
FAMILIES = ("normal", "normal_softplus", "laplace_softmax")
MORE = (
    {"name": "elbo", "condition": "unimodal", "reduce": "sum", "reconstruct": "own"},
    {"name": "elbo", "condition": "subset", "reconstruct": "own"},
    {"name": "elbo", "density": "mixture", "samples": 3, "draw": "iid"},
    {"name": "elbo", "reconstruct": "own", "weights": {"a": 2.0}},
    {"name": "align", "estimate": "samples"},
    {"name": "sum", "terms": ["elbo", "align"], "weights": [1.0, 0.5]},
    {"name": "dreg", "kl_weight": 0.5, "samples": 4, "bound": "tight"},
)
SPECIAL = (
    {"aggregator": {"name": "mopoe", "max_subsets": 2}},
    {"aggregator": {"name": "mopoe", "subsets": [["a"], ["a", "b"]]}},
    {"aggregator": {"name": "mopoe", "inference": "mixture", "prior_expert": "all"}},
    {"aggregator": {"name": "joint", "incomplete": "skip"}, "objective": "telbo"},
    {"aggregator": {"name": "joint", "correct_prior": True}},
    {"aggregator": {"name": "mean_message", "dropout_rate": 0.7}},
    {"aggregator": {"name": "poe", "prior_expert": False}},
    {"aggregator": "top_down_poe", "prior": "top_down"},
    {"aggregator": "moe", "prior": "posterior_mixture"},
    {"aggregator": "moe", "prior": {"name": "mog", "learn_scale": True}, "rescale": "dims"},
    {"aggregator": "moe", "private_from": "observed"},
    {"aggregator": "mopoe", "private_from": "evidence"},
)
Values = dict[str, torch.Tensor]


def modalities(private: int = 0) -> dict[str, Modality]:
    """Three small modalities of three likelihoods."""
    network = {"name": "mlp", "hidden": [5]}
    options = {"encoder": network, "decoder": network, "private_dim": private}
    return {
        "a": Modality((3,), {"name": "normal", "scale": "optimal"}, **options),
        "b": Modality((2, 2), "bernoulli", **options),
        "c": Modality((4,), "categorical", private_beta=0.7, weight=1.5, **options),
    }


def model(private: int = 0, **options: object) -> Model | None:
    """A small model, or None where the combination is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Model(modalities(private), **{"latent_dim": 2, "seed": 0, **options})
        except SpecError:
            return None


def rows(b: int = 11, missing: bool = True) -> Batch:
    """Rows that show every pattern of observed modalities, and single missing elements."""
    generator = torch.Generator().manual_seed(1)
    data = {
        "a": torch.randn(b, 3, generator=generator),
        "b": torch.rand(b, 2, 2, generator=generator),
        "c": torch.eye(4)[torch.randint(4, (b,), generator=generator)],
    }
    if not missing:
        return Batch(data)
    data["a"][0, 1] = torch.nan
    data["b"][2, 0, 1] = torch.nan
    patterns = [pattern for pattern in itertools.product([True, False], repeat=3) if any(pattern)]
    return Batch(data, torch.tensor([patterns[i % len(patterns)] for i in range(b)]))


def seeded(seed: int = 3) -> torch.Generator:
    """A fresh generator."""
    return torch.Generator().manual_seed(seed)


def losses_of(
    key: str, made: mvkit.Model | mvkit.Stack, values: Values, objective: object = None
) -> None:
    """Loss, bound, metrics and gradients on complete and incomplete rows, in training and
    evaluation mode.
    """
    for missing, training in itertools.product((False, True), (True, False)):
        made.train(training)
        made.zero_grad(set_to_none=True)
        loss = made.loss(rows(missing=missing), objective=objective, generator=seeded())
        at = f"{key}/{'missing' if missing else 'complete'}/{'train' if training else 'eval'}"
        values[f"{at}/loss"] = loss.loss.detach()
        values[f"{at}/bound"] = loss.bound.detach()
        for name, metric in loss.metrics.items():
            values[f"{at}/metric/{name}"] = metric.detach()
        for name, count in loss.counts.items():
            values[f"{at}/count/{name}"] = count
        if loss.loss.requires_grad:
            loss.loss.backward()
        for name, parameter in made.named_parameters():
            if parameter.grad is not None:
                values[f"{at}/gradient/{name}"] = parameter.grad.clone()


def losses() -> Values:
    """Every aggregator, prior, objective and family, with and without private latents."""
    values: Values = {}
    table = itertools.product(AGGREGATORS, PRIORS, OBJECTIVES, FAMILIES, (0, 2))
    for aggregator, prior, objective, family, private in table:
        made = model(
            private, aggregator=aggregator, prior=prior, objective=objective, family=family
        )
        if made is not None:
            losses_of(f"losses/{aggregator}/{prior}/{objective}/{family}/{private}", made, values)
    for i, objective in enumerate(MORE):
        for aggregator, family, private in itertools.product(AGGREGATORS, FAMILIES, (0, 2)):
            made = model(
                private, aggregator=aggregator, prior="mog", objective=objective, family=family
            )
            if made is not None:
                losses_of(f"losses/more{i}/{aggregator}/{family}/{private}", made, values)
    for i, options in enumerate(SPECIAL):
        for private in (0, 2):
            made = model(private, **options)
            if made is not None:
                losses_of(f"losses/special{i}/{private}", made, values)
    return values


def answer(values: Values, key: str, question: object) -> None:
    """Stores what a question returns, or that it is refused."""
    try:
        result = question()  # type: ignore[operator]
    except (mvkit.MvkitError, AttributeError):
        values[f"{key}/refused"] = torch.tensor(True)
        return
    store(values, key, result)


def store(values: Values, key: str, result: object) -> None:
    """Stores tensors, arrays and mappings of them."""
    if isinstance(result, dict):
        for name, value in result.items():
            store(values, f"{key}/{name}", value)
    elif isinstance(result, torch.Tensor):
        values[key] = result.detach()
    elif isinstance(result, np.ndarray | float | int | list):
        values[key] = torch.as_tensor(np.asarray(result))
    else:
        raise TypeError(f"{key}: {type(result).__name__}")


def outputs_of(key: str, made: mvkit.Model | mvkit.Stack, values: Values) -> None:
    """What users ask of a trained model."""
    made.eval()
    batch = rows()
    ask = {
        "encode": lambda: made.encode(batch),
        "given": lambda: made.encode(batch, given=["a", "b"], empty="prior"),
        "subsets": lambda: {
            "+".join(k): v for k, v in made.encode_subsets(batch, empty="prior").items()
        },
        "private": lambda: made.private(batch),
        "posterior": lambda: made.posterior(batch).rsample(3, seeded()),
        "density": lambda: made.posterior(batch).log_prob(
            torch.full((2, 11, made.latent_dim), 0.3)
        ),
        "translate": lambda: made.translate(batch, n=3, generator=seeded()),
        "means": lambda: made.translate(batch, ["a"], ["b"], latent="mean", empty="prior"),
        "cross": lambda: made.translate(
            batch, given=["c"], private_source="cross", empty="prior", generator=seeded()
        ),
        "sample": lambda: made.sample(5, generator=seeded()),
        "cluster": lambda: made.sample(5, cluster=1, generator=seeded()),
        "decode": lambda: made.decode(torch.full((2, 3, made.latent_dim), 0.4)),
        "weights": lambda: made.log_weights(batch, 4, generator=seeded()),
        "product": lambda: made.log_weights(batch, 4, proposal="product", generator=seeded()),
        "likelihood": lambda: made.log_likelihood(batch, n=30, generator=seeded()),
        "blocks": lambda: made.log_likelihood(batch, n=300, memory=20_000, generator=seeded()),
        "conditional": lambda: made.log_likelihood(
            batch, ["a"], ["b"], n=20, empty="prior", generator=seeded()
        ),
        "predictive": lambda: made.log_likelihood(
            batch, ["a"], ["b"], n=20, estimator="predictive", empty="prior", generator=seeded()
        ),
        "clusters": lambda: made.clusters(batch),
        "soft": lambda: made.clusters(batch, soft=True),
        "by modality": lambda: made.clusters(batch, by_modality=True),
    }
    for name, question in ask.items():
        answer(values, f"{key}/{name}", question)


def outputs() -> Values:
    """Codes, draws and likelihoods of every aggregator, prior and family."""
    values: Values = {}
    for aggregator, prior, family, private in itertools.product(
        AGGREGATORS, PRIORS, FAMILIES, (0, 2)
    ):
        made = model(private, aggregator=aggregator, prior=prior, family=family)
        if made is not None:
            outputs_of(f"outputs/{aggregator}/{prior}/{family}/{private}", made, values)
    for i, options in enumerate(SPECIAL):
        made = model(2, **options)
        if made is not None:
            outputs_of(f"outputs/special{i}", made, values)
    return values


def built(name: str) -> mvkit.Model | mvkit.Stack | None:
    """A recipe on the small modalities; None where its package is not installed."""
    private = {"cmvae", "mmvaeplus", "dmvae"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return getattr(recipes, name)(
                modalities(2 if name in private else 0), latent_dim=2, seed=0
            )
        except mvkit.UnknownComponent:
            return None


def recipes_() -> Values:
    """Losses, outputs and a short run of each recipe."""
    values: Values = {}
    names = [
        "telbo",
        "jmvae",
        "mopoe",
        "nexus",
        "cmvae",
        "mvae",
        "mmvae",
        "mmvaeplus",
        "mvtcae",
        "dmvae",
        "crmvae",
        "mmvm",
        "mhvae",
        "jnf",
    ]
    for name in names:
        made = built(name)
        if made is None:
            continue
        losses_of(f"recipes/{name}", made, values)
        outputs_of(f"recipes/{name}", made, values)
        run(f"recipes/{name}", built(name), values)
    return values


def run(key: str, made: object, values: Values, **options: object) -> None:
    """Weights and history after a short run."""
    settings = {"epochs": 2, "batch_size": 4, "validation": rows(7), "progress": False, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = mvkit.fit(made, rows(), **settings)
    for name, value in made.state_dict().items():
        values[f"{key}/weight/{name}"] = value.clone()
    for column in sorted({column for row in history.rows for column in row}):
        cells = [float(row.get(column, float("nan"))) for row in history.rows]
        values[f"{key}/history/{column}"] = torch.tensor(cells, dtype=torch.float64)


def runs() -> Values:
    """Short runs with the options of training."""
    values: Values = {}
    for aggregator, objective in itertools.product(AGGREGATORS, OBJECTIVES):
        run(
            f"runs/{aggregator}/{objective}",
            model(2, aggregator=aggregator, prior="mog", objective=objective),
            values,
        )
    stages = [
        mvkit.Stage(
            epochs=2,
            ramps={"kl_weight": {"name": "linear", "epochs": 2}},
            clip=0.5,
            ema=0.9,
            accumulate=2,
        ),
        mvkit.Stage(
            epochs=2,
            trainable=("encoders.*",),
            lr_schedule={"name": "CosineAnnealingLR", "T_max": 2},
            objective="iwae",
        ),
    ]
    for i, options in enumerate(
        ({"stages": stages}, {"precision": "bf16"}, {"seed": 5, "lr": 0.01})
    ):
        try:
            run(f"runs/options{i}", model(0, aggregator="mopoe"), values, **options)
        except mvkit.MvkitError as error:
            print(f"runs/options{i}: {error}")
    kmeans = model(0, aggregator="moe", prior={"name": "mog", "components": 3, "init": "kmeans"})
    run("runs/kmeans", kmeans, values)
    pruned, entropy = mvkit.prune_clusters(kmeans, rows())
    values["runs/pruned"] = pruned.prior.loc.detach().clone()
    store(values, "runs/entropy", {str(n): h for n, h in entropy.items()})
    mvkit.fit_sampler(kmeans, rows(40), {"name": "gmm", "components": 2})
    store(values, "runs/gmm", kmeans.sample(4, sampler="gmm", generator=seeded()))
    imputed = mvkit.impute(
        kmeans, dict(rows().data.items()), n=10, quantiles=(0.1,), generator=seeded()
    )
    store(
        values, "runs/imputed", {**imputed.filled, **{f"sd {k}": v for k, v in imputed.sd.items()}}
    )
    return values


def data() -> Values:
    """Datasets, masks, orders of batches and transforms."""
    values: Values = {}
    digits = mvkit.load_dataset("polydigits", missing=0.3, seed=2)
    for split in ("train", "valid", "test"):
        batch = getattr(digits, split).batch
        values[f"data/polydigits/{split}"] = torch.stack([x.sum() for x in batch.data.values()])
        if batch.mask is not None:
            values[f"data/polydigits/{split}/mask"] = batch.mask
    gaussian = mvkit.load_dataset("linear_gaussian")
    store(
        values, "data/linear_gaussian", {k: v[:50] for k, v in gaussian.train.batch.data.items()}
    )
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    for name, options in (
        ("mfeat", {"missing": 0.5}),
        ("rosmap", {}),
        ("sign_digits", {}),
        ("fsdd", {}),
        ("mnist", {}),
    ):
        if not (folder / name).exists():
            continue
        splits = mvkit.load_dataset(name, path=folder / name, **options)
        for split in ("train", "valid", "test"):
            batch = getattr(splits, split).batch
            for key, x in batch.data.items():
                values[f"data/{name}/{split}/{key}"] = (
                    torch.as_tensor(x).double().nan_to_num().sum()
                )
            if batch.mask is not None:
                values[f"data/{name}/{split}/mask"] = batch.mask
    small = digits.train.batch.take(slice(0, 60))
    for options in ({"shuffle": True, "seed": 3}, {"shuffle": False}):
        pipe = mvkit.Pipeline(small, batch_size=16, **options)
        for i, batch in enumerate(pipe):
            values[f"data/pipeline/{options['shuffle']}/{i}"] = batch.data["m0"].flatten(1).sum(1)
    return values


GROUPS = {"losses": losses, "outputs": outputs, "recipes": recipes_, "runs": runs, "data": data}


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Whether two tensors agree in every bit."""
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()


def main(action: str, path: str, *groups: str) -> int:
    """Writes or compares; the number of differences is the exit status, 100 at most."""
    torch.set_num_threads(1)
    values: Values = {}
    for group in groups or GROUPS:
        values |= GROUPS[group]()
    if action == "write":
        torch.save(values, path)
        print(f"{len(values)} tensors")
        return 0
    before = torch.load(path, weights_only=True)
    if groups:
        before = {key: value for key, value in before.items() if key.split("/")[0] in groups}
    different = [key for key in {**before, **values} if not same(before.get(key), values.get(key))]
    for key in different[:40]:
        a, b = before.get(key), values.get(key)
        apart = (
            ""
            if a is None or b is None or a.shape != b.shape
            else f" by {(a.double() - b.double()).abs().max():.3g}"
        )
        print(f"{key}: {'new' if a is None else 'gone' if b is None else 'differs'}{apart}")
    print(f"{len(values)} tensors, {len(different)} differ")
    return min(len(different), 100)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
