"""Documents of a Hugging Face data set, streamed: nothing is stored but the tokens.

The `datasets` package reads it, which is asked for only where it is needed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from lowbit.errors import DataError


@dataclass(frozen=True)
class HubDataset:
    """One split of a data set.

    Attributes:
      name: "owner/name" on the hub, or a folder of data files as the hub has them.
      subset: its `config name`, None for the default.
      split: such as "train".
      revision: commit; None for a folder.
      field: the column that holds the text.
    """

    name: str
    subset: str | None
    split: str
    revision: str | None
    field: str

    @classmethod
    def at_commit(cls, name: str, *, subset: str | None, split: str, revision: str | None, field: str) -> "HubDataset":
        """Looks up which commit a branch or tag (None: the newest) means now, so that it can be read again later.

        Raises:
          DataError: `datasets` is missing, the hub cannot be reached, or has no such data set.
        """
        _datasets(name)
        return cls(name, subset, split, None if Path(name).is_dir() else _commit(name, revision), field)

    def size(self) -> int | None:
        """Bytes of the split's data as its card states them; None where it does not."""
        splits = self._open().info.splits or {}
        return splits[self.split].num_bytes or None if self.split in splits else None

    def identity(self) -> dict[str, Any]:
        """Returns name, subset, split, commit and field."""
        return {
            "dataset": self.name,
            "subset": self.subset,
            "split": self.split,
            "revision": self.revision,
            "field": self.field,
        }

    def documents(self, start: int) -> Iterator[tuple[str, int]]:
        """Yields (text, UTF-8 bytes of text so far) from row `start` on.

        Raises:
          DataError: the data set cannot be read, or a row has no string under `field`.
        """
        rows = self._open()
        behind = 0
        try:
            for number, row in enumerate(rows.skip(start), start=start):
                text = row.get(self.field)
                if not isinstance(text, str):
                    raise DataError(
                        f"{self.name}, row {number}: no string under {self.field!r}", "choose from " + ", ".join(row)
                    )
                behind += len(text.encode())
                yield text, behind
        except (OSError, ValueError, _datasets(self.name).exceptions.DatasetsError) as error:
            raise self._unreadable(error) from error

    def _open(self) -> Any:
        datasets = _datasets(self.name)
        try:
            return datasets.load_dataset(
                self.name, self.subset, split=self.split, revision=self.revision, streaming=True
            )
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> DataError:
        subset = "" if self.subset is None else f", subset {self.subset!r}"
        return DataError(
            f"the data set {self.name!r} (split {self.split!r}{subset}) cannot be read: {error}",
            "check split and subset on its page, or download its files and give their folder",
        )


def _datasets(name: str) -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"there is no file {name}, and the data set of that name is read by `datasets`, which is not installed",
            "check the path, or pip install 'lowbit[datasets]'",
        ) from error
    return datasets


def _commit(name: str, revision: str | None) -> str:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return str(huggingface_hub.HfApi().dataset_info(name, revision=revision).sha)
    except GatedRepoError as error:
        raise DataError(
            f"the hub does not let you read {name!r} yet",
            f"accept its terms at https://huggingface.co/datasets/{name} and log in with `hf auth login`",
        ) from error
    except RevisionNotFoundError as error:
        raise DataError(
            f"the data set {name!r} has no revision {revision!r}", "name a branch, tag or commit"
        ) from error
    except RepositoryNotFoundError as error:
        raise DataError(
            f"there is no file and no hub data set {name!r}", "check the spelling, or log in if it is private"
        ) from error
    except Exception as error:  # offline mode, or what the HTTP client raises without a network
        raise DataError(
            f"there is no file {name}, and the Hugging Face hub cannot be reached for the data set of that name",
            "connect to the network (HF_HUB_OFFLINE unset), or download its files and give their folder",
        ) from error
