"""Files that do not say what they mean, or cannot be read: errors that name file and remedy."""

import gzip
import io
import zipfile

import numpy as np
import pytest

from mvkit import DataError, MultimodalDataset
from mvkit.errors import RequestError

pandas = pytest.importorskip("pandas")
P = "id,p\ns1,0.1\ns2,0.3\ns3,0.2\n"


def put(folder, text, name="x.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def read(folder, text, name="x.csv", id="id", **options):
    return MultimodalDataset.from_files({"a": put(folder, text, name)}, id=id, **options)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("id,x,y\np,1,2,\nq,3,4,\n", 2),  # every row ends in a comma
        ("id,x\np,1,9\nq,2,8\n", 2),
        ("id,x\np,1,9\nq,2\n", 2),
        ("id,x\np,1\nq,2,\n", 3),
        ('id,x\n"p,1",1\nq,2\nr,1,2\n', 4),
        ("id,x\np,1\n\nq,2,3\n", 4),
    ],
)
@pytest.mark.parametrize("id", ["id", None])
def test_rows_with_more_fields_than_the_header_are_refused(tmp_path, text, line, id):
    with pytest.raises(
        DataError, match=rf"files\['a'\] \('.*x\.csv'\): line {line} has \d fields, the header"
    ):
        read(tmp_path, text, id=id)


def test_surplus_fields_of_tsv_and_compressed_files(tmp_path):
    with pytest.raises(DataError, match=r"x\.tsv'\): line 2 has 3 fields, the header has 2"):
        read(tmp_path, "id\tx\np\t1\t\n", "x.tsv")
    with pytest.raises(DataError, match=r"x\.csv\.gz'\): line 2 has 3 fields"):
        read(tmp_path, gzip.compress(b"id,x\np,1,\n"), "x.csv.gz")


def test_commas_at_the_end_of_all_rows_are_no_feature(tmp_path):
    data = read(tmp_path, "id,x,\np,1.5,\nq,2.5,\n")
    assert data.ids.tolist() == ["p", "q"]
    assert data.modalities["a"].features == ("x",)
    assert data.batch.data["a"].tolist() == [[1.5], [2.5]]


def test_short_rows_are_gaps(tmp_path):
    data = read(tmp_path, "id,x,y\np,1.5\nq,2.5,3.5\n")
    np.testing.assert_array_equal(data.batch.data["a"], [[1.5, np.nan], [2.5, 3.5]])


@pytest.mark.parametrize("name", ["NA", "nan", "None", "null", "N/A", "<NA>", "007", "1e5"])
def test_ids_of_text_files_are_names_whatever_they_read(tmp_path, name):
    text = f"id,x\np,1.5\n{name},2.5\n"
    assert read(tmp_path, text).ids.tolist() == ["p", name]


@pytest.mark.parametrize("id", ["", " ", '""'])
def test_an_id_that_is_not_there_is_refused(tmp_path, id):
    with pytest.raises(DataError, match=r"x\.csv'\): row 1 has no id"):
        read(tmp_path, f"id,x\np,1.5\n{id},2.5\n")


def test_a_category_called_none_is_one(tmp_path):
    text = "id,alcohol,smokes\ns1,None,NA\ns2,Mild,no\ns3,Heavy,\n"
    data = read(tmp_path, text, modalities={"a": "categorical"})
    assert data.modalities["a"].transform[0].categories == ("Heavy", "Mild", "None", "no")
    codes = data.batch.data["a"]
    assert codes[:, 0].tolist() == [2, 1, 0]
    assert codes[:, 1].isnan().tolist() == [True, False, True]


def test_none_among_numbers_and_bits_is_a_gap(tmp_path):
    data = read(tmp_path, "id,x,b\ns1,None,True\ns2,1.5,None\ns3,2.5,False\n")
    expected = [[np.nan, 1], [1.5, np.nan], [2.5, 0]]
    np.testing.assert_array_equal(data.batch.data["a"], expected)
    doses = read(tmp_path, "id,dose\ns1,None\ns2,1\ns3,2\n", modalities={"a": "categorical"})
    assert doses.modalities["a"].transform[0].categories == (1.0, 2.0)


def test_a_label_called_none_is_one(tmp_path):
    data = read(tmp_path, "id,x,g\ns1,1.5,None\ns2,2.5,Mild\n", label="g")
    assert data.labels.tolist() == ["None", "Mild"]


