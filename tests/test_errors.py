"""Errors are part of the interface: where, what, expected, what to do; and nothing
half-written.
"""

import pytest
import torch
from helpers import model, rows

import mvkit
from mvkit import (
    Batch,
    DataError,
    Modality,
    Model,
    RequestError,
    ShapeError,
    SpecError,
    Stage,
    UnknownComponent,
)
from mvkit.parts.priors import MoG

SHAPES = {"a": (3,), "b": (2, 2)}


def message(kind, make, *parts):
    with pytest.raises(kind) as caught:
        make()
    assert isinstance(caught.value, mvkit.MvkitError)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_unknown_part():
    message(
        UnknownComponent,
        lambda: Model(SHAPES, aggregator="mopeo"),
        "model.aggregator: unknown aggregator 'mopeo'",
        "did you mean 'mopoe'?",
    )
    message(
        LookupError,
        lambda: Model(SHAPES, prior="zzz"),
        "known: 'labelled_mog', 'learnable', 'mog', 'posterior_mixture', 'standard', 'top_down', "
        "'vamp'",
    )
    message(
        UnknownComponent,
        lambda: Model({"a": Modality((3,), "gausian")}),
        "likelihood: unknown likelihood 'gausian'",
    )


def test_unknown_option():
    message(
        SpecError,
        lambda: Model(SHAPES, prior={"name": "mog", "component": 3}),
        "model.prior.component: unknown option of prior 'mog'; did you mean 'components'?",
    )
    message(
        ValueError,
        lambda: MoG(component=3),
        "component: unknown option of MoG; did you mean 'components'?",
    )
    message(
        SpecError,
        lambda: Model({"a": {"shape": (3,), "weigth": 2.0}}),
        "model.modalities.a.weigth",
        "did you mean 'weight'?",
    )


def test_bad_values_of_options():
    message(
        SpecError,
        lambda: MoG(components=0),
        "components: got 0; expected an integer of at least 1",
    )
    message(
        SpecError, lambda: MoG(learn_scale="yes"), "learn_scale: got 'yes'; expected True or False"
    )
    message(
        SpecError,
        lambda: Model(SHAPES, objective={"name": "elbo", "density": "both"}),
        "model.objective.density: got 'both'; expected 'component' or 'mixture'",
    )
    message(
        SpecError,
        lambda: Model(SHAPES, prior=3),
        "model.prior: got 3, which is no registered prior",
        "mvkit.plugins.declare",
    )
    message(SpecError, lambda: Model(SHAPES, prior=Modality((3,))), "which is no registered prior")
    message(SpecError, lambda: Model({}), "model.modalities: got {}; expected a mapping")
    message(
        SpecError,
        lambda: Model({"a.b": (3,)}),
        "cannot be called 'a.b'",
        "dots and attributes of torch modules are taken",
    )
    message(
        SpecError,
        lambda: Model({"a": (3, 0)}),
        "model.modalities.a.shape: got (3, 0); expected a tuple of positive integers",
    )
    message(
        SpecError,
        lambda: Modality((3,), {"name": "normal", "scale": 0}),
        "likelihood.scale: got 0; expected 'trained' or 'optimal' or a number greater than 0",
    )
    message(SpecError, lambda: Model(SHAPES, rescale={"z": 2.0}), "model.rescale: no modality 'z'")
    message(
        SpecError,
        lambda: Model(SHAPES, objective={"name": "telbo", "gammas": {"z": 2.0}}),
        "model.objective.gammas: no modality 'z'",
    )
    message(
        SpecError,
        lambda: Model({"a": Modality((3, 4, 4), encoder="conv")}),
        "'conv' takes shapes",
        "at least 8; got (3, 4, 4)",
    )


