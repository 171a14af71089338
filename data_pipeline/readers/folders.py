"""Shards that are folders, where a record is a small file and there are millions."""

from collections.abc import Sequence


class FolderShards:
    """Mixin before a `FileReader`: a shard is a folder with those files in it that the split's pattern names."""

    def __init__(self, *args, **keys):
        super().__init__(*args, **keys)
        self._folders = {}
        for address in self._files:
            folder, _, name = address.rpartition("/")
            self._folders.setdefault(folder or ".", []).append(name)
            self._shares.setdefault(folder or ".", self._shares[address])

    def shards(self) -> Sequence[str]:
        return tuple(self._folders)
