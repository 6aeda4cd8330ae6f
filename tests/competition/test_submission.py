"""Reading labels, writing a submission, scoring one."""

from __future__ import annotations

import codecs
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, recall_score

from cnnlab.competition import submission
from cnnlab.competition.submission import read_pairs, score, write_probabilities, write_submission
from cnnlab.data import data_folder
from cnnlab.io import csv as csvs
from cnnlab.io.errors import CnnlabError

CLASSES = ["cat", "dog", "frog"]
SAMPLE = "id,label\n3,cat\n1,cat\n2,cat\n"

# What an id or a label may be: one line of text, not blank, that UTF-8 can encode.
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1).filter(str.strip)
quick_examples = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_file(folder: Path, content: str | bytes, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(call: object, *args: object, **kwargs: object) -> str:
    with pytest.raises(CnnlabError) as caught:
        call(*args, **kwargs)  # type: ignore[operator]
    text = str(caught.value)
    assert len(text.splitlines()) == 1, text
    assert len(text) < 900
    return text


@pytest.mark.parametrize(
    "content",
    [
        b"id,label\n1,cat\n2,dog\n",
        b"id,label\r\n1,cat\r\n2,dog",
        b"id,label\r1,cat\r2,dog\r",
        codecs.BOM_UTF8 + b"id,label\n1,cat\n2,dog\n",
        b'"id","label"\n"1","cat"\n"2","dog"\n',
        b"label,usage,id\ncat,Public,1\ndog,Private,2\n",
        b"\n  \n id , label\n\n1,cat\n   \n2,dog\n\n\n",
        "id,label\n1,cat\n2,dog\n".encode("utf-16"),
        "ID\tLabel\r\n1\tcat\r\n2\tdog\r\n".encode("utf-16"),
        b"ID,LABEL\n1,cat\n2,dog\n",
        b"id;label\r\n1;cat\r\n2;dog\r\n",  # as Excel writes it in German and French
        b'"id";"label";"what, who"\n1;cat;a,b,c\n2;dog;\n',
        b"\n;\nid;label\n1;cat\n2;dog\n",
        b"id,label\r\n1,cat\r\n2,dog\r\n,\r\n , \r\n",  # Excel's blank last rows
        b"id,label\n1,cat\n,,\n2,dog\n",
    ],
)
def test_csv_variants_are_read_alike(tmp_path: Path, content: bytes) -> None:
    assert read_pairs(write_file(tmp_path, content)) == (["1", "2"], ["cat", "dog"])


def test_fields_are_read_unchanged(tmp_path: Path) -> None:
    path = write_file(tmp_path, 'name,what,note\n001," a, ""b""","two\nlines"\n=cmd(),,\x1b\n 7 ,猫,\n')
    assert read_pairs(path, "name", "what") == (["001", "=cmd()", " 7 "], [' a, "b"', "", "猫"])
    assert read_pairs(str(path), "name", "what") == read_pairs(path, "name", "what")


def test_a_header_alone_gives_no_rows(tmp_path: Path) -> None:
    assert read_pairs(write_file(tmp_path, "id,label\n")) == ([], [])


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", ["empty", "header"]),
        (b"\n\n", ["empty"]),
        (b"id,lable\n1,cat\n", ["'label'", "'lable'?"]),
        (b"x,y\n1,cat\n", ["'id'", "'x', 'y'"]),
        (b"__x,,y\n1,cat,\n", ["'id'", "'__x', '', 'y'"]),
        (b"id|label\n1|cat\n", ["'id'", "commas"]),
        (b"id,label,id\n1,cat,2\n", ["2 columns 'id'"]),
        (b"id,label\n1,cat\n2\n", ["line 3", "1 fields", "2"]),
        (b"id,label\n\n1,cat,x\n", ["line 3", "3 fields"]),
        (b"id,label\n1,cat\n ,dog\n", ["line 3", "empty"]),
        (b"id,label\n7,cat\n8,cat\n7,dog\n", ["line 4", "'7'", "line 2"]),
        (b'id,label,x\n1,cat,"a\nb"\n7,cat,\n7,dog,\n', ["line 5", "line 4"]),
        (b'id,label\n1,cat\n"a\nb",cat\n', ["line 3", "'a\\nb'", "control character"]),
        (b"id,label\n1,c\x1b[2Jat\n", ["line 2", "'c\\x1b[2Jat'", "control character"]),
        ("id,label\n1,c\u2028at\n".encode(), ["line 2", "'c\\u2028at'", "control character"]),
        (b"id,label\n1,c\0at\n", ["line 2", "not UTF-8"]),
        (b"id,label\n1,cat\n2,\xff\n", ["line 3", "not UTF-8"]),
        ("id,label\n".encode("utf-32"), ["line 1", "not UTF-8"]),
        (b'id,label\n1,cat\n2,"dog\n3,cat\n', ["line 3", "quotes"]),
        (b'id,label\n1,"cat"x\n', ["line 2", "quotes"]),
        (b"id,label\n1,cat\n2," + b"x" * 200_000 + b"\n", ["line 3", "field limit"]),
        (b"x" * (3 << 20), ["line 1", "characters"]),
        (b"\x1b[31mred,label\n1,cat\n", ["'id'", "\\x1b[31mred"]),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes, wanted: list[str]) -> None:
    path = write_file(tmp_path, content)
    text = refusal(read_pairs, path)
    for part in (str(path), *wanted):
        assert part in text
    assert "\x1b" not in text