def test_wrong_shape():
    vae = Model(SHAPES)
    message(
        ShapeError,
        lambda: vae.loss(Batch({"a": torch.zeros(2, 4)})),
        "batch.data['a']: rows of shape (4,); expected (3,)",
    )
    message(
        ShapeError,
        lambda: vae.loss(Batch({"a": torch.zeros(2, 3), "b": torch.zeros(3, 2, 2)})),
        "batch.data['b']: 3 rows, but 'a' has 2",
    )
    message(ShapeError, lambda: vae.loss(Batch({"x": torch.zeros(2, 3)})), "unknown modality 'x'")
    message(
        ShapeError,
        lambda: vae.loss(Batch({"a": torch.zeros(2, 3)}, torch.ones(2, 3, dtype=torch.bool))),
        "batch.mask: shape (2, 3); expected (2, 2), columns a, b",
    )
    message(
        ShapeError,
        lambda: vae.loss(
            Batch({"a": torch.zeros(2, 3)}, elements={"a": torch.ones(2, 2, dtype=torch.bool)})
        ),
        "batch.elements['a']",
        "of shape (2, 3)",
    )
    message(
        ShapeError,
        lambda: vae.decode(torch.zeros(2, 3)),
        "decode: z has shape (2, 3); expected (..., 10)",
    )
    picture = Model({"p": Modality((3, 8, 8))})
    message(
        ShapeError,
        lambda: picture.loss(Batch({"p": torch.zeros(2, 8, 8, 3)})),
        "channels come first",
    )


def test_wrong_dtype():
    vae = Model(SHAPES)
    message(
        ShapeError,
        lambda: vae.loss(Batch({"a": torch.zeros(2, 3).int()})),
        "dtype torch.int32; expected floats",
        "x.float()",
    )
    message(
        ShapeError,
        lambda: vae.loss(Batch({"a": torch.zeros(2, 3, dtype=torch.cfloat)})),
        "complex",
    )
    message(
        ShapeError,
        lambda: vae.loss(Batch({"a": torch.zeros(2, 3)}, torch.ones(2, 2))),
        "batch.mask: dtype torch.float32; expected torch.bool",
        "mask.bool()",
    )
    message(ShapeError, lambda: vae.encode({"a": [["x", "y", "z"]]}), "expected numbers")


def test_mask_that_disagrees_with_the_data():
    vae = Model(SHAPES)
    data = {"a": torch.tensor([[1.0, 2, 3], [torch.nan] * 3])}
    message(
        DataError,
        lambda: vae.loss(Batch(data, torch.tensor([[True, False]] * 2))),
        "batch.data['a']: the mask says row 1 is observed, but it is all NaN",
        "correct the mask",
    )
    message(
        DataError,
        lambda: vae.loss(Batch(data, torch.tensor([[True, False], [False, True]]))),
        "batch.data['b']: the mask says row 1 is observed, but there are no data",
    )
    elements = {"a": torch.tensor([[True] * 3, [True, False, False]])}
    message(
        DataError,
        lambda: vae.loss(Batch(data, elements=elements)),
        "batch.elements['a']: row 1 is NaN where elements say observed",
    )


def test_row_with_nothing_observed():
    vae = Model(SHAPES)
    batch = Batch({"a": torch.tensor([[1.0, 2, 3], [torch.nan] * 3])})
    assert len(batch) == 2  # Batch holds it
    message(DataError, lambda: vae.loss(batch), "row 1 observes nothing")
    message(DataError, lambda: mvkit.fit(vae, batch, epochs=1), "row 1 observes nothing")
    message(
        DataError,
        lambda: vae.encode(batch),
        "row 1 observes none of the given modalities (a, b)",
        "empty='prior'",
    )
    message(
        DataError,
        lambda: vae.encode(batch, given=["b"]),
        "row 0 observes none of the given modalities (b)",
    )
    message(
        DataError,
        lambda: vae.log_likelihood(batch, ["a"], ["b"]),
        "row 0 observes none of the given modalities (b)",
    )
    assert vae.encode(batch, empty="prior")[1].abs().sum() == 0
    assert vae.log_likelihood(batch, n=2)[1] == 0


def test_latent_dim_0_without_private_latents():
    message(
        SpecError,
        lambda: Model(SHAPES, latent_dim=0),
        "model.latent_dim: 0 leaves modalities without any latent",
        "private_dim",
    )


def test_empty_data():
    vae = Model(SHAPES)
    for empty in ({}, {"a": torch.zeros(0, 3)}):
        message(
            DataError,
            lambda empty=empty: mvkit.fit(vae, empty, epochs=1),
            "batch: it is empty; expected one row",
        )
    message(DataError, lambda: mvkit.fit(vae, iter([]), epochs=1), "the loader returned no batch")
    message(
        DataError,
        lambda: vae.encode(3),
        "got int; expected a Batch, a MultimodalDataset or a mapping",
    )


