"""The commit on record is that of the code, or none."""

import subprocess

import pytest

from lowbit.train import provenance


@pytest.fixture
def repository(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "First")
    return tmp_path


def test_the_commit_is_that_of_the_repository_that_holds_the_package(repository, monkeypatch):
    module = repository / "lowbit" / "train" / "provenance.py"
    module.parent.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(module))
    commit = provenance.git_commit()
    assert commit is not None
    assert len(commit) == 40
    (repository / "file").write_text("2")
    assert provenance.git_commit() == commit + "+changes"


def test_a_package_installed_inside_another_repository_has_no_commit(repository, monkeypatch, tmp_path_factory):
    for place in (repository / ".venv" / "lib" / "lowbit", tmp_path_factory.mktemp("elsewhere") / "lowbit"):
        (place / "train").mkdir(parents=True)
        monkeypatch.setattr(provenance, "__file__", str(place / "train" / "provenance.py"))
        monkeypatch.delenv("LOWBIT_COMMIT", raising=False)
        assert provenance.git_commit() is None
        monkeypatch.setenv("LOWBIT_COMMIT", "0123abc")
        assert provenance.git_commit() == "0123abc"
