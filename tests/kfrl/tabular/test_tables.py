from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kfrl.errors import UserError
from kfrl.tabular.tables import Attribute, Preparation, check_classes, draw, load_table, read_csv, values_like

TABLE = "size,colour,code,class\n1.5,red,1,yes\n?,blue,2,no\n3.5,,2,yes\n2.5,red,1,no\n"


@pytest.fixture
def write(tmp_path: Path):
    def to(text: str) -> Path:
        path = tmp_path / "table.csv"
        path.write_text(text)
        return path

    return to


def test_cells_become_numbers_and_categories(write) -> None:
    table = read_csv(write(TABLE), "class", ["code"])
    assert table.attributes == (
        Attribute("size"),
        Attribute("colour", ("blue", "red", "?")),
        Attribute("code", ("1", "2")),
    )
    assert table.classes == ("no", "yes")
    assert table.labels.tolist() == [1, 0, 1, 0]
    np.testing.assert_equal(table.values, [[1.5, 1, 0], [np.nan, 0, 1], [3.5, 2, 1], [2.5, 1, 0]])


def test_what_learners_see(write) -> None:
    table = read_csv(write(TABLE), "class", ["code"])
    preparation = Preparation.of(table.attributes, table.values)
    cases = preparation.prepare(table.values)
    # 1.5 to 3.5 becomes 0 to 1, and the missing one their median.
    assert cases[:, 0].tolist() == [0, 0.5, 1, 0.5]
    assert preparation.encode(cases)[2].tolist() == [1, 0, 0, 1, 0, 1]
    assert preparation.condition(0, 0.25) == ("size <= 2", "size > 2")
    assert preparation.condition(2, 0.5) == ("colour is not red", "colour is red")
    np.testing.assert_equal(preparation.restore(cases)[[0, 2]], table.values[[0, 2]])


def test_another_file_is_read_by_the_names_of_columns_and_categories(write) -> None:
    attributes = read_csv(write(TABLE), "class", ["code"]).attributes
    columns = {"code": ["2", "7"], "colour": ["green", "blue"], "size": ["", "2"], "more": ["x", "y"]}
    # A colour that nobody has seen is as good as none; a code has no such category.
    np.testing.assert_equal(values_like(attributes, columns, "it"), [[np.nan, 2, 1], [2, 0, -1]])
    with pytest.raises(UserError, match="'size' has text where numbers are expected: 'big'"):
        values_like(attributes, {**columns, "size": ["1", "big"]}, "it")
    with pytest.raises(UserError, match=r"Unknown column 'code'\..*it lacks it"):
        values_like(attributes, {"colour": ["red"], "size": ["1"]}, "it")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", r"Unknown target column 'class'\. .*Valid: a, b\..*--target"),
        ("a,klass\n1,2\n", "Did you mean 'klass'"),
        (
            "a,class\n1,x\ntwo,y\n",
            "column 'a' has text where numbers are expected: 'two' in line 3, and 1 of its 2 .*--nominal a",
        ),
        ("a,b,class\n,1,x\nNA,2,y\n", "column 'a' has no value in any of its 2 cells"),
        ("a,class\n1,x\n2,x\n", "all cases are of one class, 'x'"),
        ("a,class\n1,x\n2,\n", "1 cases have no class, the first in line 3"),
        ("a,class\n1,x\n2\n", "line 3: 1 cells, but the header has 2 columns"),
        ("a,a,class\n1,1,x\n", "several columns are called 'a'"),
        ("class\nx\ny\n", "no column beside the target"),
        ("a,class\n", "holds no case"),
        ("", "holds no case"),
    ],
)
def test_a_file_that_cannot_be_learned_from(write, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_csv(write(text), "class")


def test_names_of_tables_and_columns(write) -> None:
    with pytest.raises(UserError, match="Did you mean 'ionosphere'"):
        load_table("ionospere", "class", (), None)
    with pytest.raises(UserError, match=r"There is no file .*tablee\.csv\. Did you mean '.*table\.csv'"):
        load_table(str(write(TABLE).with_name("tablee.csv")), "class", (), None)
    with pytest.raises(UserError, match=r"Unknown column in --nominal 'color'.*'colour'"):
        read_csv(write(TABLE), "class", ["color"])


def test_a_class_of_one_case(write) -> None:
    table = read_csv(write("a,class\n" + "1,x\n2,y\n" * 5 + "3,z\n"), "class")
    with pytest.raises(UserError, match="class 'z' has one case"):
        check_classes(table, 0.1)


def test_every_class_gives_its_share() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 2])
    for seed in range(20):
        picked = draw(labels, 0.1, np.random.default_rng(seed))
        counts = np.bincount(labels[picked], minlength=3)
        assert counts[:2].tolist() == [5, 3]
        assert counts[2] <= 1
    assert any(draw(labels, 0.1, np.random.default_rng(seed))[-1] for seed in range(50))


def test_a_named_table_is_found_in_the_data_folder(tmp_path: Path) -> None:
    rows = [f"{i},{letter}" for i, letter in enumerate("ABCDEFGHIJKLMNOOZ")]
    (tmp_path / "letter.csv").write_text("\n".join(["x", *rows]).replace("x", "x,class", 1) + "\n")
    table = load_table("letter-p1", "class", (), tmp_path)
    assert table.classes == ("rest", "O")
    assert table.labels.tolist() == [0] * 14 + [1, 1, 0]
    assert load_table("letter-p2", "class", (), tmp_path).labels.tolist() == [1] * 13 + [0] * 4


def test_a_table_of_openml(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(
        feature_names=["size", "colour"],
        categories={"colour": ["red", "blue"]},
        data=np.array([[1.0, 0.0], [np.nan, 1.0], [3.0, np.nan]]),
        target=np.array(["a", "b", "a"]),
    )
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda **_: found)
    table = load_table("openml:7", "class", (), None)
    assert table.attributes == (Attribute("size"), Attribute("colour", ("blue", "red", "?")))
    np.testing.assert_equal(table.values, [[1, 1], [np.nan, 0], [3, 2]])

    def fails(**_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fails)
    with pytest.raises(UserError, match="Table 7 of OpenML could not be downloaded: no network"):
        load_table("openml:7", "class", (), None)
