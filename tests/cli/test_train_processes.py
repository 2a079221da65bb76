"""How the command line says that it is one of several processes."""

import pytest

from lowbit.cli import train


@pytest.fixture
def connected(monkeypatch):
    """Records how `connect` was called; nothing trains."""
    calls = []
    monkeypatch.setattr(train, "connect", lambda *arguments: calls.append(arguments))
    return calls


def test_flags_become_a_connection(lowbit, train_arguments, connected, tmp_path):
    arguments = train_arguments(tmp_path / "run")
    for flags, call in (
        (["--distributed"], ()),
        (["--coordinator", "node0:1234", "--processes", "2", "--process-index", "1"], ("node0:1234", 2, 1)),
    ):
        # One token is too few for a step, which is noticed after the connection.
        assert lowbit(*arguments, *flags, "--config.train.tokens=1").status == 2
        assert connected.pop() == call
    assert lowbit(*arguments, "--distributed", "--config.no.key=1").status == 2
    assert connected == []  # a mistake in the config is found before anybody is waited for


@pytest.mark.parametrize("flags", [["--processes", "2"], ["--coordinator", "node0:1234", "--process-index", "0"]])
def test_half_of_an_address_is_refused(lowbit, train_arguments, connected, tmp_path, flags):
    done = lowbit(*train_arguments(tmp_path / "run"), *flags)
    assert done.status == 2
    assert "--coordinator, --processes and --process-index say together which process this is" in done.err
    assert connected == []
