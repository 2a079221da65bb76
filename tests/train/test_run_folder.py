"""The run folder appears whole or not at all, and says what to do with one that holds no run."""

import pytest

from lowbit.config import base
from lowbit.errors import RunFolderError
from lowbit.llama import LlamaConfig
from lowbit.train import run_folder
from lowbit.train.run_folder import RunFolder

CFG = LlamaConfig(64, 32, 64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)


def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "runs" / "a")
    write = run_folder.write_atomically

    def stop_at_the_config(path, content):
        if path.parent.name != "model":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(run_folder, "write_atomically", stop_at_the_config)
    with pytest.raises(KeyboardInterrupt):
        folder.create(base(), CFG, {"tokenizer.json": b"{}"})
    monkeypatch.setattr(run_folder, "write_atomically", write)
    assert list((tmp_path / "runs").iterdir()) == []
    folder.check(resume=False)
    folder.create(base(), CFG, {"tokenizer.json": b"{}"})
    folder.check(resume=True)
    config, cfg, files = folder.read()
    assert (config.to_dict(), cfg, files) == (base().to_dict(), CFG, {"tokenizer.json": b"{}"})
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"]
    with pytest.raises(RunFolderError, match="cannot be written"):
        folder.create(base(), CFG, {})


def test_a_folder_without_a_run_goes_in_no_circle(tmp_path):
    (tmp_path / "a").mkdir()
    folder = RunFolder(tmp_path / "a")
    with pytest.raises(RunFolderError, match=r"exists, and holds no run\n  -> remove the folder, or choose another"):
        folder.check(resume=False)
    with pytest.raises(RunFolderError, match=r"no run to resume\n  -> remove the folder and start without resuming"):
        folder.check(resume=True)
    with pytest.raises(RunFolderError, match=r"no run to resume\n  -> start without resuming"):
        RunFolder(tmp_path / "b").check(resume=True)
