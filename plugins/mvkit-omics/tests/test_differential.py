"""Differential expression against closed forms and loops; false discovery rates that hold."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from mvkit_omics import differential_expression
from mvkit_omics.differential import expected_findings
from question_models import BATCHES, GENES, cells, model_of

import mvkit
from mvkit import Batch, DataError, Modality, Model, RequestError
from mvkit.core import noise
from mvkit.parts import MLP

FAST = {"pairs": 400, "modality": "rna"}


def normal_cdf(x):
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def log_linear(features, latent=1, seed=0):
    """Counts with log-means linear in z, beside x; a linear encoder gives q(z|x) of any row."""
    modalities = {
        "x": Modality((latent,), encoder="linear", decoder="linear"),
        "rna": Modality((features,), "poisson", encoder="linear", decoder="linear"),
    }
    return Model(modalities, latent_dim=latent, aggregator="poe", seed=seed).double()


def weights(model):
    """Slopes (f, d) and intercepts (f,) of the log-means."""
    d = model.latent_dim
    start = model.decoders["rna"](torch.zeros(1, d).double())[0]
    slopes = model.decoders["rna"](torch.eye(d).double()) - start
    return slopes.T, start


@torch.no_grad()
@pytest.mark.parametrize("delta", [0.25, 0.6])
def test_probabilities_of_change_are_those_of_the_normal_law(delta):
    model = log_linear(4)
    x = torch.tensor([[-1.0], [0.2], [0.5], [2.0], [1.1]]).double()
    rows = Batch({"x": x, "rna": torch.full((5, 4), 3.0).double()})
    posterior = model.posterior(rows, "x")
    loc, scale = posterior.loc[0, :, 0], posterior.scale[0, :, 0]
    slopes, _ = weights(model)
    pairs = 40_000
    table = differential_expression(
        model,
        rows,
        [0, 1],
        [2, 3, 4],
        modality="rna",
        given="x",
        delta=delta,
        pseudocount=0,
        pairs=pairs,
    ).sort_index()
    for f in range(4):
        p, mean, square = 0.0, 0.0, 0.0
        slope = float(slopes[f, 0]) / math.log(2)
        for a in (0, 1):
            for b in (2, 3, 4):
                centre = slope * float(loc[a] - loc[b])
                sd = abs(slope) * math.hypot(float(scale[a]), float(scale[b]))
                p += (
                    normal_cdf((-delta - centre) / sd) + 1 - normal_cdf((delta - centre) / sd)
                ) / 6
                mean += centre / 6
                square += (centre**2 + sd**2) / 6
        se = math.sqrt(p * (1 - p) / pairs)
        assert abs(table["proba_de"][f] - p) < 5 * se + 1e-9
        sd = math.sqrt(square - mean**2)
        assert abs(table["lfc_mean"][f] - mean) < 5 * sd / math.sqrt(pairs)
        assert abs(table["lfc_std"][f] / sd - 1) < 0.05
        own = table["proba_de"][f]
        assert table["bayes_factor"][f] == pytest.approx(
            math.log(own + 1e-8) - math.log(1 - own + 1e-8)
        )


@torch.no_grad()
def test_vanilla_is_the_probability_that_the_first_is_larger():
    model = log_linear(3)
    rows = Batch({"x": torch.tensor([[-0.4], [0.3]]).double()})
    posterior = model.posterior(rows, "x")
    loc, scale = posterior.loc[0, :, 0], posterior.scale[0, :, 0]
    slopes, _ = weights(model)
    table = differential_expression(
        model, rows, [0], [1], modality="rna", given="x", mode="vanilla", pairs=40_000
    ).sort_index()
    sd = math.hypot(float(scale[0]), float(scale[1]))
    for f in range(3):
        p = normal_cdf(math.copysign(1, float(slopes[f, 0])) * float(loc[0] - loc[1]) / sd)
        assert abs(table["proba_m1"][f] - p) < 5 * math.sqrt(p * (1 - p) / 40_000)
        assert table["proba_m2"][f] == pytest.approx(1 - table["proba_m1"][f])
    assert "proba_de" not in table
    assert table["raw_mean1"].isna().all()  # no cell measured it


@torch.no_grad()
@pytest.mark.parametrize("aggregator", ["poe", "mopoe"])
def test_the_table_is_that_of_a_loop_over_pairs(aggregator):
    """The same draws, decoded cell by cell and level by level, in plain Python."""
    model = model_of(aggregator=aggregator)
    rows = cells(24)
    kinds = rows.extra["kind"]
    pairs, seed = 50, 3
    table = differential_expression(
        model,
        rows,
        "T",
        "B",
        by="kind",
        covariates={"batch": ["p1", "p3"]},
        pairs=pairs,
        seed=seed,
        pseudocount=1e-3,
        modality="rna",
    )
    assert list(table["proba_de"]) == sorted(table["proba_de"], reverse=True)
    groups = [[i for i in range(24) if kinds[i] == kind] for kind in ("T", "B")]
    generator = noise.seeded(noise.seed_of_name(seed, "pairs"))
    like = torch.zeros((), dtype=torch.float64)
    scales = []
    for g, group in enumerate(groups):
        uniform = noise.draw("choice/pairs", (pairs,), like, generator=generator).tolist()
        picked = [group[int(u * len(group))] for u in uniform]
        total = torch.zeros(pairs, 5).double()
        for level in ("p1", "p3"):
            generator_of_block = noise.seeded(noise.seed_of(seed, noise.seed_of(0, g)))
            total += model.translate(
                rows.take(picked),
                "rna",
                covariates={"batch": level},
                exposure={"rna": 1.0},
                generator=generator_of_block,
            )["rna"][0]
        scales.append((total / 2).tolist())
    for f, gene in enumerate(GENES):
        changes = sorted(
            math.log2(scales[0][i][f] + 1e-3) - math.log2(scales[1][i][f] + 1e-3)
            for i in range(pairs)
        )
        row = table.loc[gene]
        mean = sum(changes) / pairs
        assert row["proba_de"] == sum(abs(change) >= 0.25 for change in changes) / pairs
        assert abs(row["lfc_mean"] - mean) < 1e-9
        assert abs(row["lfc_median"] - (changes[24] + changes[25]) / 2) < 1e-9
        assert (
            abs(row["lfc_std"] - math.sqrt(sum((c - mean) ** 2 for c in changes) / pairs)) < 1e-9
        )
        for g in (0, 1):
            assert abs(row[f"scale{g + 1}"] - sum(scale[f] for scale in scales[g]) / pairs) < 1e-9
            counted = [i for i in groups[g] if rows.mask[i, 0]]
            raw = sum(float(rows.data["rna"][i, f]) for i in counted) / len(counted)
            assert abs(row[f"raw_mean{g + 1}"] - raw) < 1e-9
    assert set(table["comparison"]) == {"T vs B"}


def naive_findings(p, fdr):
    """The largest set, tried from all features down."""
    order = sorted(range(len(p)), key=lambda i: -p[i])
    for size in range(len(p), 0, -1):
        if sum(1 - p[i] for i in order[:size]) / size <= fdr:
            return [i in order[:size] for i in range(len(p))]
    return [False] * len(p)


@pytest.mark.parametrize("fdr", [0.0, 0.05, 0.2, 1.0])
def test_findings_are_the_largest_set_of_that_expected_rate(fdr):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        p = torch.rand(30, generator=generator).double().pow(0.2)
        p[:3] = 1.0
        assert expected_findings(p, fdr).tolist() == naive_findings(p.tolist(), fdr)


def exact_pairs(features, seed):
    """Two cells whose z is drawn from the prior N(0, 1), x ~ N(z, 0.5²), and an exact posterior."""
    modalities = {
        "x": Modality((features,), encoder="linear", decoder="linear"),
        "rna": Modality((features,), "poisson", encoder="linear", decoder="linear"),
    }
    model = Model(modalities, latent_dim=features, aggregator={"name": "moe"}, seed=0).double()
    variance = 1 / (1 + 1 / 0.25)
    with torch.no_grad():
        encoder = next(m for m in model.encoders["x"].modules() if isinstance(m, torch.nn.Linear))
        encoder.weight.zero_()
        encoder.weight[:features] = torch.eye(features) * variance / 0.25
        encoder.bias[:features] = 0.0
        raw = torch.linspace(-5, 5, 100_001).double()
        scales = model.family.scale(raw)
        encoder.bias[features:] = raw[(scales - math.sqrt(variance)).abs().argmin()]
        decoder = next(
            m for m in model.decoders["rna"].modules() if isinstance(m, torch.nn.Linear)
        )
        decoder.weight.copy_(torch.eye(features) * math.log(2))  # log2 of the mean is z
        decoder.bias.zero_()
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, features, generator=generator).double()
    x = z + 0.5 * torch.randn(2, features, generator=generator).double()
    return model, z, Batch({"x": x})


def test_the_false_discovery_rate_is_calibrated_where_the_posterior_is_exact():
    """Changes below δ are null; among what is found their share is at most the target."""
    target, false, flagged = 0.05, 0, 0
    for seed in range(5):
        model, z, rows = exact_pairs(300, seed)
        table = differential_expression(
            model,
            rows,
            [0],
            [1],
            modality="rna",
            given="x",
            delta=0.5,
            fdr=target,
            pseudocount=0,
            pairs=2000,
        ).sort_index()
        truth = (z[0] - z[1]).abs().numpy() >= 0.5
        flags = table[f"is_de_fdr_{target}"].to_numpy()
        flagged += int(flags.sum())
        false += int((flags & ~truth).sum())
    assert flagged > 200
    assert false / flagged <= target + 3 * math.sqrt(target * (1 - target) / flagged)
    assert false > 0  # it is no wider than it has to be
    assert false / flagged >= target - 4 * math.sqrt(target * (1 - target) / flagged)


def test_two_groups_alike_differ_in_nothing():
    model = log_linear(30)
    x = torch.zeros(60, 1).double()
    generator = torch.Generator().manual_seed(0)
    rna = torch.poisson(torch.full((60, 30), 4.0), generator=generator).double()
    rows = Batch({"x": x, "rna": rna})
    same = differential_expression(
        model, rows, range(60), range(60), modality="rna", given="x", delta=3.0
    )
    assert not same["is_de_fdr_0.05"].any()
    assert abs(same["lfc_mean"]).max() < 0.1


def test_features_are_taken_in_pieces_with_the_same_numbers(monkeypatch):
    model, rows = model_of(), cells()
    options = {"by": "kind", **FAST}
    whole = differential_expression(model, rows, "T", "B", **options)
    monkeypatch.setattr("mvkit_omics.differential.EFFECTS", 400 * 8 * 2)
    pd.testing.assert_frame_equal(differential_expression(model, rows, "T", "B", **options), whole)


def test_each_value_is_compared_with_the_rest():
    model, rows = model_of(), cells()
    every = differential_expression(model, rows, by="batch", **FAST)
    assert list(dict.fromkeys(every["comparison"])) == [f"{batch} vs rest" for batch in BATCHES]
    second = differential_expression(model, rows, ["p2"], ["p1", "p3"], by="batch", **FAST)
    part = every[every["group1"] == "p2"]
    columns = [column for column in every if column not in ("comparison", "group2")]
    pd.testing.assert_frame_equal(second[columns], part[columns])
    picked = np.array([batch == "p2" for batch in rows.extra["batch"]])
    by_flags = differential_expression(model, rows, picked, **FAST)
    by_ids = differential_expression(model, rows, [f"cell{i}" for i in range(1, 30, 3)], **FAST)
    numbers = columns[:-1]
    pd.testing.assert_frame_equal(by_flags[numbers], part[numbers])
    pd.testing.assert_frame_equal(by_ids[numbers], part[numbers])


def test_features_that_were_never_counted_set_the_pseudo_count():
    model, rows = model_of(), cells(gaps=False)
    rows.data["rna"][:, 1] = 0.0
    rows.data["rna"][1::2, 2] = 0.0  # of T
    table = differential_expression(model, rows, "T", "B", by="kind", **FAST)
    stated = {}
    for epsilon in (1e-10, 1.0):
        stated[epsilon] = differential_expression(
            model, rows, "T", "B", by="kind", pseudocount=epsilon, **FAST
        )
    # a pseudo-count shrinks changes: those of features never counted lie between
    for gene in ("g1", "g2"):
        assert abs(table["lfc_mean"][gene]) < abs(stated[1e-10]["lfc_mean"][gene])
        assert abs(table["lfc_mean"][gene]) > abs(stated[1.0]["lfc_mean"][gene])


@torch.no_grad()
def test_the_pseudo_count_is_the_quantile_of_the_largest_shares():
    from mvkit_omics.asking import asked
    from mvkit_omics.differential import Comparison
    from mvkit_omics.groups import groups_of

    model, rows = model_of(), cells(gaps=False)
    question = asked("test", model, "rna", None, seed=0)
    comparison = Comparison(question, 60, "change", 0.25, None)
    [groups] = groups_of(rows, "kind", "T", "B", "test")
    never = [
        torch.tensor([False, True, True, False, True]),
        torch.tensor([False, False, True, False, False]),
    ]
    a, b = (
        torch.cat(parts)
        for parts in zip(*(m for _, m in comparison._decoded(rows, groups)), strict=True)
    )
    of_a = np.quantile([float(a[:, f].max()) for f in (1, 2, 4)], 0.9)
    of_b = float(b[:, 2].max())
    assert comparison._artefacts(rows, groups, never) == pytest.approx(max(of_a, of_b), rel=1e-12)


def test_proteins_are_compared_by_their_foreground():
    model, rows = model_of(), cells()
    options = {"by": "kind", "modality": "protein", "pairs": 300}
    foreground = differential_expression(model, rows, "T", "B", **options)
    whole = differential_expression(model, rows, "T", "B", background=True, **options)
    assert (whole.sort_index()["scale1"] > foreground.sort_index()["scale1"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {},
            "differential_expression: no groups; expected by=…, the name of a column, or two picks of cells",
        ),
        (
            {"by": "kid"},
            "differential_expression: 'kid' is not in the data's extra; did you mean 'kind'?",
        ),
        (
            {"by": "kind", "first": "TT"},
            "differential_expression: no cell has 'kind' 'TT'; did you mean 'T'?",
        ),
        (
            {"by": "kind", "first": "T", "mode": "x"},
            "differential_expression: mode='x'; expected 'change' or 'vanilla'",
        ),
        (
            {"first": []},
            "differential_expression: group 'group1' has no cell; expected one at least",
        ),
        (
            {"first": range(30)},
            "differential_expression: group 'rest' has no cell; expected one at least",
        ),
    ],
)
def test_what_cannot_be_compared_is_said(options, message):
    with pytest.raises(RequestError) as error:
        differential_expression(model_of(), cells(), **{**FAST, **options})
    assert str(error.value) == message


def test_means_below_zero_are_refused():
    model = Model({"x": Modality((2,), decoder="linear")}, latent_dim=1, seed=0)
    rows = {"x": torch.randn(6, 2, generator=torch.Generator().manual_seed(0))}
    with pytest.raises(DataError, match="'x' has means below 0"):
        differential_expression(model, rows, [0, 1])


def simulated(seed, cells=300, genes=120, changed=30):
    """Counts of two kinds of cells in two batches: `changed` genes differ by 1 to 2 doublings."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(2, (cells,), generator=generator)
    batch = torch.randint(2, (cells,), generator=generator)
    base = torch.randn(genes, generator=generator)
    change = torch.zeros(genes)
    size = 1 + torch.rand(changed, generator=generator)
    change[:changed] = size * torch.tensor([1.0, -1.0]).repeat(changed // 2)
    shift = 0.5 * torch.randn(2, genes, generator=generator)
    logits = base + math.log(2) * kind[:, None] * change + shift[batch]
    depth = torch.randint(1000, 4000, (cells, 1), generator=generator)
    theta = torch.full((cells, genes), 5.0)
    gamma = torch._standard_gamma(theta, generator=generator) / theta
    counts = torch.poisson(depth * torch.softmax(logits, 1) * gamma, generator=generator)
    rows = Batch(
        {"rna": counts}, extra={"kind": kind.numpy()}, covariates={"batch": batch.tolist()}
    )
    return rows, (change != 0).numpy()


def test_a_trained_model_finds_the_changed_genes_and_few_others():
    target = 0.05
    rows, truth = simulated(0, cells=200, genes=80, changed=20)
    rna = Modality(
        (80,),
        {"name": "negative_binomial", "by": "feature"},
        exposure="total",
        input="log1p",
        encoder=MLP(hidden=(64,)),
        decoder=MLP(hidden=(64,)),
    )
    model = Model({"rna": rna}, latent_dim=4, covariates={"batch": (0, 1)}, seed=0)
    ramp = {"name": "linear", "epochs": 60}
    stage = mvkit.Stage(epochs=60, ramps={"kl_weight": ramp})
    mvkit.fit(model, rows, stages=[stage], batch_size=32, lr=5e-3, seed=0, progress=False)
    table = differential_expression(
        model, rows, 1, 0, by="kind", covariates={"batch": "all"}, delta=0.5, fdr=target
    )
    flags = table[f"is_de_fdr_{target}"].to_numpy()
    truth = truth[table.index]
    assert (flags & truth).sum() >= 18
    flagged = int(flags.sum())
    false = int((flags & ~truth).sum())
    assert false / flagged <= target + 3 * math.sqrt(target * (1 - target) / flagged)
    up = table["lfc_mean"].to_numpy()[flags & truth] > 0
    assert (up == (table.index[flags & truth].to_numpy() % 2 == 0)).all()
