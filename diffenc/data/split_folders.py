"""Which folders hold the train and the test split, by their names; what could be read in two ways is refused."""

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
_SHORT = {"train": ("tr",), "test": ("te", "ts")}  # which may be classes too, unless both are there
_KINDS = {
    name: kind for kind, names in (("train", _TRAIN), ("test", _TEST), ("val", _VALIDATION)) for name in names
}


@dataclasses.dataclass(frozen=True)
class SplitFolders:
    """Where the splits are.

    Attributes:
      train: whose sub-folders are classes.
      test: None = images of `train` are held out for testing.
      unread: a folder of validation images, which are of no use here.
    """

    train: Path
    test: Path | None = None
    unread: tuple[Path, ...] = ()


def find_splits(source: Path, images: Sequence[Path]) -> SplitFolders:
    """Returns the splits in `source`: folders such as train/ and test/ (or val/), in any case; else all is train.

    Args:
      images: all image files below `source`.

    Raises:
      UserError: it is not certain which images are for testing; the message names the options that say it.
    """
    parts = [path.relative_to(source).parts for path in images]
    folders = sorted({part[0] for part in parts if len(part) > 1})
    named = {kind: [name for name in folders if kind_of(name) == kind] for kind in ("train", "test", "val")}
    others = [name for name in folders if kind_of(name) is None]
    loose = [part[0] for part in parts if len(part) == 1]
    if not any(named.values()):
        _refuse_alike(source, others)
        refuse_nested(source, images, pairs_only=False)
        return SplitFolders(source)
    train, tests = named["train"], named["test"] or named["val"]
    if len(train) != 1 or len(tests) > 1 or others or loose:
        raise _unsure(source, folders, loose[:1])
    unread = tuple(source / name for name in named["val"] if name not in tests)
    found = SplitFolders(source / train[0], source / tests[0] if tests else None, unread)
    for folder in filter(None, (found.train, found.test)):
        refuse_nested(folder, [path for path in images if folder in path.parents], pairs_only=True)
    return found


def name_splits(train: Path, test: Path | None) -> SplitFolders:
    """Returns the splits that a user names. Raises UserError if one is no folder, or holds the other."""
    for key, folder in (("train", train), ("test", test)):
        if folder is not None and not folder.is_dir():
            raise UserError(f"--{key}={folder}: is no folder")
    if test is not None:
        inner, outer = test.resolve(), train.resolve()
        if inner == outer or outer in inner.parents or inner in outer.parents:
            raise UserError(
                f"--test={test} and --train={train}: one holds the other, and its images would be in both"
            )
    return SplitFolders(train, test)


def kind_of(name: str) -> str | None:
    """Returns "train", "test" or "val" if that is what a folder's name says in any case, else None."""
    return _KINDS.get(re.sub(r"[-. ]", "_", unicodedata.normalize("NFKC", name).lower()))


def resembles(name: str) -> str | None:
    """Returns the kind of split that the name or a word in it says, as cifar_train, testA or val2017; else None."""
    return next((kind for word in (name, *_words(name)) if (kind := kind_of(word))), None)


def _words(name: str) -> list[str]:
    return re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)


def refuse_nested(folder: Path, images: Iterable[Path], pairs_only: bool) -> None:
    """Raises UserError where folders of splits lie deeper than the sub-folders of `folder`, and would be pooled.

    Args:
      pairs_only: whether only those are meant that have one of another split beside them.
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
                f"{folder / parent}: holds {_listed(kinds)}, whose images would be pooled: point --source at the "
                f"folder that holds the splits, each with folders of classes, or name both: {_options(folder / parent, kinds)}"
            )


def _refuse_alike(source: Path, folders: Sequence[str]) -> None:
    """Raises UserError if names of folders resemble splits, or differ in case alone."""
    if alike := [name for name in folders if resembles(name)]:
        raise _unsure(source, alike, [])
    stuck = {kind: [name for name in folders if kind in name.lower()] for kind in ("train", "test")}
    short = {
        kind: [name for name in folders if any(word.lower() in texts for word in _words(name))]
        for kind, texts in _SHORT.items()
    }
    for found in (stuck, short):  # as trainimages beside testimages; imagesTr beside imagesTs
        if all(found.values()):
            raise _unsure(source, [*found["train"], *found["test"]], [])


def _unsure(source: Path, folders: Sequence[str], loose: Sequence[str]) -> UserError:
    what = _listed([*folders, *loose])
    return UserError(
        f"--source={source}: {what}: which are splits and which classes is not certain; say it instead of --source: "
        f"{_options(source, folders)}; or --train={source} if all of them are classes, of which a tenth is then "
        "held out for testing"
    )


def _options(folder: Path, names: Iterable[str]) -> str:
    """--train=… --test=…, of folders as far as one alone resembles each."""
    kinds = {kind: [name for name in names if resembles(name) == kind] for kind in ("train", "test", "val")}
    train, test = kinds["train"], kinds["test"] or kinds["val"]
    said = [folder / one[0] if len(one) == 1 else "DIR" for one in (train, test)]
    return f"--train={said[0]} --test={said[1]} --as=FOLDER"


def _listed(names: Iterable[str]) -> str:
    """The first few of them."""
    names = list(names)
    more = f" and {len(names) - 4:,} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
