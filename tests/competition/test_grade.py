"""`cnnlab grade`: a class's submissions, good and bad, one line for each."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import tempfile
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cnnlab.cli.grade import grades_text
from cnnlab.competition import grade as module
from cnnlab.competition.grade import COLUMNS, Grade, Grades, check_out, grade
from cnnlab.competition.roster import read_roster
from cnnlab.competition.submission import score
from cnnlab.io import figures as plots
from cnnlab.io.errors import CnnlabError
from conftest import Command, one_line_error

TRUE = "id,label\n1,cat\n2,dog\n3,dog\n4,cat\n"
HALF, NONE = "id,label\n1,cat\n2,cat\n3,cat\n4,cat\n", "id,label\n4,dog\n3,cat\n2,cat\n1,dog\n"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text(TRUE)
    return path


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    (tmp_path / "class").mkdir()
    return tmp_path / "class"


def write_file(class_folder: Path, name: str, content: str | bytes = TRUE) -> Path:
    path = class_folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows_by_student(grades: Grades) -> dict[str, Grade]:
    rows = {row.student: row for row in grades.rows}
    assert len(rows) == len(grades.rows)
    return rows


def statuses(grades: Grades) -> dict[str, str]:
    return {row.student: row.status for row in grades.rows}


def test_submissions_may_be_files_or_folders(class_folder: Path, labels: Path) -> None:
    write_file(class_folder, "ann.csv")
    write_file(class_folder, "bob.CSV", HALF)
    write_file(class_folder, "cleo/submission.csv", NONE)
    write_file(class_folder, "dan/homework/any name.csv", HALF)
    write_file(class_folder, "eve/train.csv", "x")
    write_file(class_folder, "eve/Submission.csv", NONE)
    grades = grade(class_folder, labels)
    assert [(row.student, row.file, row.score and row.score.accuracy) for row in grades.rows] == [
        ("ann", "ann.csv", 1.0), ("bob", "bob.CSV", 0.5), ("cleo", "cleo/submission.csv", 0.0),
        ("dan", "dan/homework/any name.csv", 0.5), ("eve", "eve/Submission.csv", 0.0),
    ]  # fmt: skip
    assert grades.rows[1].score is not None
    assert grades.rows[1].score.confusion.tolist() == score(class_folder / "bob.CSV", labels).confusion.tolist()
    assert str(grades) == "5 scored, median accuracy 0.5000"
    assert (grades.images, grades.skipped) == (4, [])


def test_a_single_submission_is_graded(class_folder: Path, labels: Path) -> None:
    path = write_file(class_folder, "ann.csv", HALF)
    (row,) = grade(str(path), str(labels)).rows
    assert (row.student, row.status, row.file) == ("ann", "scored", "ann.csv")
    (class_folder / "a link.csv").symlink_to(path)  # the teacher names it, so it is followed
    assert statuses(grade(class_folder / "a link.csv", labels)) == {"a link": "scored"}
    assert statuses(grade(labels, labels)) == {"labels": "scored"}


def test_a_bad_file_is_refused_and_the_others_are_graded(class_folder: Path, labels: Path) -> None:
    bad = [
        b"", b"id;label\n", b"id,lable\n1,cat\n", TRUE.encode("utf-32"), b"id,label\n1,cat\n", b"id,label\n1,cat\n1,dog\n",
        b'id,label\n1,"cat\n', b"id,label\n1,c\x1b[2Jat\n", b"PK\x03\x04" + bytes(range(256)), gzip.compress(TRUE.encode()),
        b"%PDF-1.7\n", b"x" * (2 << 20),
    ]  # fmt: skip
    for i, content in enumerate(bad):
        write_file(class_folder, f"s{i}.csv", content)
    write_file(class_folder, "good.csv", TRUE.replace("4,cat", "4,Cat").replace("3,dog", "3,=1+1"))
    rows = rows_by_student(grade(class_folder, labels))
    for i in range(len(bad)):
        row = rows[f"s{i}"]
        assert (row.status, row.file, row.score) == ("refused", f"s{i}.csv", None)
        assert row.note.startswith(f"s{i}.csv")
        assert row.note.isprintable()
    good = rows["good"]
    assert good.score is not None
    assert good.score.accuracy == 0.5  # labels that are not a class count as wrong
    assert good.note == "2 labels are not among the classes: '=1+1', 'Cat'"


def test_files_that_are_not_submissions_are_refused_or_ignored(
    class_folder: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("anna.xlsx", "ben/report.docx", "ben/notes.txt", "emil/one.csv", "emil/two.csv", "finn.csv",
                 "finn/submission.csv", "gina/1/2/3/4/5/deep.csv", ".hidden.csv", "__MACOSX/ann.csv", "Thumbs.db",
                 "jo/.git/a.csv", "jo/submission.csv"):  # fmt: skip
        write_file(class_folder, name)
    for name in ("cai", "dora/empty", "ida.csv"):
        (class_folder / name).mkdir(parents=True)
    assert statuses(grade(class_folder, labels)) == {
        "anna": "refused", "ben": "refused", "cai": "missing", "dora": "missing", "emil": "refused", "finn": "refused",
        "gina": "scored", "ida.csv": "missing", "jo": "scored",
    }  # fmt: skip
    monkeypatch.setattr(module, "_MOST_ENTRIES", 20)
    for i in range(25):
        write_file(class_folder, f"full/{i % 6}/{i}.csv")  # few in each folder
    assert re.match(r"full .*\b20 files", rows_by_student(grade(class_folder, labels))["full"].note)
    monkeypatch.setattr(module, "_MOST_ENTRIES", 5)
    with pytest.raises(CnnlabError, match=r"\bclass\b.*\b5 files"):
        grade(class_folder, labels)


def test_links_are_reported_and_not_followed(class_folder: Path, labels: Path, tmp_path: Path) -> None:
    outside = write_file(tmp_path / "elsewhere", "a.csv")
    write_file(class_folder, "good.csv")
    (class_folder / "kim").mkdir()
    for name, target in (("out.csv", outside), ("in.csv", "good.csv"), ("gone.csv", "nowhere"), ("loop.csv", "loop.csv"),
                         ("J. folder", outside.parent), ("kim/submission.csv", outside), ("kim/all", "/")):  # fmt: skip
        (class_folder / name).symlink_to(target)
    rows = rows_by_student(grade(class_folder, labels))
    assert rows.pop("good").status == "scored"
    assert rows.keys() == {"out", "in", "gone", "loop", "J. folder", "kim"}
    assert all(row.status == "refused" and "is a link" in row.note for row in rows.values())


def test_pipes_huge_and_unreadable_files_are_refused(
    class_folder: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(class_folder / "pipe.csv")
    with write_file(class_folder, "giant.csv").open("r+b") as file:
        file.truncate(1 << 40)  # sparse: it must take no memory either
    write_file(class_folder, "shut.csv").chmod(0)
    write_file(class_folder, "folder/a.csv")
    (class_folder / "folder").chmod(0)
    monkeypatch.setattr(module, "_LARGEST", 1 << 20)
    rows = rows_by_student(grade(class_folder, labels))
    (class_folder / "folder").chmod(0o755)
    assert "regular file" in rows["pipe"].note
    assert "over 1 MiB" in rows["giant"].note
    if not os.access(class_folder / "shut.csv", os.R_OK):  # root can read it all the same
        assert rows["shut"].status == rows["folder"].status == "refused"
    # with more labels, submissions may be larger
    many = "id,label\n" + "".join(f"{i},cat\n" for i in range(2000))
    monkeypatch.setattr(module, "_LARGEST", 10)
    assert statuses(grade(write_file(class_folder, "a.csv", many), write_file(class_folder, "many.csv", many))) == {
        "a": "scored"
    }
    assert statuses(grade(class_folder / "a.csv", labels)) == {"a": "refused"}


def test_a_roster_may_consist_of_folders(class_folder: Path, labels: Path, tmp_path: Path) -> None:
    roster = tmp_path / "roster"
    for name in ("Ann", "Bob", "R. J. Smith"):
        (roster / name).mkdir(parents=True)
    write_file(roster, "zoë.txt", "")
    zoe = unicodedata.normalize("NFD", "Zoë")
    for name in ("ann", zoe, "stranger"):
        write_file(class_folder, f"{name}.csv")
    grades = grade(class_folder, labels, roster=roster)
    assert statuses(grades) == {"ann": "scored", "Bob": "missing", "R. J. Smith": "missing", zoe: "scored",
                              "stranger": "scored"}  # fmt: skip
    assert rows_by_student(grades)["stranger"].note.startswith("not on the roster")
    assert str(grades) == "3 scored, median accuracy 1.0000; 2 missing"


def test_a_rosters_folder_holds_the_submissions_unless_another_is_given(
    class_folder: Path, labels: Path, tmp_path: Path
) -> None:
    write_file(class_folder, "ann/submission.csv", HALF)
    (class_folder / "bob").mkdir()
    for submissions in (None, class_folder):
        assert statuses(grade(submissions, labels, roster=class_folder)) == {"ann": "scored", "bob": "missing"}
    late = grade(write_file(tmp_path, "late.csv"), labels, roster=class_folder)
    assert statuses(late) == {"ann": "scored", "bob": "missing", "late": "scored"}
    assert rows_by_student(late)["late"].note == "not on the roster"
    write_file(tmp_path / "this week", "bob.csv")
    assert statuses(grade(tmp_path / "this week", labels, roster=class_folder)) == {"ann": "missing", "bob": "scored"}


def test_a_roster_may_be_a_text_file(class_folder: Path, labels: Path, tmp_path: Path) -> None:
    write_file(class_folder, "张三.csv")
    write_file(class_folder, "student10.csv")
    roster = write_file(tmp_path, "roster.txt", "\ufeff张三\r\n student2 \n\nStudent10\nstudent2\n李四\x1b[2J\n")
    assert list(statuses(grade(class_folder, labels, roster=roster)).items()) == [
        ("student2", "missing"), ("student10", "scored"), ("张三", "scored"), ("李四\\u001b[2J", "missing"),
    ]  # fmt: skip
    for content in (b"\xff", b"\n"):
        with pytest.raises(CnnlabError):
            grade(class_folder, labels, roster=write_file(tmp_path, "bad.txt", content))
    with pytest.raises(CnnlabError):
        grade(class_folder, labels, roster=tmp_path / "none")
    with pytest.raises(CnnlabError, match="nothing"):
        grade(None, labels, roster=roster)


def test_the_teachers_own_files_are_not_graded(class_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = write_file(class_folder, "labels.csv")
    write_file(class_folder, "ann.csv")
    monkeypatch.chdir(class_folder)
    monkeypatch.setattr(plots, "png", lambda figure: b"")  # drawing is slow
    for _ in range(2):
        grades = grade(".", "labels.csv")
        assert statuses(grades) == {"ann": "scored"}
        grades.save()
    assert [p.name for p in sorted((class_folder / "runs").iterdir())] == ["grades-001", "grades-002"]
    grade(class_folder, labels, out=class_folder).save(class_folder)
    assert statuses(grade(class_folder, labels, out=class_folder)) == {"ann": "scored"}
    labels.rename(class_folder.parent / "true.csv")
    (class_folder / "labels.csv").symlink_to("../true.csv")
    assert statuses(grade(class_folder, class_folder / "labels.csv", out=class_folder)) == {"ann": "scored"}


def test_identical_files_are_noted(class_folder: Path, labels: Path) -> None:
    for name in ("ann.csv", "bob.csv", "cleo/submission.csv"):
        write_file(class_folder, name, HALF)
    write_file(class_folder, "dan.csv", HALF.replace("\n", "\r\n"))
    write_file(class_folder, "eve.csv", "x")
    write_file(class_folder, "fay.csv", "x")  # not scored
    rows = rows_by_student(grade(class_folder, labels))
    assert rows["ann"].note == "same file as 'bob', 'cleo'"
    assert rows["cleo"].note == "same file as 'ann', 'bob'"
    assert rows["dan"].note == ""
    assert "same" not in rows["eve"].note
    for i in range(6):
        write_file(class_folder, f"g{i}.csv", NONE)
    rows = rows_by_student(grade(class_folder, labels))
    assert rows["g5"].note == "same file as 'g0', 'g1', 'g2', 'g3', 'g4'"
    write_file(class_folder, "g6.csv", NONE)
    write_file(class_folder, "g7.csv", NONE)
    rows = rows_by_student(grade(class_folder, labels))
    assert rows["g7"].note == "same file as 'g0', 'g1', 'g2', 'g3', 'g4', ..."
    assert rows["g2"].note == "same file as 'g0', 'g1', 'g3', 'g4', 'g5', ..."


NAMES = ["=1+1", "+1", "-1", "@SUM(A1)", "＝1", " =1", "'=1", "a;=1", 'b";+1', "tab\t=1", "line\n=1", "a\r=1", "[red]x"]


def test_names_become_neither_formulas_nor_extra_lines(
    class_folder: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        write_file(class_folder, f"{name}.csv")
        write_file(class_folder, f"{name}x/{name}.csv", "x")
    (class_folder / os.fsdecode(b"\xff=1.csv")).symlink_to("x")
    grades = grade(class_folder, labels)
    assert len(grades.rows) == 2 * len(NAMES) + 1
    content = grades.to_csv()
    assert content.count("\n") == len(grades.rows) + 1
    for row in csv.reader(content.removeprefix("\ufeff").splitlines(), strict=True):
        assert len(row) == len(COLUMNS)
        for cell in row:
            for part in [] if re.fullmatch(r"[+-]?[0-9.]+", cell) else cell.split(";"):
                assert not part.lstrip(" \"'").startswith(tuple("=+-@＝")) or part.startswith("'")
            assert cell.isprintable()
    assert (grades.save(tmp_path / "out") / "grades.csv").read_text(encoding="utf-8") == content
    monkeypatch.setenv("COLUMNS", "1000")
    assert len(grades_text(grades).splitlines()) == len(grades.rows) + sum(bool(r.note) for r in grades.rows) + 4


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.binary(min_size=1, max_size=40).filter(lambda b: not {0, 47} & set(b)), min_size=1, max_size=4))
def test_any_file_name_can_be_graded_and_printed(tmp_path: Path, labels: Path, names: set[bytes]) -> None:
    class_folder = Path(tempfile.mkdtemp(dir=tmp_path))
    for name in names:
        (class_folder / os.fsdecode(name + b".csv")).write_text(TRUE)
    grades = grade(class_folder, labels)
    visible = {name for name in names if not name.startswith(b".")}
    # two spellings of a name share a line
    assert sum(1 if row.score else int(row.note.split()[0]) for row in grades.rows) == len(visible)
    grades.to_csv().encode()
    grades_text(grades).encode()


def test_grades_are_written_as_csv_and_json(class_folder: Path, labels: Path, tmp_path: Path) -> None:
    write_file(class_folder, "ann.csv", HALF)
    write_file(class_folder, "bob.csv", "x")
    (class_folder / "cleo").mkdir()
    grades = grade(class_folder, labels)
    folder = grades.save(tmp_path / "new" / "out")
    with (folder / "grades.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "student": "ann", "status": "scored", "accuracy": "0.500000", "log_loss": "", "correct": "2", "images": "4",
        "file": "ann.csv", "note": "",
    }  # fmt: skip
    assert [(r["status"], r["accuracy"]) for r in rows[1:]] == [("refused", ""), ("missing", "")]
    assert (folder / "grades.png").read_bytes().startswith(b"\x89PNG")
    for call, out in ((grades.save, folder), (check_out, folder), (grades.save, labels / "below a file")):
        with pytest.raises(CnnlabError, match=str(out)):
            call(out)
    values = grades.to_dict()
    assert [values[name] for name in ("scored", "refused", "missing", "mean", "median")] == [1, 1, 1, 0.5, 0.5]
    assert values["students"][2]["accuracy"] is None


def test_the_histogram_counts_every_accuracy() -> None:
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


def test_the_command(cnnlab: Command, class_folder: Path, labels: Path, tmp_path: Path) -> None:
    write_file(class_folder, "ann.csv", HALF)
    write_file(class_folder, "bob.csv", "x")
    write_file(class_folder, "cleo/notes.md", "x")
    roster = write_file(tmp_path, "roster.txt", "ann\nbob\ncleo\ndan\n")
    answer = cnnlab("grade", class_folder, "--labels", labels, "--roster", roster)
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["ann", "0.5000"], ["bob", "refused"], ["cleo", "refused"], ["dan", "missing"],
    ]  # fmt: skip
    assert "2 of 4" in lines[1]
    assert lines[-1] == "1 scored, median accuracy 0.5000; 2 refused; 1 missing"
    assert "runs/grades-001" in answer.stderr
    answer = cnnlab("grade", class_folder, "--labels", labels, "--json", "--out", "mine")
    assert json.loads(answer.stdout)["students"][0]["accuracy"] == 0.5
    assert (tmp_path / "mine/grades.png").exists()
    assert "mine/grades.csv" in one_line_error(cnnlab("grade", class_folder, "--labels", labels, "--out", "mine"))
    other = write_file(tmp_path, "l.csv", "species,image\noak,1\n")
    write_file(class_folder, "ann.csv", "image,species\n1,oak\n")
    answer = cnnlab(
        "grade", class_folder, "--labels", other, "--id-column", "image", "--label-column", "species", "--json"
    )
    assert json.loads(answer.stdout)["mean"] == 1.0


def test_mistakes_in_the_teachers_input_are_errors(cnnlab: Command, class_folder: Path, labels: Path) -> None:
    write_file(class_folder, "ann.csv")
    for arguments in ([class_folder / "none", "--labels", labels], [class_folder, "--labels", class_folder / "none"], ["--labels", labels],
                      [class_folder, "--labels", labels, "--label-column", "truth"], [class_folder]):  # fmt: skip
        one_line_error(cnnlab("grade", *arguments))
    assert not Path("runs").exists()


CANVAS = """Student,ID,SIS User ID,SIS Login ID,Section,HW 1 (77)
    Points Possible,,,,,10
