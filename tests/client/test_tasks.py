"""The tasks that ship, the tables they read, and the registry that finds them."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from privet.client.tasks.protocol import Options, Partition, Records, resolved_options
from privet.client.tasks.registry import installed_tasks, load_task
from privet.client.tasks.table import numbered_columns, read_table, scaled
from privet.privacy.errors import TaskError
from sklearn.datasets import load_breast_cancer, load_digits

SHIPPED: list[tuple[str, Options, int]] = [
    ("digits", {}, 1797),
    ("digits", {"kind": "features", "features": 32}, 1797),
    ("digits", {"kind": "cnn"}, 1797),
    ("breast-cancer", {}, 569),
    ("synthetic", {"records": 101, "features": 7, "classes": 3}, 101),
    ("synthetic", {"records": 50, "hidden": 4}, 50),
]


@pytest.mark.parametrize(("name", "options", "count"), SHIPPED)
def test_shipped_records_are_what_the_task_declares(name: str, options: Options, count: int) -> None:
    task = load_task(name)
    resolved = resolved_options(task, options)
    facts, records, model = task.facts(resolved), task.shipped(resolved), task.model(resolved)
    low, high = facts.input_range
    assert records.inputs.shape == (count, *facts.input_shape)
    assert records.inputs.dtype == torch.float32
    assert records.targets.dtype == torch.int64
    assert float(records.inputs.min()) >= low - 1e-6
    assert float(records.inputs.max()) <= high + 1e-6
    assert float(records.inputs.std()) > 0.05 * (high - low)  # it uses the range
    assert set(records.targets.tolist()) == set(range(len(facts.classes)))
    outputs = model(records.inputs)
    assert outputs.shape == (count, len(facts.classes))
    assert task.loss(outputs, records.targets).shape == (count,)
    for scores in task.metrics(outputs, records.targets).values():
        assert scores.shape == (count,)
        assert bool(((scores >= 0) & (scores <= 1)).all())


def test_shipped_digits_are_those_of_scikit_learn() -> None:
    pixels, labels = load_digits(return_X_y=True)
    records = load_task("digits").shipped({})
    torch.testing.assert_close(records.inputs, torch.from_numpy(pixels / 16.0 - 0.3).float())
    assert records.targets.tolist() == labels.tolist()


def test_shipped_tumours_are_those_of_scikit_learn() -> None:
    """The first column, mean radius, has the public range 5 to 30."""
    values, labels = load_breast_cancer(return_X_y=True)
    records = load_task("breast-cancer").shipped({})
    expected = ((values[:, 0] - 5) / 25).clip(0, 1) - 0.5
    torch.testing.assert_close(records.inputs[:, 0], torch.from_numpy(expected).float())
    assert records.targets.tolist() == labels.tolist()


def test_hardly_a_tumour_lies_outside_the_declared_ranges() -> None:
    inputs = load_task("breast-cancer").shipped({}).inputs
    assert float((inputs.abs() >= 0.5).float().mean()) < 0.02


def test_synthetic_problem_is_one_and_the_same() -> None:
    task = load_task("synthetic")
    options = resolved_options(task, {"records": 200})
    first = task.shipped(options)
    torch.manual_seed(77)
    again = task.shipped(options)
    assert torch.equal(first.inputs, again.inputs)
    assert torch.bincount(first.targets).tolist() == [100, 100]


def write(path: Path, header: list[str], rows: list[list[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def digits_csv(path: Path) -> Path:
    pixels, labels = load_digits(return_X_y=True)
    header = ["label", "patient", *(f"pixel_{i}" for i in reversed(range(64)))]  # another order, and one more
    return write(path, header, [[y, "x", *reversed(row)] for row, y in zip(pixels.tolist(), labels, strict=True)])


def breast_cancer_csv(path: Path) -> Path:
    """Columns by the names that scikit-learn gives, turned into ours: `mean concave points` -> mean_concave_points."""
    bunch = load_breast_cancer()
    header = []
    for name in bunch.feature_names:
        measure = name.removeprefix("mean ").removeprefix("worst ").removesuffix(" error").replace(" ", "_")
        statistic = "mean" if name.startswith("mean") else "worst" if name.startswith("worst") else "error"
        header.append(f"{statistic}_{measure}")
    rows = [[*row, y] for row, y in zip(bunch.data.tolist(), bunch.target, strict=True)]
    return write(path, [*header, "label"], rows)


@pytest.mark.parametrize(("name", "writer"), [("digits", digits_csv), ("breast-cancer", breast_cancer_csv)])
def test_csv_of_the_same_data_gives_the_same_records(name: str, writer: object, tmp_path: Path) -> None:
    assert callable(writer)
    task = load_task(name)
    loaded, shipped = task.load(writer(tmp_path / "data.csv")), task.shipped(resolved_options(task, {}))
    assert torch.equal(loaded.inputs, shipped.inputs)
    assert torch.equal(loaded.targets, shipped.targets)


def test_synthetic_csv_is_read_by_the_numbers_of_its_columns(tmp_path: Path) -> None:
    """Institutions whose files order the columns differently must train the same model."""
    header = [f"x_{i}" for i in (10, *range(9, -1, -1))]
    path = write(tmp_path / "data.csv", ["label", *header], [[1, *(i * 0.1 for i in (10, *range(9, -1, -1)))]])
    records = load_task("synthetic").load(path)
    torch.testing.assert_close(records.inputs, torch.arange(11)[None] * 0.1 / 4)


@pytest.mark.parametrize("name", ["digits", "breast-cancer", "synthetic"])
def test_partition_gives_its_own_records(name: str) -> None:
    records = Records(torch.arange(12.0).reshape(6, 2), torch.arange(6))
    loaded = load_task(name).load(Partition(records, torch.tensor([4, 1])))
    assert loaded.inputs.tolist() == [[8.0, 9.0], [2.0, 3.0]]
    assert loaded.targets.tolist() == [4, 1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no column 'a'"),
        (b"\n", "no column 'a'"),
        (b"a,label\n1,0\n", "no column 'b'"),
        (b"a,b\n1,0\n", "no column 'label'"),
        (b"a,b,a,label\n1,2,3,0\n", "two columns 'a'"),
        (b"a,b,label\n1,2,0\n1,secret,1\n", "line 3 "),
        (b"a,b,label\n1,2,0\n\n\n1,2\n", "line 5 "),
        (b"a,b,label\n1,2,0\n1,2,2\n", "line 3 "),
        (b"a,b,label\n\n1,2,-1\n", "line 3 "),
        (b"a,b,label\n1,2,0.5\n", "line 2 "),
        (b"a,b,label\n1,2,\n", "line 2 "),
        (b"a,b,label\n1,2,nan\n", "line 2 "),
        (b"a,b,label\n1,2,inf\n", "line 2 "),
        (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "cannot be read as CSV"),
        ("a,b,label\n1,2,0\n".encode("utf-16"), "cannot be read as CSV"),
        (b"a,b,label\n" + b"1" * 200_000 + b",2,0\n", "cannot be read as CSV"),
    ],
)
def test_bad_table_is_refused_by_line_and_never_by_value(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    with pytest.raises(TaskError) as caught:
        read_table(path, ["a", "b"], classes=2)
    assert said in caught.value.message
    assert "secret" not in caught.value.message + caught.value.remedy


@pytest.mark.parametrize("read", [lambda path: read_table(path, ["a"], 2), lambda path: numbered_columns(path, "x_")])
def test_file_that_cannot_be_opened_is_a_task_error(read: object, tmp_path: Path) -> None:
    assert callable(read)
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(TaskError, match="cannot be read as CSV"):
            read(path)


def test_byte_order_mark_quotes_and_empty_cells(tmp_path: Path) -> None:
    """As a spreadsheet writes it; the empty cell becomes NaN, whose record training takes out."""
    path = tmp_path / "data.csv"
    path.write_bytes(b'\xef\xbb\xbf"a","b","label"\r\n"1.5", ,"1"\r\n2,-3e1,0.0\r\n')
    values, labels = read_table(path, ["b", "a"], classes=2)
    assert values[:, 1].tolist() == [1.5, 2.0]
    assert values[:, 0].isnan().tolist() == [True, False]
    assert float(values[1, 0]) == -30.0
    assert labels.tolist() == [1, 0]


def test_table_with_a_header_alone_has_no_records(tmp_path: Path) -> None:
    values, labels = read_table(write(tmp_path / "data.csv", ["a", "label"], []), ["a"], classes=2)
    assert values.shape == (0, 1)
    assert labels.shape == (0,)


@pytest.mark.parametrize("header", [["label"], ["x_0", "x_2", "label"], ["x_0", "x_0", "label"], ["x_1", "label"]])
def test_numbered_columns_must_be_whole(header: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", header, [[0] * len(header)])
    with pytest.raises(TaskError, match="column"):
        load_task("synthetic").load(path)


def test_value_outside_its_range_is_clamped_and_nan_stays() -> None:
    values = torch.tensor([[0.0, 5.0], [10.0, -1e30], [5.0, float("inf")], [float("nan"), 10.0]])
    found = scaled(values, [(0, 10), (0, 10)], (-1.0, 1.0))
    expected = torch.tensor([[-1.0, 0.0], [1.0, -1.0], [0.0, 1.0], [float("nan"), 1.0]])
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_scaling_does_not_look_at_the_other_records() -> None:
    values = torch.tensor([[1.0], [2.0], [300.0]])
    assert torch.equal(scaled(values, [(0, 10)], (0, 1))[:1], scaled(values[:1], [(0, 10)], (0, 1)))


def test_number_too_large_for_float32_is_clamped(tmp_path: Path) -> None:
    values, _ = read_table(write(tmp_path / "data.csv", ["a", "label"], [["1e300", 0]]), ["a"], classes=1)
    assert scaled(values, [(0, 10)], (0, 1)).tolist() == [[1.0]]


@pytest.mark.parametrize("width", [(3, 3), (4, 3)])
def test_empty_range_is_a_mistake(width: tuple[float, float]) -> None:
    """It would make every value NaN, and every record be taken out without a word."""
    with pytest.raises(ValueError, match="range"):
        scaled(torch.zeros(2, 1), [width], (0, 1))


def test_options_are_the_defaults_with_the_plans_over_them() -> None:
    task = load_task("digits")
    assert resolved_options(task, {}) == {"kind": "linear", "features": 512, "scale": 0.55}
    assert resolved_options(task, {"scale": 1, "kind": "cnn"}) == {"kind": "cnn", "features": 512, "scale": 1}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"knd": "cnn"}, "no such option; it has: kind, features, scale"),
        ({"features": 1.5}, "not of type int"),
        ({"features": True}, "not of type int"),
        ({"kind": 3}, "not of type str"),
        ({"scale": "wide"}, "not of type float"),
    ],
)
def test_option_that_the_task_lacks_is_refused(given: Options, said: str) -> None:
    with pytest.raises(TaskError) as caught:
        resolved_options(load_task("digits"), given)
    assert said in caught.value.message


def test_unknown_kind_of_model_is_refused() -> None:
    task = load_task("digits")
    with pytest.raises(TaskError, match="linear, features, cnn"):
        task.model(resolved_options(task, {"kind": "resnet"}))


def test_records_of_different_length_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        Records(torch.zeros(3, 2), torch.zeros(2))
    with pytest.raises(ValueError, match="differ in length"):
        Records(torch.zeros(3, 2), torch.zeros(3), torch.zeros(4))


def test_groups_stay_with_their_records() -> None:
    records = Records(torch.arange(5.0)[:, None], torch.arange(5), torch.tensor([7, 7, 8, 9, 9]))
    assert records.select(torch.tensor([4, 2])).groups.tolist() == [9, 8]  # type: ignore[union-attr]
    assert [chunk.groups.tolist() for chunk in records.chunks(2)] == [[7, 7], [8, 9], [9]]  # type: ignore[union-attr]
    assert list(records.select(torch.tensor([], dtype=torch.int64)).chunks(2)) == []


def test_installed_tasks_are_in_alphabetical_order() -> None:
    names = list(installed_tasks())
    assert names == sorted(names)
    assert {"breast-cancer", "digits", "synthetic"} <= set(names)


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(TaskError, match="did you mean digits"):
        load_task("digit")
    with pytest.raises(TaskError, match=r"installed: .*digits"):
        load_task("zebra")


def distribution(site: Path, name: str, value: str, module: str = "") -> None:
    """A package as pip would leave it: a module, and a dist-info with its entry points."""
    info = site / f"{name.replace('-', '_')}_dist_{len(list(site.glob('*')))}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {info.name.split('-')[0]}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[privet.tasks]\n{name} = {value}\n")
    if module:
        (site / f"{value.split(':')[0]}.py").write_text(module)


SUBCLASS = "from privet.client.tasks.{0} import {1}\nclass Mine({1}):\n    name = {2!r}\n"


@pytest.mark.parametrize(
    ("name", "value", "module", "said"),
    [
        ("mine", "raises_at_import:Mine", "raise RuntimeError('boom')", "does not load: RuntimeError: boom"),
        ("mine", "no_such_module_here:Mine", "", "does not load: ModuleNotFoundError"),
        ("mine", "no_such_class:Mine", "pass", "does not load: AttributeError"),
        ("mine", "no_task:Mine", "class Mine: name = 'mine'", "version, options, facts, model"),
        ("mine", "other_name:Mine", SUBCLASS.format("digits", "Digits", "yours"), "it has another name"),
        ("digits", "second_digits:Mine", SUBCLASS.format("digits", "Digits", "digits"), "more than one package"),
    ],
)
def test_broken_entry_point_is_a_task_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, module: str, said: str
) -> None:
    distribution(tmp_path, name, value, module)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TaskError) as caught:
        load_task(name)
    assert said in caught.value.message


def test_installed_task_is_found_in_a_fresh_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with it a broken one, which is listed by name and imported by nobody until it is asked for."""
    distribution(tmp_path, "mine", "mine_module:Mine", SUBCLASS.format("synthetic", "Synthetic", "mine"))
    distribution(tmp_path, "broken", "broken_module:Mine", "raise RuntimeError('boom')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = "from privet.client.tasks.registry import *; print(*installed_tasks()); print(load_task('mine').name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["breast-cancer", "broken", "digits", "mine", "synthetic", "mine"]