def test_values_that_a_likelihood_cannot_take():
    vae = Model(
        {"a": Modality((2,), "bernoulli"), "c": Modality((3,), "categorical"), "n": Modality((2,))}
    )
    message(
        DataError,
        lambda: vae.loss(Batch({"a": torch.tensor([[0.5, 1], [0, 2]])})),
        "batch.data['a']: row 1, element (1,): 2.0 cannot be taken; expected values in [0, 1]",
        "divide pictures of 0…255 by 255",
    )
    message(
        DataError,
        lambda: vae.loss(Batch({"c": torch.tensor([0, 3])})),
        "batch.data['c']: row 1",
        "a class index out of range cannot be taken; expected indices from 0 to 2",
    )
    message(
        DataError, lambda: vae.loss(Batch({"c": torch.tensor([[0.5, 0.2, 0.2]])})), "summing to 1"
    )
    message(
        DataError,
        lambda: vae.loss(Batch({"n": torch.tensor([[0.5, torch.inf]])})),
        "row 0, element (1,): inf cannot be taken; expected finite numbers",
    )
    message(
        DataError,
        lambda: vae.loss(Batch({"c": torch.tensor([[0.5, torch.nan, 0.5]])})),
        "is NaN for some classes only",
    )


def test_clusters_without_a_mixture_prior():
    message(
        RequestError,
        lambda: model().clusters(rows()),
        "clusters: prior 'standard' has no components",
        "prior='mog'",
    )
    message(RequestError, lambda: model().sample(3, cluster=0), "prior='mog'")
    message(
        RequestError,
        lambda: model(prior="mog").sample(3, cluster=10),
        "no cluster 10; expected 0 to 9",
    )


def test_family_that_an_aggregator_cannot_take():
    for name in ("poe", "mopoe", "joint"):
        message(
            SpecError,
            lambda name=name: Model(
                {**SHAPES, "c": (2,)}, aggregator=name, family="laplace_softmax"
            ),
            f"model.aggregator: aggregator {name!r} multiplies experts",
            "no closed product",
            "aggregator='moe'",
        )
    Model(SHAPES, aggregator="joint", family="laplace_softmax", objective="jmvae")
    message(
        SpecError,
        lambda: Model(SHAPES, aggregator={"name": "joint", "correct_prior": True}, prior="mog"),
        "model.aggregator.correct_prior: needs prior='standard'",
    )


def test_questions_about_modalities():
    vae = model()
    message(
        RequestError,
        lambda: vae.log_likelihood(rows(), ["a", "b"], ["b"]),
        "'b' is both in `of` and in `given`; take it out of one",
    )
    message(
        RequestError,
        lambda: vae.translate(rows(), to=["d"]),
        "unknown modality 'd'; known: 'a', 'b', 'c'",
    )
    message(RequestError, lambda: vae.encode(rows(), given=["d"]), "given: unknown modality 'd'")
    message(
        RequestError,
        lambda: vae.decode(torch.zeros(1, 2).double(), {"a": torch.zeros(1, 1)}),
        "'a' has no private latent",
    )
    message(
        RequestError,
        lambda: vae.log_likelihood(rows(), estimator="exact"),
        "expected 'importance' or 'predictive'",
    )
    message(
        RequestError,
        lambda: vae.log_weights(rows(), 2, proposal="x"),
        "expected 'mixture' or 'product'",
    )
    message(
        RequestError,
        lambda: vae.translate(rows(), latent="median"),
        "translate: latent='median'; expected 'draw' or 'mean'",
    )
    message(
        RequestError,
        lambda: vae.encode(rows(), empty="skip"),
        "empty='skip'; expected 'error' or 'prior'",
    )


def test_stages_that_train_nothing():
    vae = model()
    message(
        SpecError,
        lambda: mvkit.fit(vae, rows(), stages=[Stage("elbo", 1, ("encoder.*",))]),
        "trainable: 'encoder.*' matches no parameter; did you mean 'encoders.*'?",
        "groups are ['aggregator', 'cross', 'decoders', 'encoders', 'prior']",
    )
    message(
        SpecError,
        lambda: mvkit.fit(vae, rows(), stages=[Stage("elbo", 1, ("prior.*",))]),
        "has no parameters",
    )
    message(
        SpecError,
        lambda: mvkit.fit(vae, rows(), stages="joint_then_unimodal"),
        "needs an aggregator with trunks of its own",
        "aggregator='joint'",
    )
    message(
        SpecError,
        lambda: mvkit.fit(vae, rows(), stages=[Stage("elbo", 1, ramps={"beta": "linear"})]),
        "ramp 'beta' leads to no field of the objective",
    )
    message(
        SpecError,
        lambda: mvkit.fit(vae, rows(), stages=[Stage("elbo", 1, ramps={"density": "linear"})]),
        "leads to 'component'; expected a number",
    )
    assert all(p.requires_grad for p in vae.parameters())