"Smith, John",4211,U001001,jsmith,A,
"Lee, Ann",4212,U001002,alee,A,
"Müller, Zoë",4213,U001003,zmueller,A,
"Student, Test",4299,,abc,A,
"""
BLACKBOARD = (
    '"Last Name","First Name","Username","Student ID"\n"Smith","John","jsmith","1001"\n"Lee","Ann","alee","1002"\n'
)
MOODLE = "First name,Surname,ID number,Email address\nJohn,Smith,1001,j@x.edu\nAnn,Lee,1002,a@x.edu\n"
WORKSHEET = (
    "Identifier,Full name,Email address,Status\nParticipant 77,John Smith,j@x.edu,-\nParticipant 78,Ann Lee,,-\n"
)
CHINESE = "学号,姓名,班级\n3210101234,张三,一班\n3210101235,李四,一班\n3210101236,欧阳娜娜,一班\n"


@pytest.mark.parametrize(
    ("roster", "submissions", "wanted"),
    [
        (CANVAS, {"smithjohn_4211_90001_submission.csv": "Smith, John", "leeann_LATE_4212_90002_my-1.csv": "Lee, Ann",
                  "müllerzoë_4213_90003_a.csv": "Müller, Zoë"}, ""),
        (CANVAS, {"leeann_90_4211_a.csv": "Lee, Ann", "U001001.csv": "Smith, John"}, "Müller, Zoë"),
        (BLACKBOARD, {"Homework 1_jsmith_attempt_2026-03-01-12-30-00_submission.csv": "John Smith"}, "Ann Lee"),
        (BLACKBOARD.replace(",", "\t").encode("utf-16"), {"HW_alee_attempt_2026-03-01-12-30-00_a.csv": "Ann Lee"},
         "John Smith"),
        (MOODLE, {"John Smith_778899_assignsubmission_file_/a.csv": "John Smith",
                  "Ann Lee_778_assignsubmission_file_submission.csv": "Ann Lee"}, ""),
        (WORKSHEET, {"J. Smith_77_assignsubmission_file_/a.csv": "John Smith", "LEE Ann.csv": "Ann Lee"}, ""),
        (MOODLE.replace(",", ";"), {"hw2_1002.csv": "Ann Lee"}, "John Smith"),
        ("\ufeff" + CHINESE, {"3210101234_张三_submission.csv": "张三", "李四3210101235.csv": "李四",
                              "欧阳娜娜-作业2.csv": "欧阳娜娜"}, ""),
        (CHINESE.encode("gbk"), {"作业1-3210101234-张三.csv": "张三", "HW1_李四.csv": "李四"}, "欧阳娜娜"),
        (CHINESE.encode("utf-16"), {os.fsdecode("3210101234张三.csv".encode("gbk")): "张三",
                                    "李四.csv".encode("gbk").decode("cp437"): "李四"}, "欧阳娜娜"),
        ("3210101234 name\n3210101235 other one\n", {"3210101234_name_submission.csv": "3210101234 name",
                                                     "other one.csv": "3210101235 other one"}, ""),
        ("姓,名,邮箱\n张,三,zs@zju.edu.cn\n李,四,ls01@zju.edu.cn\n", {"ls01.csv": "李四", "张三.csv": "张三"}, ""),
        (" STUDENT ID , Full_Name\n12345,Ann\n23456,Bo\n", {"12345.csv": "Ann"}, "Bo"),
        ("学 号,姓 名\n3210101234,张三\n", {"3210101234.csv": "张三"}, ""),
        ("学号/工号,姓名（必填）\n3210101234,张三\n", {"3210101234.csv": "张三"}, ""),
        ("姓/名\n张三\n", {"张三.csv": "张三"}, ""),
        ("学期,2024-2025\n学号,姓名\n3210101234,张三\n", {"hw_3210101234.csv": "张三"}, ""),
        ("深度学习\n\n姓名,班级\n张三,一班\n李四,一班\n", {"李四.csv": "李四"}, "张三"),
        ("1. Ann Lee\n2. Bo\n", {"ann_lee.csv": "Ann Lee", "2. Bo.csv": "Bo"}, ""),
        ("1\t张三\n2\t李四\n", {"张三.csv": "张三"}, "李四"),
        ("3210101234,张三,计科1班\n", {"张三.csv": "3210101234,张三,计科1班"}, ""),
        ("学号,姓名\n3210101234.0,张三\n", {"3210101234.csv": "张三"}, ""),
        ("学号,姓名\n012,张三\n013,李四\n", {"012.csv": "张三"}, "李四"),
        ("Username,Name\njd1,Jo Doe\n", {"HW_jd1_attempt_2026-03-01-12-30-00_a.csv": "Jo Doe"}, ""),
        ("编号,学号,姓名\n1,3210101234,张三\n2,3210101235,李四\n", {"实验课_2_1_张三_3210101234.csv": "张三"}, "李四"),
        ('"identifier","github_username","name"\n"a1","annlee",""\n"b1","bo-kim",""\n',
         {"hw3-annlee.csv": "a1", "hw3-bo-kim.csv": "b1"}, ""),
        ("Roster Name,github_username\nAnn Lee,al99x\n", {"homework-2-al99x.csv": "Ann Lee"}, ""),
        ("Name\nLi Wei\nLi Wei Ming\n", {"li_wei_ming.csv": "Li Wei Ming"}, "Li Wei"),
    ],
)  # fmt: skip
def test_exported_rosters_are_matched_to_submissions(
    class_folder: Path, labels: Path, tmp_path: Path, roster: str | bytes, submissions: dict[str, str], wanted: str
) -> None:
    for name in submissions:
        write_file(class_folder, name)
    grades = grade(class_folder, labels, roster=write_file(tmp_path, "roster.csv", roster))
    found = rows_by_student(grades)
    assert {name: row.status for name, row in found.items()} == dict.fromkeys(submissions.values(), "scored") | (
        {wanted: "missing"} if wanted else {}
    )
    assert not any("roster" in row.note for row in grades.rows)


@pytest.mark.parametrize(
    ("content", "passed"),
    [
        ("Name\nAnn Lee\nBo Kim\nTOTAL\nAverage\n", 2),
        ("First name,Surname,ID number,Mark\nAnn,Lee,1001,5\nBo,Kim,1002,7\nOverall average,,,6\n", 1),
        ("# class 2026\nAnn Lee\nBo Kim\n", 1),
        ("Students:\nAnn Lee\n-----\nBo Kim\nTotal: 2 students\n", 3),
        ("//exported\nAnn Lee\nBo Kim\n2 students\n", 2),
        ("姓名,成绩\n张三,90\n李四,80\n平均分,85\n合计,170\n", 2),
        ("张三\n李四\n共2人\n", 1),
        ("3210101234\n3210101235\n", 0),
        ("学号,姓名\n3210101234,张三\n3210101235,\n合计,\n", 1),
        ("# exported\nOrgDefinedId,First Name,Last Name\n#100234,Ann,Lee\n#100235,Bo,Kim\n", 1),
    ],
)
def test_rows_that_are_not_students_are_skipped(tmp_path: Path, content: str, passed: int) -> None:
    roster = read_roster(write_file(tmp_path, "r.csv", content))
    assert len(roster.people) == 2
    assert len(roster.passed) == passed
    names = "Sum Total\nMax\nMin Lee\nTotal Li\nMean Joe Greene\n#1 Ann\n平均华\n"
    assert len(read_roster(write_file(tmp_path, "names.txt", names)).people) == 7


def test_a_submission_matching_two_students_is_assigned_to_neither(
    class_folder: Path, labels: Path, tmp_path: Path
) -> None:
    write_file(class_folder, "li wei.csv")
    write_file(class_folder, "3210101234_李四.csv")  # one student's number, another one's name
    write_file(class_folder, "Ann Brown.csv", HALF)  # not Ann
    write_file(class_folder, "Li Wei_20002.csv", NONE)
    roster = write_file(tmp_path, "r.csv", CHINESE + "20001,Li Wei,\n20002,Li Wei,\n20003,Ann,\n")
    rows = rows_by_student(grade(class_folder, labels, roster=roster))
    assert "'Li Wei (20001)', 'Li Wei (20002)'" in rows["li wei"].note
    assert "'张三', '李四'" in rows["3210101234_李四"].note
    assert rows["Ann Brown"].note.startswith("not on the roster")
    assert rows["Li Wei (20002)"].status == "scored"
    assert {name for name, row in rows.items() if row.status == "missing"} == {
        "Li Wei (20001)", "张三", "李四", "欧阳娜娜", "Ann",
    }  # fmt: skip


def test_students_with_the_same_name_are_kept_apart(class_folder: Path, labels: Path, tmp_path: Path) -> None:
    write_file(class_folder, "Li Wei.csv")
    for rows, names, noted in (
        ("学号,姓名\n12,Li Wei\n13,Li Wei\n", {"Li Wei (12)", "Li Wei (13)"}, False),
        ("姓名,班级\nLi Wei,1\nli wei,2\n", {"Li Wei (#1)", "li wei (#2)"}, True),
        ("1. Li Wei\n2. Li Wei\n", {"Li Wei (#1)", "Li Wei (#2)"}, True),
        ("学号,姓名\n12,Li Wei\n,Li Wei\n", {"Li Wei (12)", "Li Wei (#1)"}, True),
    ):
        grades = grade(class_folder, labels, roster=write_file(tmp_path, "r.csv", rows))
        assert rows_by_student(grades).keys() == names | {"Li Wei"}
        assert "fits several" in rows_by_student(grades)["Li Wei"].note
        assert any("2 students" in text for text in grades.skipped) == noted
    grades = grade(class_folder, labels, roster=write_file(tmp_path, "r.txt", "Li Wei\nli wei \n"))
    assert statuses(grades) == {"Li Wei": "scored"}
    assert len(grades.skipped) == 1


def test_a_large_class_is_matched_quickly(tmp_path: Path) -> None:
    lines = [f"{3210100000 + i},Student {chr(97 + i % 26) * (i // 26 + 1)}" for i in range(4000)]
    roster = read_roster(write_file(tmp_path, "r.csv", "\n".join(["ID,Name", *lines])))
    for i in range(4000):  # comparing all pairs would take minutes
        assert [person.name for person in roster.owners(f"hw_{3210100000 + i}_x")] == [lines[i].split(",")[1]]


def test_tables_with_unknown_columns_are_refused_and_lists_are_read(tmp_path: Path) -> None:
    for name, content in (
        ("a.tsv", "Alumno\tCurso\nAna\tB\n"), ("a.txt", "Alumno;Curso\nAna;B\n"), ("a.xls", "Alumno\tCurso\nAna\t1\n"),
        ("a.txt", "Alumno,Curso,Año\nAna,B,C\n"), ("a.txt", "Alumno\tCurso\nAna\t1\n"), ("a.csv", "Alumno,Rol\nAna,student\nBo,student\n"),
    ):  # fmt: skip
        with pytest.raises(CnnlabError, match="Name.*姓名"):
            read_roster(write_file(tmp_path, name, content))
    for content in ("Lee, Ann\nDoe, Jo\n", "Lee\tAnn\nDoe\tJo\n", "3210101234,Ann Lee\n3210101235,Jo Doe\n"):
        roster = read_roster(write_file(tmp_path, "a.txt", content))
        assert [len(roster.owners(name)) for name in ("ann lee", "jo doe")] == [1, 1]


def test_files_that_are_not_rosters_are_refused(class_folder: Path, labels: Path, tmp_path: Path) -> None:
    for name, content, why in (
        ("a.csv", "Alumno;Curso\nAna;1\n", "Name.*姓名"), ("a.xlsx", workbook("xlsx"), "Excel workbook"),
        ("a.csv", workbook("ods"), "OpenDocument spreadsheet"), ("a.csv", "<!DOCTYPE html>\n<html>", "web page"),
        ("a.xls", "Müller\n".encode("latin-1"), "not UTF-8"), ("a.csv", "Name\n", "0 students"),
        ("a.csv", ",,\n", "0 students"), ("a.csv", '"",""\n ; \n', "0 students"),
    ):  # fmt: skip
        with pytest.raises(CnnlabError, match=why):
            grade(class_folder, labels, roster=write_file(tmp_path, name, content))


def workbook(kind: str) -> bytes:
    """Return a file with the members that identify a workbook of this kind."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        if kind == "ods":
            zipped.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet", zipfile.ZIP_STORED)
        for name in {"xlsx": ["[Content_Types].xml", "xl/workbook.xml"], "numbers": ["Index/Document.iwa"]}.get(
            kind, ["a"]
        ):
            zipped.writestr(name, b"x" * 2000)
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, ids=np.arange(3))
    return buffer.getvalue()