def test_encodings(tmp_path):
    text = "id,größe\ns1,1.5\nsé,2.5\n"
    for encoding in ("latin-1", "utf-16", "cp1252"):
        files = {"r": put(tmp_path, text, encoding=encoding)}
        with pytest.raises(
            DataError, match=r"files\['r'\] \('.*x\.csv'\): it is not text in 'utf-8'.*encoding="
        ):
            MultimodalDataset.from_files(files, id="id")
        data = MultimodalDataset.from_files(files, id="id", encoding=encoding)
        assert data.ids.tolist() == ["s1", "sé"]
        assert data.modalities["r"].features == ("größe",)
    bom = read(tmp_path, text.encode("utf-8-sig"))
    assert bom.ids.tolist() == ["s1", "sé"]
    with pytest.raises(DataError, match="bytes of zero; expected text; give its encoding"):
        read(tmp_path, "id,x\ns1,1.5\n".encode("utf-16-le"))
    with pytest.raises(RequestError, match="encoding='utf-99'; expected a name that Python"):
        read(tmp_path, text, encoding="utf-99")


def test_late_bytes_of_another_encoding(tmp_path):
    rows = "".join(f"s{i},{i}.5\n" for i in range(100_000))
    with pytest.raises(DataError, match="not text in 'utf-8'"):
        read(tmp_path, f"id,x\n{rows}é,1\n".encode("latin-1"))


@pytest.mark.parametrize("text", ["", "\n\n", " ", "\ufeff"])
def test_empty_files(tmp_path, text):
    with pytest.raises(DataError, match=r"files\['a'\] \('.*x\.csv'\): "):
        read(tmp_path, text)


def test_a_name_that_stands_twice(tmp_path):
    for text in ("id,g,g\ns1,1,2\n", "id,id,g\ns1,s2,1\n"):
        with pytest.raises(DataError, match=r"x\.csv'\): two columns are called '(g|id)'"):
            read(tmp_path, text)
    # a name of its own, which pandas gives a second g
    assert read(tmp_path, "id,g,g.1\ns1,1,2\n").modalities["a"].features == ("g", "g.1")


def test_columns_without_a_name(tmp_path):
    numbered = io.StringIO()
    pandas.DataFrame({"id": ["s1", "s2"], "g": [1.5, 2.5]}).to_csv(numbered)
    assert read(tmp_path, numbered.getvalue()).modalities["a"].features == ("g",)
    assert read(tmp_path, ",g\n0,1.5\n1,2.5\n", id=None).modalities["a"].features == ("g",)
    for text in (",id,g\n7,s1,1.5\n9,s2,2.5\n", "id,g,\ns1,1.5,0\ns2,2.5,1\n"):
        with pytest.raises(DataError, match=r"x\.csv'\): column [02] has no name; expected one"):
            read(tmp_path, text)
    with pytest.raises(DataError, match="column 0 has no name.*give that name as id="):
        read(tmp_path, ",g\ns1,1.5\ns2,2.5\n", id=None)
    ids = read(tmp_path, ",g\ns1,1.5\ns2,2.5\n", id="Unnamed: 0")  # as pandas calls it
    assert ids.ids.tolist() == ["s1", "s2"]


@pytest.mark.parametrize(
    "text", ["0.5,1.5\n2.5,3.5\n", "3,1,2\n4,5,6\n", "1\n2\n", "nan,1\n1,2\n"]
)
def test_files_without_a_header(tmp_path, text):
    with pytest.raises(DataError, match=r"x\.csv'\): the first row holds numbers, .*add a row"):
        read(tmp_path, text, id=None)


@pytest.mark.parametrize("text", ["0,1\n2.5,3.5\n", "400.5,401,402\n1.5,2.5,3.5\n", "a,1\n1,2\n"])
def test_names_that_are_numbers(tmp_path, text):
    assert read(tmp_path, text, id=None).modalities["a"].features == tuple(
        text.split("\n")[0].split(",")
    )


def test_a_file_without_the_column_of_ids_is_named(tmp_path):
    with pytest.raises(DataError, match=r"x\.csv'\): no column 'id' of ids; did you mean 'Id'"):
        read(tmp_path, "Id,x\np,1\n")


