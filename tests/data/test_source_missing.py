"""A source whose images are missing raises one kind of error, so a caller can offer another place."""

from pathlib import Path

import pytest

from cnnlab.data import SourceOptions, load_images
from cnnlab.io.errors import CnnlabError, SourceMissing


@pytest.mark.parametrize("source", ["folder:{}", "csv:{}.csv", "wds:{}", "parquet:{}", "pack:{}", "store:{}"])
def test_a_missing_source_raises_source_missing(source: str, tmp_path: Path) -> None:
    with pytest.raises(SourceMissing, match="gone"):
        load_images(source.format(tmp_path / "gone"), "train", SourceOptions(data_dir=tmp_path))


def test_a_table_without_its_images_raises_source_missing(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("path,label\na.png,cat\nb.png,dog\n")
    with pytest.raises(SourceMissing):
        load_images(f"csv:{table}", "train", SourceOptions(data_dir=tmp_path))


def test_an_existing_file_that_is_not_a_source_raises_a_different_error(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("none")
    with pytest.raises(CnnlabError) as caught:
        load_images(f"folder:{file}", "train", SourceOptions(data_dir=tmp_path))
    assert not isinstance(caught.value, SourceMissing)