def test_spreadsheet_encodings_are_read(class_folder: Path, labels: Path) -> None:
    content = "编号,标签\n1,猫\n2,狗\n3,狗\n4,猫\n"
    truth = write_file(class_folder.parent, "truth.csv", content.encode("gb18030"))
    codecs = ("utf-8", "utf-8-sig", "gbk", "utf-16", "utf-16-le", "utf-16-be")
    for codec in codecs:
        write_file(class_folder, f"{codec}.csv", content.encode(codec))
    write_file(class_folder, "tabs.csv", content.replace(",", "\t").encode("utf-16"))
    write_file(class_folder, "odd.csv", content.encode("utf-16") + b"\n")  # as after `echo >>`
    grades = grade(class_folder, truth, id_column="编号", label_column="标签")
    assert [row.score and row.score.accuracy for row in grades.rows] == [1.0] * 8
    assert statuses(grade(write_file(class_folder, "x.csv", "id,label\n1,Müller\n".encode("latin-1")), labels)) == {
        "x": "refused"
    }


def test_the_case_of_headers_is_ignored(class_folder: Path, labels: Path) -> None:
    for name, header in (
        ("a", "Id,Label"),
        ("b", " ID , LABEL "),
        ("c", "\u00a0Id,ｌabel"),
        ("d", "Id,id,label,Label"),
    ):
        body = TRUE.partition("\n")[2]
        write_file(class_folder, f"{name}.csv", f"{header}\n" + (body if name != "d" else "x,1,cat,y\n"))
    rows = rows_by_student(grade(class_folder, labels))
    assert [rows[n].status for n in "abc"] == ["scored"] * 3
    assert "lacks 3 ids" in rows["d"].note  # columns with exactly these names win
    assert statuses(grade(write_file(class_folder, "e.csv", "Id,iD,label\n1,1,cat\n"), labels)) == {"e": "refused"}


