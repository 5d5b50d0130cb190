"""Finding the folders of the train and the test split by their names; ambiguous names are refused."""

import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from diffenc.errors import UserError

_TRAIN = ("train", "training", "trainset", "train_set", "training_set", "trn")
_TEST = ("test", "testing", "testset", "test_set", "testing_set", "tst")
_VALIDATION = (
    *("val", "valid", "validation", "valset", "val_set", "validation_set"),
    *("eval", "evaluation", "dev", "development", "holdout", "held_out"),
)
_SHORT = {"train": ("tr",), "test": ("te", "ts")}  # may be classes too, unless both train and test occur
_KINDS = {
    name: kind for kind, names in (("train", _TRAIN), ("test", _TEST), ("val", _VALIDATION)) for name in names
}


@dataclasses.dataclass(frozen=True)
class SplitFolders:
    """The folders of the splits.

    Attributes:
      train: its sub-folders are classes.
      test: None = images of `train` are held out for testing.
      unread: folders of validation images, which are not converted: a run cuts its own validation split from train.
    """

    train: Path
    test: Path | None = None
    unread: tuple[Path, ...] = ()


def find_splits(source: Path, images: Sequence[Path]) -> SplitFolders:
    """Returns the splits in `source`: folders such as train/ and test/ (or val/), in any case; without any, all images are train.

    Args:
      images: all image files below `source`.

    Raises:
      UserError: it is ambiguous which images are for testing; the message names the options that decide it.
    """
    parts = [path.relative_to(source).parts for path in images]
    folders = sorted({part[0] for part in parts if len(part) > 1})
    named = {kind: [name for name in folders if kind_of(name) == kind] for kind in ("train", "test", "val")}
    others = [name for name in folders if kind_of(name) is None]
    loose = [part[0] for part in parts if len(part) == 1]
    if not any(named.values()):
        _refuse_similar(source, others)
        refuse_nested(source, images, pairs_only=False)
        return SplitFolders(source)
    # Without a test folder, a validation folder serves as test; `prepare folder` reports that.
    train, tests = named["train"], named["test"] or named["val"]
    if len(train) != 1 or len(tests) > 1 or others or loose:
        raise _ambiguous(source, folders, loose[:1])
    unread = tuple(source / name for name in named["val"] if name not in tests)
    found = SplitFolders(source / train[0], source / tests[0] if tests else None, unread)
    for folder in filter(None, (found.train, found.test)):
        refuse_nested(folder, [path for path in images if folder in path.parents], pairs_only=True)
    return found


def name_splits(train: Path, test: Path | None) -> SplitFolders:
    """Returns the splits that the user named. Raises UserError if one is not a folder, or contains the other."""
    for key, folder in (("train", train), ("test", test)):
        if folder is not None and not folder.is_dir():
            raise UserError(f"--{key}={folder}: is not a folder")
    if test is not None:
        inner, outer = test.resolve(), train.resolve()
        if inner == outer or outer in inner.parents or inner in outer.parents:
            raise UserError(
                f"--test={test} and --train={train}: one contains the other, so images would be in both; name separate folders"
            )
    return SplitFolders(train, test)


def kind_of(name: str) -> str | None:
    """Returns "train", "test" or "val" if `name` is a usual name of such a folder, in any case; else None."""
    # NFKC: full-width letters and ligatures compare equal to plain letters.
    return _KINDS.get(re.sub(r"[-. ]", "_", unicodedata.normalize("NFKC", name).lower()))


def resembles(name: str) -> str | None:
    """Returns the kind of split that the name or a word in it stands for, as in cifar_train, testA or val2017; else None."""
    return next((kind for word in (name, *_words(name)) if (kind := kind_of(word))), None)


def _words(name: str) -> list[str]:
    return re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)


def refuse_nested(folder: Path, images: Iterable[Path], pairs_only: bool) -> None:
    """Raises UserError if folders below the sub-folders of `folder` look like splits, since their images would be pooled.

    Args:
      pairs_only: refuse them only if folders of two kinds of split are next to each other.
    """
    children: dict[Path, set[str]] = {}
    for path in images:
        inside = path.relative_to(folder).parts[:-1]
        for depth in range(1, len(inside)):
            children.setdefault(Path(*inside[:depth]), set()).add(inside[depth])
    for parent, names in sorted(children.items()):
        kinds = {name: kind for name in sorted(names) if (kind := kind_of(name))}
        if len(set(kinds.values())) > 1 or (kinds and not pairs_only):
            raise UserError(
                f"{folder / parent}: contains {_list_names(kinds)}, whose images would be pooled: point --source at the "
                f"folder that contains the splits, each with folders of classes, or name both: {_options(folder / parent, kinds)}"
            )


def _refuse_similar(source: Path, folders: Sequence[str]) -> None:
    """Raises UserError if folders have names that resemble names of splits, so that they may not be classes."""
    if alike := [name for name in folders if resembles(name)]:
        raise _ambiguous(source, alike, [])
    compound = {kind: [name for name in folders if kind in name.lower()] for kind in ("train", "test")}
    short = {
        kind: [name for name in folders if any(word.lower() in texts for word in _words(name))]
        for kind, texts in _SHORT.items()
    }
    for found in (compound, short):  # such as trainimages and testimages; imagesTr and imagesTs
        if all(found.values()):
            raise _ambiguous(source, [*found["train"], *found["test"]], [])


def _ambiguous(source: Path, folders: Sequence[str], loose: Sequence[str]) -> UserError:
    what = _list_names([*folders, *loose])
    return UserError(
        f"--source={source}: {what}: ambiguous which are splits and which are classes; instead of --source, give "
        f"{_options(source, folders)}; or --train={source} if all of them are classes, of which then a "
        "tenth is held out for testing"
    )


def _options(folder: Path, names: Iterable[str]) -> str:
    """Returns suggested options --train=… --test=… --as=…; DIR stands for a split with no, or several, candidate folders."""
    kinds = {kind: [name for name in names if resembles(name) == kind] for kind in ("train", "test", "val")}
    train, test = kinds["train"], kinds["test"] or kinds["val"]
    paths = [folder / one[0] if len(one) == 1 else "DIR" for one in (train, test)]
    return f"--train={paths[0]} --test={paths[1]} --as=FOLDER"


def _list_names(names: Iterable[str]) -> str:
    """Returns the first four names, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - 4:,} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
