"""Files that are there as a whole or not at all."""

import pytest

from tmac.files import remove_leftovers, replacing


def test_what_was_written_takes_the_place_of_the_file(tmp_path):
    path = tmp_path / "a"
    for content in (b"one", b"two"):
        with replacing(path) as temporary:
            assert temporary.parent == tmp_path
            temporary.write_bytes(content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_bytes(b"n")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_messages_name_the_file_that_was_asked_for(tmp_path):
    path = tmp_path / "gone" / "a"
    with pytest.raises(FileNotFoundError) as caught, replacing(path) as temporary:
        temporary.write_bytes(b"")
    assert caught.value.filename == str(path)


def test_what_killed_processes_left_is_removed(tmp_path):
    (tmp_path / "in").mkdir()
    for name in (".a.0123456789abcdef.tmp", "in/.b.fedcba9876543210.tmp", "in/.tmpAbCd12", "in/.hidden", "c.tmp"):
        (tmp_path / name).write_bytes(b"x")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [".hidden", "c.tmp"]