def test_a_submission_without_a_known_label_is_refused(class_folder: Path, labels: Path) -> None:
    write_file(class_folder, "numbers.csv", "id,label\n1,0\n2,1\n3,1\n4,0\n")
    write_file(class_folder, "case.csv", TRUE.replace("cat", "Cat").replace("dog", "Dog"))
    rows = rows_by_student(grade(class_folder, labels))
    assert {row.status for row in rows.values()} == {"refused"}
    assert "known: 'cat', 'dog'" in rows["numbers"].note
    assert "'cat'" in rows["case"].note
    spaces = write_file(class_folder, "spaces.csv", TRUE.replace("cat", "cat ").replace("dog", " dog"))
    assert "'cat'" in rows_by_student(grade(spaces, labels))["spaces"].note
    with pytest.raises(CnnlabError, match=r"case\.csv.*'Cat'.*'cat'"):
        score(class_folder / "case.csv", labels)


@pytest.mark.parametrize(
    "way", ["{}.png", "{:05d}", "{}.0", "test/{}.png", "test\\{:03d}.jpeg", " {}", "{} ", "/data/test/{:06d}"]
)
def test_ids_in_another_format_are_named(class_folder: Path, labels: Path, way: str) -> None:
    body = "".join(f"{way.format(i)},{'cat' if i in (1, 4) else 'dog'}\n" for i in range(1, 5))
    note = rows_by_student(grade(write_file(class_folder, "ann.csv", f"id,label\n{body}"), labels))["ann"].note
    assert "for '1'" in note


