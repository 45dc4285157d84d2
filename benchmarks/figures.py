"""Published figures that `mvkit bench` measures again: whose they are, and which script measures.

    mvkit bench list
    mvkit bench run white-wine-mice "mixed-*" --seeds 0 1 2 --data ../shared/data
    mvkit bench table

Protocols are in the scripts beside this file; here is which of their numbers stands beside which
published one. Lines are added to `figures.jsonl`; what is there is not measured again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mvkit.apps.figures import Figure

MULTIVAE = (
    "quoted in the column Paper of MultiVae's reproducibility statement, "
    "https://github.com/AgatheSenellart/MultiVae, docs/source/readme.md"
)
MOGONET = (
    "Wang et al., MOGONET, Nature Communications 2021, "
    "https://doi.org/10.1038/s41467-021-23774-w, ROSMAP, as a table of TMC-MOGONET quotes it"
)
NOT_MIWAE = "Ipsen, Mattei and Frellsen, not-MIWAE, ICLR 2021, https://arxiv.org/abs/2006.12871"
ROSMAP = (
    "of the 106 test rows of the one split of five that was published (there: mean over all "
    "five), by a generative model whose label is one more modality"
)


def jmvae_mnist(data: Path, seed: int) -> float:
    """Nats of test rows, joint, by JMVAE."""
    import jmvae_mnist as script

    words = ["--binarise", "each", "--cooldown", "0.4", "--epochs", "150", "--every", "50"]
    options = script.parser().parse_args([*words, "--path", str(data / "mnist")])
    options.seed = seed
    return float(script.run(options)["joint"])


def clusters(name: str, data: Path, seed: int) -> float:
    """Accuracy of a mixture prior's clusters."""
    import clusters as script

    return float(script.run(name, data, seed, 10)["joint"])


def white_wine(method: str, data: Path, seed: int) -> float:
    """Error of what was removed from the white wines."""
    import missingness as script

    values = script.white_wines(data / "mixed_tables" / "Wine")
    gaps = script.without_high(values)
    return script.error(values, gaps, script.METHODS[method](gaps, seed))


def mixed_table(name: str, data: Path, seed: int) -> float:
    """HI-VAE's score of hidden cells, filled by `mvkit.impute`."""
    import mixed_tables as script

    table = script.Table(data / "mixed_tables", name, 20, "1")
    return table.score(script.METHODS["impute"](table, seed))[0]


def classes(table: str, score: str, data: Path, seed: int) -> float:
    """A score of labels that a generative model predicts."""
    import classes as script

    return script.scores(table, data, seed)[score]


def coherence(recipe: str, data: Path, seed: int) -> float:
    """Coherence on polydigits given one picture, by means of latents."""
    import digits
    import learning as script

    options = script.parser().parse_args([recipe])
    if recipe == "cmvae":  # as in learning.md; ten samples would take an hour
        options.set = {"clusters": 40, "samples": 1}
    splits = digits.splits("polydigits", data, seed=1, rows=None)
    row = script.run(recipe, seed, splits, script.judges(splits), options)
    return float(row["coherence 1, mean"])


def polymnist(recipe: str, data: Path, seed: int) -> float:
    """Coherence on PolyMNIST given one picture."""
    import polymnist as script

    options = script.parser().parse_args(["--path", str(data), "--epochs", "40"])
    options.seed, options.samplers = seed, ["none"]
    splits, judges = script.prepared(options)
    (line,) = script.run(recipe, splits, judges, 0.0, options)
    return float(line["given 1"])


def of_mfeat(name: str, published: float, missing: str) -> Figure:
    """Clusters of mfeat."""
    return Figure(
        name,
        "best of others",
        "best published figure that docs/benchmarks.md has for these views; it names no paper",
        f"accuracy of ten clusters by the best matching, all 2,000 rows, six views{missing}; "
        "cmvae, 960 steps, see clusters.py",
        published,
        partial(clusters, "mfeat, half missing" if missing else "mfeat"),
        5,
        data=("mfeat",),
        packages=("mvkit_datasets", "sklearn"),
    )


def of_white_wine(name: str, by: str, published: float, method: str, minutes: float) -> Figure:
    """Values missing not at random."""
    return Figure(
        name,
        by,
        f"{NOT_MIWAE}, white wine, as docs/benchmarks.md quotes it",
        "root mean square error, in standard deviations, of values above the mean removed in 5 of "
        "11 columns of 4,898 white wines, standardised before; see missingness.py",
        published,
        partial(white_wine, method),
        minutes,
        data=("mixed_tables/Wine",),
        packages=("sklearn",),
    )


def of_mixed_table(table: str, published: float, minutes: float) -> Figure:
    """Hidden cells of a table of mixed columns."""
    return Figure(
        f"mixed-{table.lower()}",
        "forests",
        "IterativeImputer on random forests under the same mask, run here (mixed_tables.jsonl): "
        "numbers of Nazabal et al., Handling Incomplete Heterogeneous Data using VAEs, 2020, "
        "https://arxiv.org/abs/1807.03653, whose masks and score these are, were not at hand",
        "HI-VAE's score of 20 % hidden cells, the authors' mask 1, lower is better; "
        "mvkit.impute(table) without an option, see mixed_tables.py",
        published,
        partial(mixed_table, "defaultCredit" if table == "Credit" else table),
        minutes,
        data=(f"mixed_tables/{'defaultCredit' if table == 'Credit' else table}",),
        packages=("sklearn", "pandas"),
        own=True,
    )