def broken_files():
    parquet = io.BytesIO()
    pandas.DataFrame({"id": ["a"], "x": [1.5]}).to_parquet(parquet)
    lists = io.BytesIO()
    pandas.DataFrame({"id": [[1, 2], [3]], "x": [1.5, 2.5]}).to_parquet(lists)
    whole = parquet.getvalue()
    return {
        "an open quote": ('id,x\np,"1\nq,2\n', "x.csv"),
        "binary": (b"\x89PNG\r\n\x1a\n\x00\x00" * 9, "x.csv"),
        "no gzip": ("id,x\np,1\n", "x.csv.gz"),
        "a cut gzip": (gzip.compress(b"id,x\n" + bytes(range(48, 58)) * 999)[:-12], "x.csv.gz"),
        "no zip": ("id,x\np,1\n", "x.csv.zip"),
        "no xz": ("id,x\np,1\n", "x.csv.xz"),
        "empty parquet": (b"", "x.parquet"),
        "garbage parquet": (b"PAR1 of a kind", "x.parquet"),
        "cut parquet": (whole[: len(whole) // 2], "x.parquet"),
        "cut inside": (whole[:20] + whole[40:], "x.parquet"),
        "ids that are lists": (lists.getvalue(), "x.parquet"),
    }


@pytest.mark.parametrize("kind", broken_files())
def test_files_that_cannot_be_read(tmp_path, kind):
    text, name = broken_files()[kind]
    with pytest.raises(DataError, match=rf"files\['a'\] \('.*{name}'\): .*; .*"):
        read(tmp_path, text, name)


def npz(folder, change):
    file = io.BytesIO()
    np.savez(file, a=np.arange(6.0).reshape(3, 2), b=np.ones((3, 1)))
    return put(folder, change(file.getvalue()), "x.npz")


def huge(_):
    """An archive whose array claims 80 TB."""
    file = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (10_000_000, 1_000_000)}
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, header)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", array.getvalue())
    return file.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        lambda blob: b"",
        lambda blob: b"a,b\n1,2\n",
        lambda blob: blob[: len(blob) // 2],
        lambda blob: blob[:60] + b"\xff" * 20 + blob[80:],
        lambda blob: b"\x80\x04K\x01.",  # a pickle
        huge,
    ],
    ids=["empty", "text", "cut", "altered", "pickle", "huge"],
)
def test_archives_that_cannot_be_read(tmp_path, change):
    path = npz(tmp_path, change)
    with pytest.raises(DataError, match=r"from_npz \('.*x\.npz'\).* cannot be read: .*savez"):
        MultimodalDataset.from_npz(path)


def test_nobody_advises_to_load_pickles(tmp_path):
    objects = io.BytesIO()
    np.savez(objects, a=np.array([1, "x", None], dtype=object))
    for blob in (b"\x80\x04K\x01.", b"a,b\n", objects.getvalue()):
        with pytest.raises(DataError, match="pickled objects, which are never loaded") as error:
            MultimodalDataset.from_npz(put(tmp_path, blob, "x.npz"))
        assert "allow_pickle" not in str(error.value)
        assert "unsafely" not in str(error.value)


def test_files_with_names_alone(tmp_path):
    for text in ("id,x\n", "id,x"):
        with pytest.raises(DataError, match="it is empty; expected one row"):
            read(tmp_path, text)
    with pytest.raises(DataError, match="it has no columns beside ids; expected one at least"):
        read(tmp_path, "id\np\nq\n")


def test_other_things_that_are_no_archive_of_arrays(tmp_path):
    np.save(tmp_path / "x.npy", np.ones(3))
    with pytest.raises(DataError, match=r"x\.npy'\): it holds one array; expected one per"):
        MultimodalDataset.from_npz(tmp_path / "x.npy")
    np.savez(tmp_path / "x.npz", a=np.array([1, "x", None], dtype=object))
    with pytest.raises(DataError, match=r"x\.npz'\): array 'a': cannot be read"):
        MultimodalDataset.from_npz(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", a=np.ones((3, 2)), id=np.ones((3, 2)))
    with pytest.raises(DataError, match=r"data\['a'\]: row 0 has the list \[1.0, 1.0\] as its id"):
        MultimodalDataset.from_npz(tmp_path / "y.npz")


def test_files_that_are_not_there_are_errors_of_the_system(tmp_path):
    for name in ("x.csv", "x.parquet"):
        with pytest.raises(FileNotFoundError):
            MultimodalDataset.from_files({"a": tmp_path / name}, id="id")
    with pytest.raises(FileNotFoundError):
        MultimodalDataset.from_npz(tmp_path / "x.npz")
