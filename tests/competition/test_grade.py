"""`cnnlab grade`: a class's submissions, the bad ones among them, each with a line."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import os
import re
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cnnlab.cli.grade import grades_text
from cnnlab.competition import grade as module
from cnnlab.competition.grade import COLUMNS, Grade, Grades, check_out, grade
from cnnlab.competition.submission import score
from cnnlab.io import figures as plots
from cnnlab.io.errors import CnnlabError
from conftest import Command, one_line_error

TRUE = "id,label\n1,cat\n2,dog\n3,dog\n4,cat\n"
ALL, HALF, NONE = TRUE, "id,label\n1,cat\n2,cat\n3,cat\n4,cat\n", "id,label\n4,dog\n3,cat\n2,cat\n1,dog\n"
anywhere = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text(TRUE)
    return path


@pytest.fixture
def room(tmp_path: Path) -> Path:
    (tmp_path / "class").mkdir()
    return tmp_path / "class"


def put(room: Path, name: str, content: str | bytes = ALL) -> Path:
    path = room / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def by_name(found: Grades) -> dict[str, Grade]:
    rows = {row.student: row for row in found.rows}
    assert len(rows) == len(found.rows)
    return rows


def only(found: Grades) -> Grade:
    (row,) = found.rows
    return row


def test_a_class_in_files_and_folders(room: Path, labels: Path) -> None:
    put(room, "ann.csv")
    put(room, "bob.CSV", HALF)
    put(room, "cleo/submission.csv", NONE)
    put(room, "dan/homework/any name.csv", HALF)
    put(room, "eve/train.csv", "x")
    put(room, "eve/Submission.csv", NONE)
    found = grade(room, labels)
    assert {name: row.score.accuracy for name, row in by_name(found).items() if row.score} == {
        "ann": 1.0, "bob": 0.5, "cleo": 0.0, "dan": 0.5, "eve": 0.0,
    }  # fmt: skip
    rows = by_name(found)
    assert [row.file for row in found.rows] == [
        "ann.csv", "bob.CSV", "cleo/submission.csv", "dan/homework/any name.csv", "eve/Submission.csv",
    ]  # fmt: skip
    assert rows["bob"].score is not None
    assert rows["bob"].score.confusion.tolist() == score(room / "bob.CSV", labels).confusion.tolist()
    assert str(found) == "5 scored, median accuracy 0.5000"
    assert (found.images, found.left_out) == (4, [])


def test_one_submission(room: Path, labels: Path) -> None:
    path = put(room, "ann.csv", HALF)
    row = only(grade(str(path), str(labels)))
    assert (row.student, row.status, row.file) == ("ann", "scored", "ann.csv")
    link = room / "of the teacher.csv"
    link.symlink_to(path)  # a person who names a link means what it leads to
    assert only(grade(link, labels)).status == "scored"
    row = only(grade(put(room, "bad.csv", "id;label\n"), labels))
    assert row.status == "refused"
    assert "separate columns by commas" in row.note
    assert only(grade(labels, labels)).score is not None


BAD = [
    (b"", "is empty"),
    (b"id,lable\n1,cat\n", "no column 'label'; did you mean 'lable'?"),
    (TRUE.encode("utf-16"), "not UTF-8 text"),
    ("id,label\n1,飞机\n".encode("gb18030"), "not UTF-8 text"),
    (codecs.BOM_UTF8 + b"id,label\n1,cat\n", "lacks 3 ids of labels.csv ('2', '3', '4')"),
    (b"id,label\n1,cat\n1,dog\n", "line 3: '1' was on line 2 already"),
    (b"id,label\n1,cat\n2\n", "line 3: 1 fields"),
    (b'id,label\n1,"cat\n', "quotes"),
    (b"id,label\n1,c\x1b[2Jat\n", "control character"),
    (b"id,label\n1,c\0at\n", "not UTF-8"),
    (b"PK\x03\x04" + bytes(range(256)), "is a ZIP archive or an Excel workbook, whatever its name"),
    (gzip.compress(TRUE.encode()), "is a gzip archive"),
    (b"%PDF-1.7\n", "is a PDF document"),
    (b"x" * (2 << 20), "line 1: over"),
    (b"\x89PNG\r\n\x1a\n", "not UTF-8"),
]


def test_each_bad_file_has_its_reason_and_stops_no_other(room: Path, labels: Path) -> None:
    for i, (content, _) in enumerate(BAD):
        put(room, f"s{i}.csv", content)
    put(room, "good.csv")
    rows = by_name(grade(room, labels))
    for i, (_, wanted) in enumerate(BAD):
        row = rows[f"s{i}"]
        assert (row.status, row.file, row.score) == ("refused", f"s{i}.csv", None)
        assert wanted in row.note
        assert row.note.startswith(f"s{i}.csv")
        assert row.note.isprintable()
    assert rows["good"].status == "scored"


def test_labels_that_are_no_class_are_noted_and_count_as_wrong(room: Path, labels: Path) -> None:
    put(room, "a.csv", "id,label\n1,Cat\n2,dog\n3,=1+1\n4,cat\n9,x\n")
    row = only(grade(room, labels))
    assert row.score is not None
    assert row.score.accuracy == 0.5
    assert row.note == "2 labels are no class: 'Cat', '=1+1'"


def test_what_is_no_submission(room: Path, labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(room, "anna.xlsx", "PK")
    put(room, "anja.csv.ZIP", "PK")
    put(room, "ben/report.docx", "PK")
    put(room, "ben/notes.txt", "PK")
    (room / "cai").mkdir()
    (room / "dora/empty").mkdir(parents=True)
    put(room, "emil/one.csv")
    put(room, "emil/two.csv")
    put(room, "finn.csv")
    put(room, "finn/submission.csv")
    put(room, "gina/1/2/3/4/deep.csv")
    put(room, "hal/1/2/3/4/5/too deep.csv")
    (room / "ida.csv").mkdir()
    put(room, ".hidden.csv")
    put(room, "__MACOSX/ann.csv")
    put(room, "Thumbs.db")
    put(room, "jo/.git/a.csv")
    put(room, "jo/submission.csv")
    rows = by_name(grade(room, labels))
    assert rows["anna"].note == "anna.xlsx is no CSV file; save the table as CSV"
    assert rows["anja.csv"].note == "anja.csv.ZIP is no CSV file; unpack it"
    assert rows["ben"].note.count("no CSV file") == 2
    assert {name for name, row in rows.items() if row.status == "missing"} == {"cai", "dora", "ida.csv"}
    assert rows["hal"].note == "hal/1/2/3/4/5 lies too deep to be looked into; hand in the file itself"
    assert rows["cai"].note == "nothing was handed in"
    assert rows["emil"].note == "2 CSV files: 'emil/one.csv', 'emil/two.csv'; keep one"
    assert rows["finn"].note.startswith("2 CSV files")
    assert {name for name, row in rows.items() if row.status == "scored"} == {"gina", "jo"}
    assert len(rows) == 11
    monkeypatch.setattr(module, "_MOST_ENTRIES", 5)
    for i in range(6):
        put(room, f"full/{i}.csv")
    for name in ("anna.xlsx", "anja.csv.ZIP", "finn.csv", ".hidden.csv", "Thumbs.db"):
        (room / name).unlink()
    with pytest.raises(CnnlabError, match="class holds over 5 files"):
        grade(room, labels)
    monkeypatch.setattr(module, "_MOST_ENTRIES", 50)
    for i in range(60):
        put(room, f"full/{i}.csv")
    assert by_name(grade(room, labels))["full"].note == "full holds over 50 files; give or name the right folder"
    for i in range(60):
        (room / f"full/{i}.csv").unlink()
        put(room, f"full/{i % 6}/{i}.txt")  # few in each folder
    assert by_name(grade(room, labels))["full"].note.startswith("full holds over 50 files; give or name the right")
    assert by_name(grade(room, labels))["full"].note.endswith("more")


def test_links_are_named_and_not_followed(room: Path, labels: Path, tmp_path: Path) -> None:
    outside = put(tmp_path / "elsewhere", "a.csv")
    put(room, "good.csv")
    (room / "out.csv").symlink_to(outside)
    (room / "in.csv").symlink_to("good.csv")
    (room / "gone.csv").symlink_to("nowhere")
    (room / "round.csv").symlink_to("round.csv")
    (room / "J. folder").symlink_to(outside.parent)
    (room / "kim").mkdir()
    (room / "kim" / "submission.csv").symlink_to(outside)
    (room / "kim" / "all").symlink_to("/")
    rows = by_name(grade(room, labels))
    assert rows["good"].status == "scored"
    for name in ("out", "in", "gone", "round", "J. folder", "kim"):
        assert rows[name].status == "refused"
        assert "is a link, which is not followed" in rows[name].note
    assert len(rows) == 7


def test_pipes_and_giants(room: Path, labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(room / "pipe.csv")
    with put(room, "giant.csv").open("r+b") as file:
        file.truncate(1 << 40)  # takes no room on the disk, and must take none in memory
    monkeypatch.setattr(module, "_LARGEST", 1 << 20)
    rows = by_name(grade(room, labels))
    assert rows["pipe"].note == "pipe.csv is no plain file; hand in a CSV file"
    assert rows["giant"].note == "giant.csv is over 1 MiB; hand in a line for each image, no more"
    # a competition with larger labels has larger submissions
    many = "id,label\n" + "".join(f"{i},cat\n" for i in range(2000))
    monkeypatch.setattr(module, "_LARGEST", 10)
    assert only(grade(put(room, "a.csv", many), put(room, "many.csv", many))).status == "scored"
    assert only(grade(put(room, "a.csv", many), labels)).status == "refused"


def test_what_may_not_be_read(room: Path, labels: Path) -> None:
    put(room, "shut.csv").chmod(0)
    put(room, "folder/a.csv")
    (room / "folder").chmod(0)
    try:
        if os.access(room / "shut.csv", os.R_OK):
            pytest.skip("this user may read everything")
        rows = by_name(grade(room, labels))
        assert rows["shut"].note == "cannot read shut.csv: Permission denied; hand it in again"
        assert rows["folder"].note == "cannot read the folder: Permission denied"
    finally:
        (room / "folder").chmod(0o755)


def test_roster_of_folders(room: Path, labels: Path, tmp_path: Path) -> None:
    roster = tmp_path / "roster"
    for name in ("Ann", "Bob", "R. J. Smith"):
        (roster / name).mkdir(parents=True)
    put(roster, "zoë.txt", "")
    put(room, "ann.csv", HALF)
    put(room, unicodedata.normalize("NFD", "Zoë") + ".csv")
    put(room, "stranger.csv")
    rows = by_name(grade(room, labels, roster=roster))
    assert (rows["ann"].status, rows["ann"].note) == ("scored", "")
    assert rows[unicodedata.normalize("NFD", "Zoë")].status == "scored"
    assert rows["stranger"].note.startswith("not on the roster")
    assert rows["stranger"].status == "scored"
    assert [n for n, row in rows.items() if row.status == "missing"] == ["Bob", "R. J. Smith"]
    assert str(grade(room, labels, roster=roster)) == "3 scored, median accuracy 1.0000; 2 missing"


def test_the_rosters_folder_is_the_submissions_unless_another_is_given(
    room: Path, labels: Path, tmp_path: Path
) -> None:
    put(room, "ann/submission.csv", HALF)
    (room / "bob").mkdir()
    for given_one in (None, room):
        rows = by_name(grade(given_one, labels, roster=room))
        assert {name: row.status for name, row in rows.items()} == {"ann": "scored", "bob": "missing"}
        assert rows["ann"].note == ""
    # one more file beside the roster's folders
    rows = by_name(grade(put(tmp_path, "late.csv"), labels, roster=room))
    assert {name: row.status for name, row in rows.items()} == {"ann": "scored", "bob": "missing", "late": "scored"}
    assert rows["late"].note == "not on the roster"
    # a folder of submissions: what lies in the roster's is of another time
    other = tmp_path / "this week"
    put(other, "bob.csv")
    rows = by_name(grade(other, labels, roster=room))
    assert {name: row.status for name, row in rows.items()} == {"ann": "missing", "bob": "scored"}


def test_roster_in_a_text_file(room: Path, labels: Path, tmp_path: Path) -> None:
    put(room, "张三.csv")
    put(room, "student10.csv")
    roster = put(tmp_path, "roster.txt", "\ufeff张三\r\n student2 \n\nStudent10\nstudent2\n李四\x1b[2J\n")
    rows = grade(room, labels, roster=roster).rows
    assert [(row.student, row.status) for row in rows] == [
        ("student2", "missing"), ("student10", "scored"), ("张三", "scored"), ("李四\\u001b[2J", "missing"),
    ]  # fmt: skip
    for content, wanted in ((b"\xff", "not UTF-8"), (b"\n", "has 0 lines")):
        with pytest.raises(CnnlabError, match=wanted):
            grade(room, labels, roster=put(tmp_path, "roster.txt", content))
    with pytest.raises(CnnlabError, match="cannot read the roster"):
        grade(room, labels, roster=tmp_path / "none")
    with pytest.raises(CnnlabError, match="nothing to grade"):
        grade(None, labels, roster=roster)


def test_the_teachers_own_files_are_nobodys_submission(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = put(room, "labels.csv", TRUE)
    put(room, "ann.csv")
    monkeypatch.chdir(room)
    for _ in range(3):
        found = grade(".", "labels.csv")
        assert only(found).student == "ann"
        found.save()
    assert found.left_out[0].startswith("labels.csv")
    assert [p.name for p in sorted((room / "runs").iterdir())] == ["grades-001", "grades-002", "grades-003"]
    grade(room, labels, out=room).save(room)
    assert len(grade(room, labels, out=room).rows) == 1
    labels.rename(room.parent / "true.csv")
    (room / "labels.csv").symlink_to("../true.csv")  # the teacher's link
    assert len(grade(room, room / "labels.csv", out=room).rows) == 1


def test_the_very_same_file_is_noted(room: Path, labels: Path) -> None:
    for name in ("ann.csv", "bob.csv", "cleo/submission.csv"):
        put(room, name, HALF)
    put(room, "dan.csv", HALF.replace("\n", "\r\n"))
    put(room, "eve.csv", "x")
    put(room, "fay.csv", "x")  # nothing to copy
    rows = by_name(grade(room, labels))
    assert rows["ann"].note == "the very same file as 'bob', 'cleo'"
    assert rows["cleo"].note == "the very same file as 'ann', 'bob'"
    assert rows["dan"].note == ""
    assert "same" not in rows["eve"].note


NAMES = ["=1+1", "+1", "-1", "@SUM(A1)", "＝1", " =1", "'=1", "a;=1", 'b";+1', "tab\t=1", "line\n=1", "a\r=1", "[red]x"]


def test_no_name_becomes_a_formula_or_a_line_of_its_own(room: Path, labels: Path, tmp_path: Path) -> None:
    for name in NAMES:
        put(room, f"{name}.csv")
        put(room, f"{name}x/{name}.csv", "x")
    (room / os.fsdecode(b"\xff=1.csv")).symlink_to("x")
    found = grade(room, labels)
    assert len(found.rows) == 2 * len(NAMES) + 1
    content = found.to_csv()
    assert content.count("\n") == len(found.rows) + 1
    for row in csv.reader(content.removeprefix("\ufeff").splitlines(), strict=True):
        assert len(row) == len(COLUMNS)
        for cell in row:
            for part in [] if re.fullmatch(r"[+-]?[0-9.]+", cell) else cell.split(";"):
                assert not part.lstrip(" \"'").startswith(tuple("=+-@＝")) or part.startswith("'")
            assert cell.isprintable()
    folder = found.save(tmp_path / "out")
    assert (folder / "grades.csv").read_text(encoding="utf-8") == content
    lines = grades_text(found).splitlines()
    assert len(lines) == len(found.rows) + 3
    assert "[red]x" in "\n".join(lines)


# Files that are nearly right find more than noise does.
NEARLY = st.lists(
    st.sampled_from([b"id,label\n", b"1,cat\n", b"2,dog\n", b"3,dog\n", b"4,cat\r\n", b'"', b",", b"\n", b"\0", b"\xff",
                     b"=cmd()", b"9,x\n", codecs.BOM_UTF8, "猫".encode(), b"\r", b"id", b";", b"\x1b[2J"]),
    max_size=12,
).map(b"".join)  # fmt: skip


@anywhere
@given(st.lists(st.binary(max_size=60) | NEARLY | NEARLY.map(lambda b: b"id,label\n" + b), min_size=1, max_size=3))
@example([TRUE.encode()])
def test_any_bytes_get_a_line(tmp_path: Path, labels: Path, contents: list[bytes]) -> None:
    room = Path(tempfile.mkdtemp(dir=tmp_path))
    for i, content in enumerate(contents):
        put(room, f"{i}.csv", content)
    put(room, "good.csv")
    found = grade(room, labels)
    rows = by_name(found)
    assert list(rows) == [*map(str, range(len(contents))), "good"]
    assert rows["good"].status == "scored"
    for row in found.rows:
        assert (row.status == "scored") == (row.score is not None)
        assert row.score is not None or row.note
        assert row.note.isprintable()
        if row.score is not None and row.student != "good":
            path = room / row.file
            assert row.score.to_dict() | {"path": 0} == score(path, labels).to_dict() | {"path": 0}
    assert len(list(csv.reader(found.to_csv().splitlines(), strict=True))) == len(found.rows) + 1
    json.dumps(found.to_dict(), ensure_ascii=False).encode()


@anywhere
@given(st.sets(st.binary(min_size=1, max_size=40).filter(lambda b: not {0, 47} & set(b)), min_size=1, max_size=4))
def test_any_names_get_a_line(tmp_path: Path, labels: Path, names: set[bytes]) -> None:
    room = Path(tempfile.mkdtemp(dir=tmp_path))
    for name in names:
        (room / os.fsdecode(name + b".csv")).write_text(TRUE)
    found = grade(room, labels)
    seen = {name for name in names if not name.startswith(b".")}
    assert len(found.rows) <= len(seen)  # spellings of one name share a line
    assert sum(1 if row.score else int(row.note.split()[0]) for row in found.rows) == len(seen)
    found.to_csv().encode()
    grades_text(found).encode()


def test_what_is_written(room: Path, labels: Path, tmp_path: Path) -> None:
    put(room, "ann.csv", HALF)
    put(room, "bob.csv", "x")
    (room / "cleo").mkdir()
    found = grade(room, labels)
    folder = found.save(tmp_path / "new" / "out")
    with (folder / "grades.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "student": "ann", "status": "scored", "accuracy": "0.500000", "correct": "2", "images": "4",
        "file": "ann.csv", "note": "",
    }  # fmt: skip
    assert [(r["status"], r["accuracy"]) for r in rows[1:]] == [("refused", ""), ("missing", "")]
    assert (folder / "grades.png").read_bytes().startswith(b"\x89PNG")
    for _ in range(2):
        with pytest.raises(CnnlabError, match="grades.csv exists; name another folder"):
            found.save(folder)
        with pytest.raises(CnnlabError, match="exists"):
            check_out(folder)
    with pytest.raises(CnnlabError, match="cannot write into"):
        found.save(labels / "below a file")
    told = found.to_dict()
    assert (told["scored"], told["refused"], told["missing"], told["mean"], told["median"]) == (1, 1, 1, 0.5, 0.5)
    assert told["students"][2]["accuracy"] is None


def test_the_histogram_holds_everybody(tmp_path: Path) -> None:
    for accuracies in ([], [0.0], [1.0], [0.85, 0.9, 0.95, 1.0], [0.1, 0.10001, 0.99], [0.9274, 0.9301, 0.9362]):
        figure = plots.grades(accuracies, "a $title$")
        (axes,) = figure.axes
        bars = [(p.get_x(), p.get_x() + p.get_width(), p.get_height()) for p in axes.patches]
        assert sum(height for *_, height in bars) == len(accuracies)
        assert 1 <= len(bars) <= 24
        assert bars[-1][1] == pytest.approx(1)
        for left, right, height in bars:
            within = sum(left - 1e-9 <= a < right - 1e-9 or (a == 1 and right > 0.999) for a in accuracies)
            assert height == within
        assert plots.png(figure).startswith(b"\x89PNG")


def test_the_command(cnnlab: Command, room: Path, labels: Path, tmp_path: Path) -> None:
    put(room, "ann.csv", HALF)
    put(room, "bob.csv", "x")
    put(room, "cleo/notes.md", "x")
    roster = put(tmp_path, "roster.txt", "ann\nbob\ncleo\ndan\n")
    answer = cnnlab("grade", room, "--labels", labels, "--roster", roster)
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["ann", "0.5000"], ["bob", "refused"], ["cleo", "refused"], ["dan", "missing"],
    ]  # fmt: skip
    assert "2 of 4" in lines[1]
    assert lines[-1] == "1 scored, median accuracy 0.5000; 2 refused; 1 missing"
    assert answer.stderr == "saved in runs/grades-001 (grades.csv, grades.png)\n"
    answer = cnnlab("grade", room, "--labels", labels, "--json", "--out", "mine")
    assert json.loads(answer.stdout)["students"][0]["accuracy"] == 0.5
    assert (tmp_path / "mine/grades.png").exists()
    assert "mine/grades.csv exists" in one_line_error(cnnlab("grade", room, "--labels", labels, "--out", "mine"))


def test_what_is_the_teachers_to_mend(cnnlab: Command, room: Path, labels: Path) -> None:
    put(room, "ann.csv")
    assert "no file and no folder" in one_line_error(cnnlab("grade", room / "none", "--labels", labels))
    assert "No such file" in one_line_error(cnnlab("grade", room, "--labels", room / "none"))
    assert "no column 'truth'" in one_line_error(cnnlab("grade", room, "--labels", labels, "--label-column", "truth"))
    assert "nothing to grade" in one_line_error(cnnlab("grade", "--labels", labels))
    assert "--labels" in one_line_error(cnnlab("grade", room))
    assert not Path("runs").exists()


def test_other_columns(cnnlab: Command, room: Path, tmp_path: Path) -> None:
    labels = put(tmp_path, "l.csv", "species,image\noak,1\n")
    put(room, "ann.csv", "image,species\n1,oak\n")
    answer = cnnlab("grade", room, "--labels", labels, "--id-column", "image", "--label-column", "species", "--json")
    assert json.loads(answer.stdout)["mean"] == 1.0


def test_an_empty_class(room: Path, labels: Path, tmp_path: Path) -> None:
    found = grade(room, labels)
    assert (found.rows, str(found), found.to_dict()["mean"]) == ([], "0 scored", None)
    assert (found.save(tmp_path / "out") / "grades.png").exists()
    assert grades_text(found).splitlines()[-1] == "0 scored"