def of_rosmap(score: str, published: float) -> Figure:
    """Labels of ROSMAP."""
    return Figure(
        f"rosmap-{score.lower()}",
        "MOGONET",
        MOGONET,
        f"{score} {ROSMAP}; see classes.py",
        published,
        partial(classes, "rosmap", score),
        5,
        data=("rosmap",),
        packages=("mvkit_datasets", "mvkit_sklearn"),
    )


def of_mfeat_classes(published: float) -> Figure:
    """Labels of mfeat."""
    return Figure(
        "mfeat-classes",
        "TMC",
        "Han, Zhang, Fu and Zhou, Trusted Multi-View Classification, ICLR 2021, "
        "https://arxiv.org/abs/2102.02051, Handwritten with six views, as "
        "https://github.com/kjf4096/TMC quotes it",
        "accuracy of the fifth of the rows that does not train, six views, a generative model "
        "whose label is one more modality; see classes.py",
        published,
        partial(classes, "mfeat", "accuracy"),
        30,
        data=("mfeat",),
        packages=("mvkit_datasets", "mvkit_sklearn"),
    )


def of_polydigits(recipe: str, published: float) -> Figure:
    """Coherence of a recipe on this project's own digits."""
    return Figure(
        f"coherence-{recipe}",
        "learning.md",
        "median over seeds of benchmarks/learning.md: nobody else has polydigits",
        "share of 2,000 test rows whose other pictures show the row's digit, given one picture, "
        "latents by means; 20 epochs, latent 16, see learning.py",
        published,
        partial(coherence, recipe),
        30,
        packages=("sklearn",),
        own=True,
    )


def of_polymnist(recipe: str, by: str, published: float, paper: str) -> Figure:
    """Coherence of a recipe on PolyMNIST."""
    return Figure(
        f"polymnist-{recipe}",
        by,
        f"{paper}, {MULTIVAE}",
        "share of 2,000 test rows whose other pictures show the row's digit, given one picture, "
        "draws of latents; 10,000 training rows, 40 epochs and small convolutions, less than "
        "there; another photograph as m2, judges fitted here; see polymnist.py",
        published,
        partial(polymnist, recipe),
        180,
        data=("mnist", "polymnist_backgrounds"),
        packages=("mvkit_datasets",),
        long=True,
    )


def of_jmvae(measure: Callable[[Path, int], float]) -> Figure:
    """JMVAE's likelihood."""
    return Figure(
        "jmvae-mnist",
        "JMVAE",
        "Suzuki, Nakayama and Matsuo, 2016, https://arxiv.org/abs/1611.01891, joint log-likelihood "
        "of MNIST and labels",
        "nats of 1,000 test rows, bits drawn once, 1,000 importance samples; bits of training rows "
        "drawn at each access; latent 64, 150 epochs (there: 500), learning rate lowered to 0 over "
        "the last 60; see jmvae_mnist.py",
        -86.86,
        measure,
        180,
        data=("mnist",),
        packages=("mvkit_datasets",),
        long=True,
    )


FIGURES = [
    of_jmvae(jmvae_mnist),
    of_mfeat("mfeat-clusters", 0.969, ""),
    of_mfeat("mfeat-clusters-missing", 0.951, ", each missing with probability ½"),
    of_white_wine("white-wine-mice", "MICE", 1.41, "mice", 2),
    of_white_wine("white-wine", "not-MIWAE", 1.035, "self-masking, sign given", 30),
    of_mixed_table("Breast", 0.0982, 2),
    of_mixed_table("Wine", 0.0553, 10),
    of_mixed_table("Adult", 0.1983, 15),
    of_mixed_table("Credit", 0.0790, 30),
    of_rosmap("accuracy", 0.815),
    of_rosmap("F1", 0.821),
    of_rosmap("AUC", 0.874),
    of_mfeat_classes(0.9851),
    of_polydigits("mopoe", 0.923),
    of_polydigits("jmvae", 0.947),
    of_polydigits("telbo", 0.895),
    of_polydigits("cmvae", 0.964),
    of_polydigits("nexus", 0.849),
    of_polymnist("mopoe", "MoPoE", 0.66, "https://arxiv.org/abs/2105.02470"),
    of_polymnist(
        "mvtcae",
        "MVTCAE",
        0.69,
        "https://proceedings.neurips.cc/paper/2021/hash/"
        "65a99bb7a3115fdede20da98b08a370f-Abstract.html",
    ),
    of_polymnist("mmvaeplus", "MMVAE+", 0.869, "https://openreview.net/forum?id=sdQGxouELX"),
    of_polymnist("cmvae", "CMVAE", 0.897, "https://openreview.net/forum?id=k5THrhXDV3"),
]
