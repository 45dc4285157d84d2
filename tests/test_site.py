"""The documentation site: what its pages are made of, and the whole of it in a browser."""

import doctest
import json
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from installs import PART, declares, install
from screens import browser, set_width

from mvkit.apps import cli
from mvkit.registry import plugins
from mvkit.registry.component import KINDS
from mvkit.registry.part_records import part_records

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

from mvkit_docs import drawings, public_objects, tutorial_pages  # noqa: E402
from mvkit_docs.public_objects import page_examples, without_example  # noqa: E402
from mvkit_docs.text_index import text_index  # noqa: E402

OBJECTS = public_objects.public_objects()
STARTS = ["start/tables", "start/research", "start/cells", "concepts"]
FIGURE = r"(?<![\d.,])0?(\.\d+|\d+(?:,\d{3})+|\d+\.\d+|\d{2,})(?![\d])"


# what `mvkit list --json` prints


def listed(capsys, *arguments):
    assert cli.main(["list", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_list_as_json_has_every_part(capsys):
    records = listed(capsys)
    assert [each["kind"] for each in records] == sorted(
        (each["kind"] for each in records), key=KINDS.index
    )
    names = {(each["kind"], each["name"]) for each in records}
    assert names == {(kind, name) for kind in KINDS for name in plugins.available(kind)}
    for each in records:
        assert set(each) == {
            *("kind", "name", "package", "version", "summary"),
            *("target", "options", "reference", "problem"),
        }
        assert each["package"] == "mvkit"
        assert each["summary"]
        assert each["problem"] is None


def test_list_as_json_has_options_with_their_defaults(capsys):
    by_name = {each["name"]: each for each in listed(capsys, "aggregator")}
    assert by_name["mopoe"]["options"] == [
        {"name": "subsets", "default": None},
        {"name": "prior_expert", "default": "full"},
        {"name": "max_subsets", "default": None},
        {"name": "inference", "default": "product"},
    ]
    assert "https://arxiv.org/abs/2105.02470" in by_name["mopoe"]["reference"]
    assert by_name["moe"]["options"] == []
    (jmvae,) = [each for each in listed(capsys, "recipe") if each["name"] == "jmvae"]
    assert jmvae["options"][:2] == [{"name": "modalities"}, {"name": "latent_dim", "default": 10}]
    assert {"name": "alpha", "default": 0.1} in jmvae["options"]


def test_list_as_json_says_what_package_a_part_is_of(packages, capsys):
    prior = ("prior", "sharp", "sharp_parts:Sharp", "narrow")
    install(packages, "mvkit-sharp", "sharp", declares(prior), PART, version="1.2")
    (record,) = [each for each in listed(capsys, "prior") if each["package"] != "mvkit"]
    assert record["name"] == "mvkit-sharp/sharp"
    assert (record["version"], record["summary"]) == ("1.2", "narrow")
    assert record["options"] == [{"name": "power", "default": 2.0}]
    assert record["reference"] == ""


def test_list_as_json_goes_on_after_a_part_that_cannot_be_imported(packages, capsys):
    prior = ("prior", "sharp", "sharp_parts:Blunt", "narrow")
    install(packages, "mvkit-sharp", "sharp", declares(prior), PART)
    records = listed(capsys, "prior")
    (record,) = [each for each in records if each["problem"]]
    assert "Blunt" in record["problem"]
    assert record["options"] == []
    assert len(records) == len(part_records("prior"))


def test_list_as_json_of_an_unknown_kind(capsys):
    assert cli.main(["list", "priors", "--json"]) == 1
    assert "unknown kind 'priors'; did you mean 'prior'" in capsys.readouterr().err


# examples


def test_nearly_every_public_object_has_an_example():
    lacking = without_example()
    share = 1 - len(lacking) / len(OBJECTS)
    assert share >= 0.95, f"{share:.1%}; without: {' '.join(lacking)}"


@pytest.mark.parametrize("name", page_examples())
def test_examples_that_stand_on_pages_alone_run(name):
    assert name in {each.name for each in OBJECTS}
    (each,) = [each for each in OBJECTS if each.name == name]
    assert not each.own_examples(), f"{name} has an example in its docstring, too"
    test = doctest.DocTestParser().get_doctest(page_examples()[name], {}, name, None, 0)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def snippets(name):
    return re.findall(r"```python\n(.*?)```", (DOCS / f"{name}.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.filterwarnings("ignore")  # of few hidden cells, and of the libraries around cells
def test_pages_to_start_with_can_be_followed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "\n".join(snippets(name))
    for module in set(re.findall(r"^from (mvkit_\w+)", source, re.MULTILINE)):
        pytest.importorskip(module, reason=f"needs plugins/{module.replace('_', '-')}")
        monkeypatch.setenv("MVKIT_PLUGINS", module.replace("_", "-"))
        plugins.registry.cache_clear()
    source = source.replace(
        "intervals=0.9, seed=0", 'intervals=0.9, seed=0, choices={"epochs": 2}'
    )
    exec(tutorial_pages.shortened(source), {"__name__": "start"})


# pages


def test_text_index_is_that_of_the_pages():
    """`python -m mvkit_docs.text_index` in docs/ writes it anew, as `make docs` does."""
    assert (DOCS / "llms.txt").read_text() == text_index(DOCS)


def test_text_index_names_every_page_and_object():
    text = (DOCS / "llms.txt").read_text()
    for each in OBJECTS:
        assert f"[{each.name}](api/{each.name}.html)" in text
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in pages_by_hand()}
    for name in pages - {"index", "learning"}:
        assert f"({name}.html)" in text, name


def pages_by_hand():
    made = ("_build", "api", "tutorials", "examples")
    return [
        path
        for path in DOCS.rglob("*.md")
        if path.relative_to(DOCS).parts[0] not in made and path.name != "parts.md"
    ]


def test_every_page_is_in_a_table_of_contents():
    text = (DOCS / "index.md").read_text()
    for path in pages_by_hand():
        name = path.relative_to(DOCS).with_suffix("").as_posix()
        assert name == "index" or re.search(rf"^{name}$", text, re.MULTILINE), name


def decisions():
    text = (DOCS / "which_model.md").read_text()
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if len(row) == 4 and row[0].strip() != "my data"]


@pytest.mark.parametrize("row", decisions(), ids=lambda row: row[0].strip()[:40])
def test_figures_of_the_decision_table_are_those_of_the_benchmarks(row):
    pages = re.findall(r"\((\w+\.md)(?:#[\w-]+)?\)", row[3])
    assert pages
    text = "".join((DOCS / page).read_text() for page in pages)
    text += (ROOT / "benchmarks" / "learning.md").read_text() if "learning.md" in pages else ""
    measured = set(re.findall(FIGURE, text))
    figures = re.findall(FIGURE, row[2])
    assert figures
    assert [figure for figure in figures if figure not in measured] == []


@pytest.mark.parametrize("name", drawings.DRAWINGS)
def test_drawings_can_be_read_in_light_and_in_dark(name):
    text = drawings.DRAWINGS[name]().svg()
    svg = ElementTree.fromstring(text)[0]
    assert svg.find("{*}title").text == svg.get("aria-label")
    colours = set(re.findall(r'(?:fill|stroke)="([^"]+)"', text))
    assert colours <= {"none", "currentColor", drawings.ACCENT, *drawings.OTHERS}
    width, height = map(float, svg.get("viewBox").split()[2:])
    for shape in svg.iter():
        for key, most in (("x", width), ("y", height), ("cx", width), ("cy", height)):
            assert 0 <= float(shape.get(key, 0)) <= most


def test_formulas_of_docstrings_are_marked():
    formulas = pytest.importorskip("mvkit_docs.formulas", reason="needs docutils: mvkit[docs]")
    assert formulas.mark("Product q(z|X) ∝ p(z) ∏ q(z|x_m): precisions") == (
        r"Product :math:`q(z\mid X) \propto  p(z) \prod  q(z\mid x_{m})`: precisions"
    )
    assert formulas.mark("rows (b, d), *args and a | b_ of n = 199") == (
        r"rows (b, d), \*args and a \| b\_ of n = 199"
    )
    element = ElementTree.fromstring(formulas.mathml(r"\frac{1}{2} \sum_{m\in O} x_{m}"))
    assert [each.text for each in element.findall(".//{*}mn")] == ["1", "2"]
    assert element.tag.endswith("math")


def test_docstrings_keep_their_code_and_tables():
    docstrings = pytest.importorskip("mvkit_docs.docstrings", reason="needs docutils: mvkit[docs]")
    text = "Says `a_b` and\n`c |\n d`.\n\n>>> f(*x)  # `x`\n1\n\n| a | b |\n|---|---|\n| `c` | d |"
    assert docstrings.as_rst(text) == (
        "Says ``a_b`` and\n``c | d``.\n\n>>> f(*x)  # `x`\n1\n\n\n.. list-table::\n"
        "   :header-rows: 1\n\n   * - a\n     - b\n   * - ``c``\n     - d\n"
    )


# tutorials


def test_tutorials_are_run_cell_by_cell(tmp_path):
    cells = [
        "import pathlib\nx = 2\nprint(x)",
        "x + 1",
        'pathlib.Path("a.png").write_text("a")',
        "",
    ]
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    program = [sys.executable, DOCS / "mvkit_docs" / "run_cells.py", "cells.json", "shown.json"]
    subprocess.run(program, cwd=tmp_path, check=True, timeout=120)
    assert json.loads((tmp_path / "shown.json").read_text()) == [
        {"text": "2\n", "pictures": []},
        {"text": "3\n", "pictures": []},
        {"text": "1\n", "pictures": ["a.png"]},
        {"text": "", "pictures": []},
    ]


def test_pages_of_tutorials_say_where_their_figures_come_from(tmp_path, monkeypatch):
    monkeypatch.setattr(tutorial_pages, "outputs_of", lambda each, kept: [])
    names = tutorial_pages.write_tutorials(tmp_path, tmp_path)
    assert len(names) == len(set(names)) >= 18
    for each in tutorial_pages.tutorials():
        notebook = json.loads((tmp_path / f"{each.path.stem}.ipynb").read_text())
        first = notebook["cells"][0]["source"]
        assert first.startswith(f"# {each.title}")
        note = "was not run for this page" if each.lacks() else "comes from a short run"
        assert note in first
        sources = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for source in sources:
            assert source in each.source


def test_runs_of_tutorials_are_short():
    for each in tutorial_pages.tutorials():
        source = tutorial_pages.shortened(each.source)
        epochs = re.findall(r'(?:epochs=|"epochs": |trials=)(\d+)', source)
        assert max(map(int, epochs), default=0) <= tutorial_pages.EPOCHS


# publishing


def test_the_site_is_published_from_the_repository_alone():
    text = (ROOT / ".github" / "workflows" / "docs.yml").read_text()
    assert "make docs" in text
    assert "path: docs/_build/html" in text
    assert "secrets" not in text
    assert not re.search(r"https?://|pypi", text)
    commands = re.findall(r"^ +- (?:id: \w+\n +)?(run|uses): (.+)$", text, re.MULTILINE)
    for kind, value in commands:
        assert value.startswith("make" if kind == "run" else "actions/"), value
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^docs: .*\n\t.*sphinx -W .* docs docs/_build/html$", makefile, re.MULTILINE)


# the site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; a warning is an error."""
    pytest.importorskip("sphinx_book_theme", reason="needs Sphinx: pip install 'mvkit[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-b", "html"]
    begin = time.perf_counter()
    done = subprocess.run(
        [*command, str(DOCS), str(folder / "html")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    print(f"built in {time.perf_counter() - begin:.0f} s")
    return folder / "html"


class Links(HTMLParser):
    """What a page links to and loads, and the places in it."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.places = [], [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        options = dict(attributes)
        if "id" in options:
            self.places.add(options["id"])
        if tag == "a" and options.get("href"):
            self.links.append(options["href"])
        elif tag == "link" and options.get("rel") in ("stylesheet", "preload", "icon"):
            self.loaded.append(options["href"])
        elif options.get("src"):
            self.loaded.append(options["src"])


@pytest.mark.slow
def test_every_public_object_has_a_page(site):
    for each in OBJECTS:
        page = (site / "api" / f"{each.name}.html").read_text()
        assert f'id="{each.name}"' in page, each.name
    parts = (site / "parts.html").read_text()
    for record in part_records():
        assert f">{record['name']}<" in parts, record["name"]
    assert (site / "llms.txt").read_text() == (DOCS / "llms.txt").read_text()


@pytest.mark.slow
def test_links_between_pages_lead_somewhere(site):
    pages = {path: Links(path) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            address, _, place = link.partition("#")
            if re.match(r"[a-z]+:", address):
                continue
            target = (path.parent / unquote(address)).resolve() if address else path
            assert target.is_file(), f"{path.relative_to(site)}: {link}"
            if place and target in pages:
                assert unquote(place) in pages[target].places, f"{path.relative_to(site)}: {link}"


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site):
    for path in site.rglob("*.html"):
        for address in Links(path).loaded:
            assert not re.match(r"(https?:)?//", address), f"{path.name}: {address}"
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", path.read_text()), path.name


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_in_a_browser(site, width):
    driver = browser()
    set_width(driver, width)
    over = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    try:
        faults = []
        for path in sorted(site.rglob("*.html")):
            if "_static" in path.parts:
                continue
            driver.get(path.as_uri())
            name = path.relative_to(site).as_posix()
            wide = driver.execute_script(over)
            if wide > 0:
                faults.append(f"{name}: {wide} px too wide")
            for entry in driver.get_log("browser"):
                if entry["level"] in ("SEVERE", "WARNING"):
                    faults.append(f"{name}: {entry['message']}")
            broken = driver.execute_script(
                "return [...document.images].filter(i => i.complete && !i.naturalWidth).length"
            )
            if broken:
                faults.append(f"{name}: {broken} pictures are not there")
        assert faults == []
    finally:
        driver.quit()
