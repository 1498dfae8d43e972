"""Downloads: whole and checked, or not there at all. The addresses are `file://`, so no network is used."""

import hashlib
from dataclasses import replace

import pytest

from diffusion.data.download import RemoteFile, fetch, locate, verify

CONTENT = b"pixels" * 1000


@pytest.fixture
def remote(tmp_path):
    path = tmp_path / "server" / "set.tar.gz"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return RemoteFile(path.as_uri(), hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


def test_fetch(remote, tmp_path):
    target = tmp_path / "new" / "folder" / "set.tar.gz"
    fetch(remote, target)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


def test_locate_downloads_once(remote, tmp_path):
    folder = tmp_path / "downloads"
    assert locate([remote], None, folder) == {"set.tar.gz": folder / "set.tar.gz"}
    (tmp_path / "server" / "set.tar.gz").unlink()
    assert locate([remote], None, folder) == {"set.tar.gz": folder / "set.tar.gz"}


def test_locate_takes_the_file_or_its_folder(remote, tmp_path):
    file = tmp_path / "server" / "set.tar.gz"
    for archive in (file, file.parent):
        assert locate([remote], str(archive), tmp_path / "unused") == {"set.tar.gz": file}
    renamed = file.rename(tmp_path / "my copy.tgz")
    assert locate([remote], str(renamed), tmp_path / "unused") == {"set.tar.gz": renamed}
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"num_bytes": 5999}])
def test_wrong_content_is_not_kept(remote, tmp_path, change):
    target = tmp_path / "downloads" / "set.tar.gz"
    with pytest.raises(ValueError, match="is not the published") as error:
        fetch(replace(remote, **change), target)
    assert remote.sha256 in str(error.value)
    assert "6000 bytes" in str(error.value)
    assert not list(target.parent.iterdir())


def test_unreachable_leaves_nothing_and_explains(remote, tmp_path):
    lost = replace(remote, url=remote.url.replace("set.tar.gz", "lost.tar.gz"))
    folder = tmp_path / "downloads"
    with pytest.raises(FileNotFoundError, match="could not be downloaded") as error:
        locate([lost], None, folder)
    assert lost.url in str(error.value)
    assert f"put it into {folder}, or pass --config.data.archive=FILE" in str(error.value)
    assert not list(folder.iterdir())


def test_verify(remote, tmp_path):
    path = tmp_path / "server" / "set.tar.gz"
    verify(path, remote)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=r"(?s)got .* 5999 bytes.*expected .* 6000 bytes"):
        verify(path, remote)