def test_missing_files_are_errors(tmp_path: Path) -> None:
    assert "No such file" in refusal(read_pairs, tmp_path / "none.csv")
    assert "directory" in refusal(read_pairs, tmp_path)


def test_too_many_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csvs, "_MOST_ROWS", 3)
    rows = "id,label\n1,a\n2,a\n3,a\n"
    assert len(read_pairs(write_file(tmp_path, rows))[0]) == 3
    assert re.search(r"line 5\b.*\b3 rows", refusal(read_pairs, write_file(tmp_path, rows + "4,a\n")))


@quick_examples
@given(st.dictionaries(TEXTS, TEXTS, min_size=1), st.randoms(), st.booleans(), st.booleans())
def test_submissions_are_read_as_written(
    tmp_path: Path, pairs: dict[str, str], random: object, sampled: bool, swapped: bool
) -> None:
    ids, path = list(pairs), tmp_path / "submission.csv"
    wanted, sample = list(ids), None
    if sampled:
        random.shuffle(wanted)  # type: ignore[attr-defined]
        sample = tmp_path / "sample.csv"
        sample.unlink(missing_ok=True)
        columns = ("label", "id") if swapped else ("id", "label")
        write_submission(sample, wanted, ["x"] * len(wanted), sample=None, classes=["x"],
                         id_column=columns[0], label_column=columns[1])  # fmt: skip
        names = dict(id_column=columns[0], label_column=columns[1])
    else:
        names = {}
    write_submission(path, ids, list(pairs.values()), sample=sample, classes=set(pairs.values()), **names)
    assert read_pairs(path, *names.values()) == (wanted, [pairs[i] for i in wanted])
    if sample is not None:
        assert path.read_bytes().split(b"\n")[0] == sample.read_bytes().split(b"\n")[0]


def test_a_submission_follows_the_samples_rows_and_columns(tmp_path: Path) -> None:
    path = tmp_path / "new" / "submission.csv"
    found = write_submission(
        path, ["1", "2", "3"], ["dog", "frog", "cat"], sample=write_file(tmp_path, SAMPLE), classes=CLASSES
    )
    assert path.read_text() == "id,label\n3,cat\n1,dog\n2,frog\n"
    assert (found.rows, found.backup, found.changed) == (3, None, True)
    assert str(found) == f"{path}: 3 rows"
    sample = write_file(tmp_path, "usage,what,name\nx,cat,3\nx,cat,1\n", "other.csv")
    path = tmp_path / "cased.csv"
    write_submission(
        path, ["1"], ["dog"], sample=write_file(tmp_path, "Label,Id\ncat,1\n", "cased-sample.csv"), classes=CLASSES
    )
    assert path.read_text() == "Label,Id\ndog,1\n"
    path = tmp_path / "other-submission.csv"
    write_submission(
        path, ["1", "3"], ["dog", "cat"], sample=sample, classes=CLASSES, id_column="name", label_column="what"
    )
    assert path.read_text() == "what,name\ncat,3\ndog,1\n"