def test_files_submitted_instead_of_a_table_are_named(class_folder: Path, labels: Path) -> None:
    kinds = {
        "xlsx": (workbook("xlsx"), "Excel workbook"), "numbers": (workbook("numbers"), "Numbers"),
        "zip": (workbook("zip"), "zip archive"), "xls": (bytes.fromhex("d0cf11e0a1b11ae1"), "Office file"),
        "rar": (b"Rar!\x1a\x07\1\0", "RAR"), "gz": (gzip.compress(b"x"), "gzip"), "html": (b"\n<!doctype HTML><p>Log in", "web page"),
        "pdf": (b"%PDF-1.7", "PDF"), "lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        "parquet": (b"PAR1\x15\4", "Parquet"), "feather": (b"ARROW1\0\0", "Arrow"), "pkl": (b"\x80\4\x95\0\0", "pickle"),
        "npz": (npz(), "NumPy arrays"), "annex": (b"/annex/objects/SHA256E-s9--0a.csv\n", "git annex get"),
        "json": (b'[{"id": 1}]', "JSON"), "zeros": (bytes(5000), "zero bytes"),
    }  # fmt: skip
    for name, (content, _) in kinds.items():
        write_file(class_folder, f"{name}.csv", content)
        write_file(class_folder, f"{name}2.{name}", content)
    rows = rows_by_student(grade(class_folder, labels))
    for name, (content, why) in kinds.items():
        assert re.search(why, rows[name].note), name
        assert re.search(why, rows[f"{name}2"].note), name
        assert rows[name].status == rows[f"{name}2"].status == "refused"
        with pytest.raises(CnnlabError, match=why):
            score(labels, write_file(class_folder, "labels.csv", content))
    with pytest.raises(CnnlabError, match=r"all\.zip.*zip archive"):
        grade(write_file(class_folder.parent, "all.zip", workbook("zip")), labels)