def test_modules_of_the_wrong_width():
    message(
        ShapeError,
        lambda: Model({"a": Modality((3,), encoder=torch.nn.Linear(3, 7))}, latent_dim=4),
        "encoders.a: emitted (2, 7)",
        "expected a tensor (n, 8) for rows (n, 3): 8 numbers for the aggregator",
    )
    message(
        ShapeError,
        lambda: Model({"a": Modality((3,), decoder=torch.nn.Linear(4, 5))}, latent_dim=4),
        "decoders.a: emitted (2, 5)",
        "expected a tensor (n, 3)",
    )


def test_modules_of_the_wrong_width_that_were_put_in_later():
    changed = Model({"a": (3,)}, latent_dim=4)
    changed.encoders["a"] = torch.nn.Linear(3, 7)
    message(
        ShapeError,
        lambda: changed.encode({"a": torch.zeros(2, 3)}),
        "encoders.a: emitted (2, 7)",
        "expected (2, 8): 8 numbers for the aggregator",
    )
    changed.decoders["a"].network = torch.nn.Linear(4, 5)
    message(
        ShapeError,
        lambda: changed.decode(torch.zeros(2, 4)),
        "decoders.a: emitted (2, 5)",
        "(2, 3)",
    )


def test_joint_warns_that_nothing_trains_the_surrogates():
    with pytest.warns(UserWarning, match="trains the unimodal encoders.*'jmvae' or 'telbo'"):
        Model(SHAPES, aggregator="joint", objective="elbo")
    Model(SHAPES, aggregator="joint", objective="elbo", schedule="joint_then_unimodal")


@pytest.mark.parametrize("name", ["fit", "evaluate", "fit_sampler", "impute", "embed", "save"])
def test_a_model_comes_first(name, tmp_path):
    call = getattr(mvkit, name)
    second = tmp_path / "model.safetensors" if name == "save" else model()
    message(
        RequestError,
        lambda: call(rows(), second),
        f"{name}: got Batch as its model; expected a Model or a Stack",
    )
    assert not list(tmp_path.iterdir())


def test_splits_are_not_rows():
    data = mvkit.load_dataset("linear_gaussian", rows=20)
    vae = mvkit.Model(data.modalities, latent_dim=2)
    for call in (
        vae.encode,
        lambda splits: mvkit.evaluate(vae, splits),
        lambda splits: mvkit.fit(vae, splits),
    ):
        message(
            DataError,
            lambda call=call: call(data),
            "got Splits",
            "take one of its splits, such as .test",
        )


def test_a_batch_that_was_not_conformed():
    vae = model()
    data = {"a": torch.ones(2, 3)}
    message(
        DataError,
        lambda: vae.experts(data),
        "experts: got dict; expected a conformed batch; give model.conform(rows)",
    )
    message(DataError, lambda: vae.terms(data), "got dict; expected a conformed batch")
    message(
        DataError,
        lambda: vae.experts(Batch(data)),
        "experts: got a Batch that was not conformed; expected a conformed batch",
    )
    message(
        DataError,
        lambda: Batch(data).hide(["a"]),
        "batch: not conformed to a model yet; use model.conform(batch)",
    )
    message(DataError, lambda: Batch(data).observed, "use model.conform(batch)")


def test_latents_of_another_shape():
    prior = model(prior="mog").prior()
    posterior = model().posterior(rows())
    message(
        ShapeError,
        lambda: posterior.log_prob(torch.zeros(3, 8, 5)),
        "log_prob: z has shape (3, 8, 5); expected (..., 8, 2), rows and latent dimensions last; "
        "reshape it",
    )
    message(
        ShapeError,
        lambda: posterior.log_prob(torch.zeros(3, 7, 2)),
        "log_prob: z has shape (3, 7, 2); expected (..., 8, 2)",
    )
    for call in (prior.log_prob, prior.joint):
        message(ShapeError, lambda call=call: call(torch.zeros(2)), "z has shape (2,); expected")


def test_values_that_are_no_arrays():
    message(ShapeError, lambda: Batch([1.0]), "batch: got list; expected a mapping")
    message(
        ShapeError,
        lambda: Batch({"a": torch.ones(1, 1)}, elements={"a": ["x"]}),
        "batch.elements['a']: got values of type <U1; expected numbers; convert them first",
    )
