"""The contents of a folder of images: the files of each class and split, and what was skipped.

PATH/cats/1.jpg, PATH/dogs/7.png            one set; the validation split is taken from it, and there is no test set
PATH/train/cats/.., PATH/test/cats/..       splits, by the usual names in any letter case: see `SPLITS`

A wrong list of classes is the worst error here, since it goes unnoticed. So a folder that fits neither layout is an
error, and files that are not images are counted.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cnnlab.io.decode import ENDINGS, BadImage, probe
from cnnlab.io.errors import CnnlabError, SourceMissing, reason
from cnnlab.io.kinds import file_kind
from cnnlab.io.text import plural
from cnnlab.io.walk import CLOUD, IMAGE, LINK, RUN, is_system, kind_of_name, walk

SPLITS = {
    "train": ("train", "training", "trainset", "trn", "训练", "训练集"),
    "validation": ("validation", "val", "valid", "dev", "valset", "devset", "验证", "验证集"),
    "test": ("test", "testing", "testset", "tst", "eval", "evaluation", "测试", "测试集"),
}
# The same in other languages: Spanish, French, Portuguese, Italian, German, Russian, Japanese, Korean.
_TRANSLATED = {
    "train": "entrenamiento entrainement entraînement apprentissage treino treinamento addestramento обучение 学習 "
    "訓練 훈련 학습",
    "validation": "validación validacion validação validacao validazione validierung валидация 検証 검증",
    "test": "prueba pruebas teste тест テスト 評価 테스트 시험",
}
_SPLIT_OF = {name: split for split in SPLITS for name in (*SPLITS[split], *_TRANSLATED[split].split())}
# Parts of a data set that are neither classes nor one of the splits above.
_PARTS = re.compile(
    r"(fold|split|part|batch|round|cv|subset|(un)?labell?ed|holdout|support|query|gallery|probe)[\W_]*\d*"
)
# Words that may stand beside those of a split, as in train_images.
_FILLERS = frozenset(("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "data", "set"))
# Names of the only folder in a test part whose images have no labels.
_UNLABELLED = frozenset((*_FILLERS, "test", "unknown", "unlabelled", "unlabeled", "none"))
# Files beside images. A folder of anything else, such as camera raws, films or archives, was meant as a class.
_DOCUMENTS = frozenset(
    (".csv", ".tsv", ".xlsx", ".xls", ".ods", ".json", ".jsonl", ".txt", ".parquet", ".md", ".rst", ".html", ".htm",
     ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".log", ".py", ".ipynb", ".sh", ".bat", ".r", ".m", ".c", ".cpp",
     ".js", ".css", ".doc", ".docx", ".odt", ".ppt", ".pptx", ".bib", ".tex", ".db", ".sqlite", ".url", ".lnk",
     ".webloc", ".xmp", ".aae", ".pp3", ".thm", ".md5", ".sha256", ".torrent", ".pt", ".pth", ".safetensors", ".onnx",
     ".h5", ".pkl", ".tfevents", ".wav", ".mp3",
     ".mat", ".npz", ".ckpt", ".pb", ".tfrecord", ".bin", ".dat", ".pickle", ".joblib", ".weights", ".index")
)  # fmt: skip
_TABLES = frozenset((".csv", ".tsv", ".xlsx", ".xls", ".ods", ".json", ".txt", ".parquet"))
_ARCHIVES = frozenset((".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst"))
_FILMS = frozenset((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".wmv", ".mpg", ".mpeg", ".3gp"))
_LOOSE = "image outside any class"
_EMPTY = "empty folder"
_NO_IMAGES = "folder without images"
_OTHER = "other folder"
_RUNS = "folder of runs"
_NO_ENDING = "file without an extension"


PassedOver = dict[str, list[str]]
"""Files and folders that are not data, by kind: `.heic`, `empty folder`, `image outside any class`, ..."""


@dataclass
class Scan:
    """The files of each split and class.

    classes: sorted names; files: split -> class -> sorted files, with `train` if the scan was `complete`; unlabelled:
    images of the test folder outside any class folder, on which nothing can be measured; repeated: names of sub-folders
    that every class has, which may be the real classes.
    """

    root: Path
    classes: list[str]
    files: dict[str, dict[str, list[Path]]]
    unlabelled: list[Path]
    passed_over: PassedOver
    repeated: tuple[str, ...] = ()

    def listing(self, split: str) -> tuple[list[Path], list[int]]:
        """Return the files of a split, class by class, and the class index of each."""
        found = [(file, k) for k, name in enumerate(self.classes) for file in self.files[split].get(name, [])]
        return [file for file, _ in found], [k for _, k in found]


def scan(root: Path, *, complete: bool = True) -> Scan:
    """Find the classes, splits and files of a folder.

    complete: whether to train on it. If not, a model is evaluated on it, so one class is enough, and no training split
    is needed. Raise CnnlabError if it is not a folder, follows neither layout, or has fewer than two classes, a class
    without a single readable image, or a class in another split that the training split lacks.
    """
    if not root.is_dir():
        if kind := file_kind(root):
            raise CnnlabError(f"folder:{root} {kind.in_place_of_folder()}")
        remedy = "give a folder that holds one sub-folder per class"
        if root.exists():
            raise CnnlabError(f"folder:{root} is a file, not a folder; {remedy}")
        raise SourceMissing(f"folder:{root} does not exist; {remedy}")
    passed_over: PassedOver = defaultdict(list)
    tops = _split_folders(root, passed_over, complete)
    spellings: dict[str, str] = {}
    files = {split: _classes(tops[split], passed_over, spellings) for split in SPLITS if split in tops}
    if not complete:
        files = {split: classes for split, classes in files.items() if classes}
        return Scan(root, sorted(set().union(*files.values())), files, [], passed_over)
    _need_two(tops["train"], files["train"])
    unlabelled: list[Path] = []
    for split in ("validation", "test"):
        if split not in tops or files[split].keys() & files["train"].keys():
            continue
        loose = _images(tops[split]) + [image for images in files[split].values() for image in images]
        own = tops[split].name  # unpacked archives repeat names
        if not loose or any(name != own and name.casefold() not in _UNLABELLED for name in files[split]):
            continue  # each class is checked below
        if split == "validation":
            raise CnnlabError(f"{tops[split]}: its images have no labels; make a sub-folder per class, or remove it")
        unlabelled = loose
        del files["test"]
        passed_over[_LOOSE] = [path for path in passed_over[_LOOSE] if Path(path).parent != tops["test"]]
    for split, classes in files.items():
        if not classes:
            raise CnnlabError(f"{tops[split]} holds no class folders; make one sub-folder per class, or remove it")
        for name in classes:
            if name not in files["train"]:
                same = next((c for c in files["train"] if c.casefold() == name.casefold()), None)
                remedy = f"rename it to {same}" if same else "add it there or remove it"
                raise CnnlabError(f"{tops[split] / name} is a class that {tops['train']} does not have; {remedy}")
    passed_over = {kind: paths for kind, paths in passed_over.items() if paths}
    return Scan(root, sorted(files["train"]), files, unlabelled, passed_over, _repeated(tops["train"], files["train"]))


def _repeated(top: Path, classes: Mapping[str, list[Path]]) -> tuple[str, ...]:
    """Return the sub-folders that each class has, if there are several and they hold all of its images."""
    shared: set[str] | None = None
    for name, files in classes.items():
        inside = {file.relative_to(top / name).parts[0] for file in files if file.is_relative_to(top / name)}
        if any((top / name / part).is_file() for part in inside):
            return ()
        shared = inside if shared is None else shared & inside
        if len(shared) < 2:
            return ()
    return tuple(sorted(shared or ()))


def split_of(name: str) -> str | None:
    """Return the split that a name such as `Train`, `test_images` or `val2017` means; None if it has other words."""
    words = [word for word in re.split(r"[\W\d_]+", name.casefold()) if word and word not in _FILLERS]
    return _SPLIT_OF.get(words[0]) if len(words) == 1 else None


def _split_folders(root: Path, passed_over: PassedOver, complete: bool) -> dict[str, Path]:
    """Return the folder of each split; `root` itself for `train` if there are no splits. complete: see `scan`."""
    folders = _folders(root)
    splits = {folder: split_of(folder.name) for folder in folders}
    if any(folder.name.casefold() == "invalid" for folder in folders):
        splits = {folder: split if folder.name.casefold() != "valid" else None for folder, split in splits.items()}
    if not any(splits.values()):
        splits = _splits_by_a_word(folders)
    named = [folder for folder, split in splits.items() if split]
    alone = len({splits[folder] for folder in named}) == 1  # a class may be called train: it holds the images itself
    if not named or (alone and len(named) < len(folders) and not any(map(_folders, named))):
        for folder in named if complete else ():
            # Nobody calls a class test. One called train holds trains.
            if splits[folder] != "train" and (loose := len(_images(folder))):
                raise CnnlabError(
                    f"{folder}: its {plural(loose, 'image')} have no class folder, and {folder.name} is the name of a "
                    "split; move it elsewhere (cnnlab predict classifies images without labels), or rename it if it "
                    "is a class"
                )
        if complete:
            _refuse_parts(folders)
        return {"train": root}
    tops: dict[str, Path] = {}
    for folder in named:
        split = splits[folder]
        assert split is not None
        if split in tops:
            raise CnnlabError(f"{tops[split]} and {folder}: both names mean {split}; merge them or rename one")
        tops[split] = folder
    if "train" not in tops and complete:
        names = " and ".join(folder.name for folder in named)
        raise CnnlabError(f"{root} has {names}, but no folder train; call the one with the training images train")
    flat = [folder for folder in folders if folder not in named and _images(folder)]
    if alone and complete and len(flat) > 1:
        raise CnnlabError(
            f"{root} has the folder {named[0].name} beside {flat[0].name} and {flat[1].name}, which hold images; "
            f"rename {named[0].name} if it is a class too, or move the others elsewhere"
        )
    tops = {split: _descend(top) for split, top in tops.items()}
    classes = {folder.name for folder in _folders(tops["train"])} if complete else set()
    for folder in folders:
        if folder in named or not next(walk(folder), None):
            continue
        if any(inside.name in classes for inside in _folders(folder)):
            raise CnnlabError(
                f"{folder} holds classes of {tops['train'].name}, but its name is not that of a split; "
                "rename it to validation or test, or move it elsewhere"
            )
        passed_over[_OTHER].append(str(folder))
    _add_files(root, passed_over)
    return tops


def _refuse_parts(folders: list[Path]) -> None:
    """Raise CnnlabError for folders that are named like parts of a set and each hold the classes."""
    parts = [folder for folder in folders if _PARTS.fullmatch(folder.name.casefold()) and _folders(folder)]
    inside = [{path.name for path in _folders(part)} for part in parts]
    if len(parts) > 1 and not any(map(_images, parts)) and set.intersection(*inside):
        names = ", ".join(folder.name for folder in parts[:3])
        raise CnnlabError(
            f"{parts[0].parent} holds parts of a set ({names}) with the same sub-folders; call them train, validation "
            f"and test, give one of them, as folder:{parts[0]}, or rename them if they are the classes"
        )


def _descend(top: Path) -> Path:
    """Return the folder of the classes: unpacked archives repeat names, as in seg_train/seg_train/cats."""
    inside = _folders(top)
    while len(inside) == 1 and not _images(top) and len(_folders(inside[0])) > 1:
        top, inside = inside[0], _folders(inside[0])
    return top


def _splits_by_a_word(folders: list[Path]) -> dict[Path, str | None]:
    """Return the split of folders such as seg_train and seg_test; none if these may be the names of classes.

    A test part may hold its images without class folders.
    """
    found: dict[Path, str | None] = {}
    for folder in folders:
        words = {_SPLIT_OF.get(word) for word in re.split(r"[\W\d_]+", folder.name.casefold())} - {None}
        flat = not _folders(folder) and words == {"test"}
        found[folder] = (
            words.pop() if len(words) == 1 and (flat or (_folders(folder) and not _images(folder))) else None
        )
    # A single one of them could be a class: train stations beside bus stops.
    return found if len({split for split in found.values() if split}) > 1 else dict.fromkeys(folders)


def _classes(top: Path, passed_over: PassedOver, spellings: dict[str, str]) -> dict[str, list[Path]]:
    """Return the sorted files of each class of one split.

    spellings: normalized name -> name to use. macOS and Linux encode é differently, but mean one class.
    """
    classes: dict[str, list[Path]] = {}
    folders = _folders(top)
    names = {folder.name for folder in folders}
    for folder in folders:
        _refuse_nested(folder, names)
        found: dict[str, list[Path]] = defaultdict(list)
        for kind, path in walk(folder):
            found[kind].append(path)
        images = found.pop(IMAGE, [])
        arrays = [path for path in images if path.suffix.lower() == ".npy"]
        if len(arrays) < len(images):  # masks or features of the images beside them
            images = [path for path in images if path.suffix.lower() != ".npy"]
            found[".npy"] += arrays
        if found[RUN] and (folder in found[RUN] or len(images) <= len(found[RUN])):
            passed_over[_RUNS].append(str(folder))
            continue
        unread = [kind for kind in found if kind and kind not in _DOCUMENTS and kind != RUN]
        unread += [""] if found[""] and not images and _is_image(found[""][0]) else []
        if unread and not images:
            count = sum(len(found[kind]) for kind in unread)
            kinds = ", ".join(kind or "no usual extension" for kind in sorted(unread))
            raise CnnlabError(
                f"{folder}: its {plural(count, 'file')} cannot be read ({kinds}); {_remedy(unread)}, or move the "
                "folder elsewhere"
            )
        for kind, paths in found.items():
            for path in paths:
                passed_over[kind or _NO_ENDING].append(str(path))
        if images:
            name = spellings.setdefault(unicodedata.normalize("NFC", folder.name), folder.name)
            if name != name.encode("utf-8", "replace").decode():
                raise CnnlabError(f"{top}: the folder name {name!a} is not UTF-8; rename it")
            classes[name] = sorted(classes.get(name, []) + images)
        else:
            passed_over[_NO_IMAGES if any(found.values()) else _EMPTY].append(str(folder))
    _add_files(top, passed_over)
    return classes


def _remedy(kinds: list[str]) -> str:
    """Return what to do about a class whose files are of these kinds."""
    if kinds == [""]:
        return "add .png or .jpg to their names"
    if kinds == [LINK]:
        return "mount the disk that they lead to"
    if kinds == [CLOUD]:
        return "download them from iCloud first"
    if all(kind in _ARCHIVES for kind in kinds):
        return "unpack them"
    if all(kind in _FILMS for kind in kinds):
        return "save their pictures as PNG or JPEG"
    if all(kind in (".heic", ".heif", ".hif") for kind in kinds):
        return "install pillow-heif, or convert them to PNG or JPEG"
    return "convert them to PNG or JPEG"


def _is_image(path: Path) -> bool:
    """Return whether a file without a usual extension is an image, or a DICOM file."""
    try:
        probe(path)
    except BadImage:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    return True


def _refuse_nested(folder: Path, names: set[str]) -> None:
    """Raise CnnlabError for a class folder that holds splits, or folders named like those beside it."""
    inside = {path.name for path in _folders(folder)}
    if len({split_of(name) for name in inside} - {None}) > 1:
        raise CnnlabError(
            f"{folder} holds splits ({', '.join(sorted(inside)[:3])}), which must be above the classes; "
            f"give folder:{folder}, or move them up"
        )
    if len(inside & names) > 1:
        raise CnnlabError(
            f"{folder} holds folders named like those beside it; if it is a copy of them, remove it, else rename them"
        )


def _need_two(top: Path, classes: dict[str, list[Path]]) -> None:
    if not classes and (loose := _images(top)):
        hint = _classes_in_names(loose) or _label_table(top)
        raise CnnlabError(f"{top} holds images, but no sub-folders{hint}; put each class in a sub-folder of its own")
    if not classes:
        raise CnnlabError(f"{top} holds no images in sub-folders; make one sub-folder per class and put images in it")
    if len(classes) == 1:
        only = top / next(iter(classes))
        inside = [folder for folder in _folders(only) if any(kind == IMAGE for kind, _ in walk(folder))]
        remedy = (
            f"if its sub-folders are the classes, give folder:{only}"
            if len(inside) > 1 and not _images(only)
            else "put each class in a sub-folder of its own, at least two"
        )
        hint = _classes_in_names(_images(only)) or _label_table(top)
        raise CnnlabError(f"{top} has one class ({only.name}){hint}; {remedy}")


def _classes_in_names(images: list[Path]) -> str:
    """Return a remark on files such as cat.0.jpg and dog.0.jpg, whose names begin with a few words."""
    names = sorted({match[0] for path in images if (match := re.match(r"[^\W\d_]{2,}", path.name))})
    if not 1 < len(names) < len(images):
        return ""
    return f": the names of the files seem to begin with the class ({', '.join(names[:3])})"


def _label_table(top: Path) -> str:
    """Return a remark on a table beside the images, which may hold their labels."""
    tables = [path.name for path in _files(top) if path.suffix.lower() in _TABLES]
    return f": {tables[0]} may hold the labels, but only folders name classes" if tables else ""


def _folders(top: Path) -> list[Path]:
    return [path for path in _entries(top) if path.is_dir() and not is_system(path.name)]


def _files(top: Path) -> list[Path]:
    return [path for path in _entries(top) if path.is_file() and not is_system(path.name)]


def _images(top: Path) -> list[Path]:
    return [
        path for path in _entries(top) if path.is_file() and path.suffix.lower() in ENDINGS and not is_system(path.name)
    ]


def _add_files(top: Path, passed_over: PassedOver) -> None:
    """Record the files beside the class folders."""
    for path in _entries(top):
        kind = kind_of_name(path.name)
        if path.is_file() and not is_system(path.name):
            passed_over[_LOOSE if kind == IMAGE else kind or _NO_ENDING].append(str(path))
        elif path.is_symlink() and not path.exists():
            passed_over[LINK].append(str(path))


def _entries(top: Path) -> list[Path]:
    try:
        entries = sorted(top.iterdir())
    except OSError as error:
        raise CnnlabError(f"cannot read {top}: {reason(error)}; correct its permissions, or move it") from error
    for path in entries:  # a broken link, which may have been a class or a split
        lost = path.is_symlink() and not path.exists() and path.suffix.lower() not in ENDINGS
        if lost and not is_system(path.name):
            raise CnnlabError(f"{path} is a link to {path.readlink()}, which is not there; mount it or remove the link")
    return entries