def test_probabilities_are_scored_by_log_loss_too(class_folder: Path, labels: Path, tmp_path: Path) -> None:
    lacks = write_file(tmp_path, "lacks.csv", "id,dog\n1,0.2\n2,1\n3,1\n4,0\n")
    with pytest.raises(CnnlabError, match=r"lacks\.csv.*\b1 of the 2 classes.*'cat'"):
        score(lacks, labels)
    write_file(class_folder, "ann.csv", "id,dog,Cat\n1,0.2,0.8\n2,.5,.5\n3,1,0\n4,0.1,0.9\n")
    write_file(class_folder, "bob.csv", HALF)
    write_file(class_folder, "cleo.csv", "id,cat\n1,1\n")
    write_file(class_folder, "dan.csv", "id,cat,dog\n1,0.5,0.9\n")
    rows = rows_by_student(grade(class_folder, labels))
    ann = rows["ann"].score
    assert ann is not None
    assert ann.log_loss == pytest.approx(-np.log([0.8, 0.5, 1, 0.9]).mean())
    assert ann.accuracy == 0.75  # a tie counts as the first class
    assert rows["bob"].to_dict()["log_loss"] is None
    assert "('dog')" in rows["cleo"].note
    assert re.search(r"line 2\b.*\b1\.4\b", rows["dan"].note)
    grades = grade(class_folder, labels)
    assert f"{ann.log_loss:.4f}" in grades_text(grades)
    assert f'"{ann.log_loss:.6f}"' in grades.to_csv()


def test_one_zero_does_not_stretch_the_histogram() -> None:
    for outliers in ([0.0], [0.1, 0.0]):
        accuracies = [0.9 + i / 400 for i in range(20)] + outliers
        (axes,) = plots.grades(accuracies, "").axes
        heights = [p.get_height() for p in axes.patches]
        assert sum(heights) == len(accuracies)
        assert min(p.get_x() for p in axes.patches) > 0.8
        assert axes.get_xlim()[0] > 0.8
        assert heights[-1] == len(outliers)
    (axes,) = plots.grades([0.1] * 8 + [0.9] * 12, "").axes  # many at chance level are not outliers
    assert min(p.get_x() for p in axes.patches) < 0.11


def test_an_empty_class_is_graded(class_folder: Path, labels: Path, tmp_path: Path) -> None:
    grades = grade(class_folder, labels)
    assert (grades.rows, str(grades), grades.to_dict()["mean"]) == ([], "0 scored", None)
    assert (grades.save(tmp_path / "out") / "grades.png").exists()
    assert grades_text(grades).splitlines()[-1] == "0 scored"
