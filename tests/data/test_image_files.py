"""Which files below a folder are pictures of which class and split."""

import logging
import os

import pytest
from PIL import Image

from jaxaccel.data.data_sets import open_source
from jaxaccel.data.image_files import list_images
from jaxaccel.errors import UserError


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (2, 2)).save(path)


def paths(root):
    return {split: [file.path for file in files] for split, files in list_images(root).splits.items()}


def test_loops_of_links_are_counted_once(tmp_path):
    for name in ("a/1.png", "a/in/2.png", "b/3.png"):
        write(tmp_path / name)
    for link, target in (
        ("a/self", "."),
        ("a/in/up", ".."),
        ("a/root", "../.."),
        ("a/higher", "../../.."),
        ("b/a", "../a"),
    ):
        (tmp_path / link).symlink_to(target)
    assert paths(tmp_path) == {"": ["a/1.png", "a/in/2.png", "b/3.png"]}


def test_two_links_to_one_folder_count_once(tmp_path):
    write(tmp_path / "elsewhere" / "1.png")
    write(tmp_path / "data" / "a" / "2.png")
    for link in ("a/x", "a/y", "b"):
        (tmp_path / "data" / link).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "c").symlink_to(tmp_path / "data" / "a")
    listing = list_images(tmp_path / "data")
    assert [file.path for file in listing.splits[""]] == ["a/2.png", "b/1.png"]
    assert listing.classes == ["a", "b", "c"]


def test_linked_files_and_classes_are_read(tmp_path):
    write(tmp_path / "blobs" / "1.png")
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "one.png").symlink_to(tmp_path / "blobs" / "1.png")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "blobs")
    assert paths(tmp_path / "data") == {"": ["a/one.png", "b/1.png"]}


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "nothing"])
def test_what_is_no_file_is_refused(kind, tmp_path):
    write(tmp_path / "a" / "1.png")
    odd = tmp_path / "a" / "2.png"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "socket":
        import socket

        socket.socket(socket.AF_UNIX).bind(str(odd))
    else:
        odd.symlink_to("/dev/zero" if kind == "device" else "gone.png")
    with pytest.raises(
        UserError, match=r"a/2.png is (a named pipe|a socket|a device|a link that leads nowhere)"
    ):
        open_source(str(tmp_path), "train")


def test_classes_without_pictures_and_pictures_without_class_are_told(tmp_path, caplog):
    for name in ("a/1.png", "c/2.png", "loose.png", "__MACOSX/c/3.png"):
        write(tmp_path / name)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("nothing")
    caplog.set_level(logging.INFO, "jaxaccel")
    assert list_images(tmp_path).classes == ["a", "b", "c"]
    assert [line.split(": ", 1)[-1].removeprefix(f"{tmp_path} ") for line in caplog.messages] == [
        "they are left out", "no pictures of b, which stays a class",
    ]  # fmt: skip
    assert open_source(str(tmp_path), "train").features["label"].names == ["a", "b", "c"]


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train/1.png", "train/2.png", "test/1.png", "test/2.png"):
        write(tmp_path / name)
    assert list_images(tmp_path).classes == ["test", "train"]


def test_names_need_no_encoding(tmp_path):
    write(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "1.png").rename(os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xff.png"))
    assert open_source(str(tmp_path), "train")[0]["id"].item() == b"a/\xff.png"


def test_one_split_has_one_folder(tmp_path):
    for name in ("train", "val", "valid"):
        write(tmp_path / name / "a" / "1.png")
    with pytest.raises(UserError, match="are both the split validation: rename one"):
        list_images(tmp_path)