@pytest.mark.parametrize(
    ("ids", "labels", "wanted"),
    [
        (["1", "2"], ["cat"] * 2, ["1 ids", "('3')"]),
        (["1", "2", "3", "4"], ["cat"] * 4, ["1 ids", "('4')"]),
        (["1", "2", "3", "1"], ["cat"] * 4, ["1 ids", "('1')"]),
        (["1", "5", "6", "7", "8"], ["cat"] * 5, ["2 ids", "('3', '2')", "4 ids", "('5', '6', '7', ...)"]),
        (["1", "2", "3"], ["cat", "dgo", "dgo"], ["2 labels", "('dgo')", "'dog'?"]),
        ([], [], ["3 ids"]),
    ],
)  # fmt: skip
def test_wrong_ids_and_labels_are_refused(tmp_path: Path, ids: list[str], labels: list[str], wanted: list[str]) -> None:
    path, sample = tmp_path / "submission.csv", write_file(tmp_path, SAMPLE)
    text = refusal(write_submission, path, ids, labels, sample=sample, classes=CLASSES)
    assert all(part in text for part in wanted), text
    assert not path.exists()


def test_a_submission_without_a_sample_keeps_the_given_order(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    assert "no ids" in refusal(write_submission, path, [], [], sample=None, classes=CLASSES)
    assert "('1')" in refusal(write_submission, path, ["1", "1"], ["cat", "dog"], sample=None, classes=CLASSES)
    with pytest.raises(ValueError, match="2 ids.*1 labels"):
        write_submission(path, ["1", "2"], ["cat"], sample=None, classes=CLASSES)
    write_submission(str(path), ["b", "a"], ["cat", "dog"], sample=None, classes=CLASSES)
    assert path.read_text() == "id,label\nb,cat\na,dog\n"


@pytest.mark.parametrize("bad", ["a\0b", "a\nb", "a\rb", "a\tb", "a\x9bb", " ", "", "\udcff"])
def test_ids_and_labels_must_be_one_line_of_text(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "s.csv"
    for ids, labels in ((["1", bad], ["cat", "cat"]), (["1", "2"], ["cat", bad])):
        text = refusal(write_submission, path, ids, labels, sample=None, classes=["cat", bad])
        assert repr(bad) in text
        assert not path.exists()


def test_earlier_files_are_renamed(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    path = folder / "submission.csv"

    def write(label: str) -> submission.Written:
        return write_submission(path, ["1"], [label], sample=None, classes=CLASSES)

    write("cat")
    same = write("cat")
    assert not same.changed
    assert "unchanged" in str(same)
    assert list(folder.iterdir()) == [path]
    assert write("dog").backup == folder / "submission-1.csv"
    (folder / "submission-2.csv").write_text("a person's own")
    found = write("frog")
    assert found.backup == folder / "submission-3.csv"
    assert str(found) == f"{path}: 1 rows; the earlier one is now {found.backup}"
    assert {p.name: p.read_text().split(",")[-1].strip() for p in folder.iterdir()} == {
        "submission.csv": "frog", "submission-1.csv": "cat", "submission-2.csv": "a person's own",
        "submission-3.csv": "dog",
    }  # fmt: skip


def test_a_full_disk_keeps_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_file(tmp_path, "mine", "submission.csv")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(submission, "write_atomic", full)
    text = refusal(write_submission, path, ["1"], ["cat"], sample=None, classes=CLASSES)
    assert "No space left" in text
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"submission.csv": "mine"}


def test_a_folder_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    text = refusal(write_submission, tmp_path, ["1"], ["cat"], sample=None, classes=CLASSES)
    assert str(tmp_path) in text
    assert "directory" in text


@pytest.mark.parametrize("seed", range(5))
def test_score_matches_sklearn(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(20, 400)), int(rng.integers(2, 12))
    names = [f"class {i:02d}" for i in range(k)]
    true = [*names, *rng.choice(names, n - k)] if n > k else names
    guessed = [t if rng.random() < 0.6 else str(rng.choice(names)) for t in true]
    ids = [f"img-{i}" for i in rng.permutation(10 * n)[: len(true)]]
    extra = [f"more-{i}" for i in range(int(rng.integers(0, 50)))]
    answers = [*zip(ids, guessed, strict=True), *((e, "whatever") for e in extra)]
    rng.shuffle(answers)
    given_path, true_path = tmp_path / "given.csv", tmp_path / "true.csv"
    write_submission(
        given_path, [str(a) for a, _ in answers], [str(b) for _, b in answers], sample=None,
        classes=[*names, "whatever"],
    )  # fmt: skip
    write_submission(true_path, ids, true, sample=None, classes=names)
    found = score(given_path, true_path)
    assert found.classes == names
    assert found.confusion.dtype == np.int64
    np.testing.assert_array_equal(found.confusion, confusion_matrix(true, guessed, labels=names))
    assert found.accuracy == pytest.approx(accuracy_score(true, guessed))
    assert found.class_accuracy == pytest.approx(list(recall_score(true, guessed, labels=names, average=None)))
    assert (found.count, found.unscored, found.no_class) == (len(true), len(extra), {})
    assert not found.other.any()
    told = json.loads(json.dumps(found.to_dict()))
    assert told["accuracy"] == found.accuracy
    assert told["confusion"] == found.confusion.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_probabilities_match_sklearn(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, k = 50, int(rng.integers(2, 12))
    names = [f"class {i:02d}" for i in range(k)]
    true = [*names, *map(str, rng.choice(names, n - k))]
    p = rng.dirichlet(np.full(k, 0.3), n)
    p[0] = np.eye(k)[1]  # certain but wrong
    ids = [f"img-{i}" for i in rng.permutation(n)]
    write_submission(tmp_path / "true.csv", ids, true, sample=None, classes=names)
    header = ",".join(["id", *names[::-1]])
    sample = tmp_path / "sample.csv"
    sample.write_text("\n".join([header, *(",".join([i, *["0.1"] * k]) for i in ids[::-1])]) + "\n")
    found = write_probabilities(tmp_path / "p.csv", ids, p, sample=sample, classes=names)
    assert found.rows == n
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0] == header
    assert [line.split(",")[0] for line in lines[1:]] == ids[::-1]
    scored = score(tmp_path / "p.csv", tmp_path / "true.csv")
    assert scored.log_loss == pytest.approx(log_loss(true, p, labels=names), rel=1e-5)
    assert scored.accuracy == accuracy_score(true, [names[j] for j in p.argmax(1)])
    assert f"log loss {scored.log_loss:.4f}" in str(scored)
    assert scored.to_dict()["log_loss"] == scored.log_loss


def test_probabilities_are_written_without_a_sample_and_bad_ones_refused(tmp_path: Path) -> None:
    p, path = np.array([[0.25, 0.75], [1, 0]]), tmp_path / "p.csv"
    write_probabilities(path, ["a", "b"], p, sample=None, classes=["cat", "dog"], id_column="image")
    assert path.read_text() == "image,cat,dog\na,0.25,0.75\nb,1,0\n"
    labels_sample = write_file(
        tmp_path, "label,id\ncat,b\ncat,a\n", "s.csv"
    )  # it has labels, and sets the order of the rows
    write_probabilities(path, ["a", "b"], p, sample=labels_sample, classes=["cat", "dog"])
    assert path.read_text() == "id,cat,dog\nb,1,0\na,0.25,0.75\n"
    more = write_file(tmp_path, "id,cat,dog,fox\na,0,0,0\nb,0,0,0\n", "more.csv")
    fewer = write_file(tmp_path, "id,cat\na,0\nb,0\n", "fewer.csv")
    other = write_file(tmp_path, "id,cat,dog\na,0,0\nc,0,0\n", "other.csv")
    for sample, why in ((more, "'fox'"), (fewer, "('dog')"), (other, "'c'")):
        assert why in refusal(write_probabilities, path, ["a", "b"], p, sample=sample, classes=["cat", "dog"])
    true = write_file(tmp_path, "id,label\na,cat\nb,dog\n", "true.csv")
    for row, why in (("a,nan,1", "'nan'"), ("a,-1,2", "'-1'"), ("a,x,1", "'x'"), ("a,.2,.2", "0.4"),
                     ("b,1,0", "line 2"), ("c,1,0", "('a')")):  # fmt: skip
        assert why in refusal(score, write_file(tmp_path, f"id,cat,dog\nb,1,0\n{row}\n"), true)


def test_probabilities_may_include_classes_without_a_true_label(tmp_path: Path) -> None:
    true = write_file(tmp_path, "id,label\na,cat\nb,frog\nc,cat\n", "true.csv")
    rows = "id,dog,frog,cat\na,0.1,0.1,0.8\nb,0.9,0.1,0\nc,.5,0,.5\n"
    found = score(write_file(tmp_path, rows), true)
    assert found.classes == ["cat", "frog"]
    assert found.confusion.tolist() == [[2, 0], [0, 0]]  # a tie counts as the class that occurs in the true labels
    assert found.other.tolist() == [0, 1]
    assert found.no_class == {"dog": 1}
    assert found.log_loss == pytest.approx(-np.log([0.8, 0.1, 0.5]).mean())
    german = rows.replace(",", ";").replace(".", ",")
    assert score(write_file(tmp_path, german), true).log_loss == found.log_loss
    unnamed = ",id,dog,frog,cat\n" + "".join(f"{i},{row}\n" for i, row in enumerate(rows.split()[1:]))
    assert (
        score(write_file(tmp_path, unnamed), true).log_loss == found.log_loss
    )  # with the index column that pandas writes
    assert "'x'" in refusal(score, write_file(tmp_path, "id,cat,frog,usage\na,1,0,x\nb,1,0,x\nc,1,0,x\n"), true)
    many = ",".join(["id,cat,frog", *map(str, range(3000))]) + "\n"
    assert "3002 columns" in refusal(score, write_file(tmp_path, many), true)


def test_a_score_prints_its_accuracy(tmp_path: Path) -> None:
    true = write_file(tmp_path, "id,label,Usage\n1,cat,x\n2,dog,x\n3,dog,x\n4,cat,y\n", "true.csv")
    given = write_file(tmp_path, "id,label\n1,cat\n2,dog\n3,cat\n4,cat\n")
    found = score(str(given), str(true))
    assert found.to_dict() == score(given, true).to_dict()
    assert str(found) == "accuracy 0.7500 (3 of 4 images)"
    assert found.class_accuracy == [1.0, 0.5]


def test_labels_that_are_not_classes_count_as_wrong(tmp_path: Path) -> None:
    true = write_file(tmp_path, "id,label\n1,cat\n2,dog\n3,dog\n", "true.csv")
    found = score(write_file(tmp_path, "id,label\n1,Cat\n2,dog\n3,Cat\n9,fish\n"), true)
    assert found.confusion.tolist() == [[0, 0], [0, 1]]
    assert found.other.tolist() == [1, 1]
    assert found.no_class == {"Cat": 2}  # not fish: it has no true label and was not scored
    assert found.count == 3
    assert found.class_accuracy == [0.0, 0.5]
    assert str(found) == (
        "accuracy 0.3333 (1 of 3 images); 2 labels are not among the classes: 'Cat'; 1 ids have no label and were not scored"
    )


def test_score_refuses_missing_ids_and_bad_true_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = write_file(tmp_path, "id,label\n1,cat\n", "given.csv")
    true = write_file(tmp_path, "id,label\n1,cat\n2,cat\n3,cat\n4,cat\n5,cat\n")
    assert "4 ids" in refusal(score, given, true)
    assert "('2', '3', '4', ...)" in refusal(score, given, true)
    for content in ("id,label\n", "id,label\n1,\n"):
        assert "'label'" in refusal(score, given, write_file(tmp_path, content))
    monkeypatch.setattr(submission, "_MOST_CLASSES", 1)
    assert "2 different labels" in refusal(score, given, write_file(tmp_path, "id,label\n1,1.png\n2,2.png\n"))


def test_numbers_sort_as_numbers(tmp_path: Path) -> None:
    path = write_file(tmp_path, "id,label\na,10\nb,9\nc,2\n")
    assert score(path, path).classes == ["2", "9", "10"]
    path = write_file(tmp_path, "id,label\na,10\nb,9\nc,x\n")
    assert score(path, path).classes == ["10", "9", "x"]


def test_kaggles_own_files_are_read_and_reproduced(tmp_path: Path) -> None:
    folder = data_folder() / "cifar-10"
    if not (folder / "sampleSubmission.csv").exists():
        pytest.skip(f"Kaggle's files are not in {folder}")
    ids, labels = read_pairs(folder / "trainLabels.csv")
    assert (len(ids), len(set(labels)), ids[0], labels[0]) == (50_000, 10, "1", "frog")
    sample = folder / "sampleSubmission.csv"
    wanted, first = read_pairs(sample)
    path = tmp_path / "submission.csv"
    write_submission(path, wanted[::-1], first[::-1], sample=sample, classes=sorted(set(labels)))
    assert path.read_bytes() == sample.read_bytes()
    assert score(path, sample).accuracy == 1


def test_needs_no_torch() -> None:
    code = f"import runpy, sys; runpy.run_path({submission.__file__!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
