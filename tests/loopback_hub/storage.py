"""What the loopback Hub keeps: repositories, their references and commits, and the files of each commit.

All of it lives in memory and goes with the process. A commit holds its whole tree, so that any revision can be read;
there are no deltas, no trees or blobs of git, and no merging: a pull request is a reference of its own.
"""

import hashlib
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from itertools import count
from pathlib import Path

ATTRIBUTES = (Path(__file__).parent / "gitattributes.txt").read_bytes()
_SERIAL = count()  # never starts again, so that no cache can take one test's commit for another's


@dataclass(frozen=True)
class File:
    """A file's bytes, and whether they stand in git or in large file storage."""

    content: bytes
    is_large: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """What git holds instead of a large file."""
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()
        )

    @cached_property
    def blob_id(self) -> str:
        """The name that git gives to what it holds."""
        held = self.pointer if self.is_large else self.content
        return hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()

    @property
    def etag(self) -> str:
        """What tells a client that the content has not changed."""
        return self.sha256 if self.is_large else self.blob_id


@dataclass(frozen=True)
class Commit:
    """One commit with its whole tree."""

    id: str
    parent: str | None
    title: str
    description: str
    author: str
    date: str  # in the one form that the client reads
    files: dict[str, File]


@dataclass
class Repository:
    """A model repository: commits by id, and references by their full name."""

    id: str
    private: bool = False
    references: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # large files that were sent, by sha256

    def __post_init__(self) -> None:
        """Begin as a repository of the Hub does, with a commit that says which files are large."""
        attributes = {".gitattributes": File(ATTRIBUTES, is_large=False)}
        self.commit("refs/heads/main", None, "initial commit", "", "system", attributes)

    def commit(
        self, reference: str, parent: str | None, title: str, description: str, author: str, files: dict[str, File]
    ) -> Commit:
        """Add a commit and let the reference stand on it."""
        tree = sorted((path, file.blob_id) for path, file in files.items())
        text = repr((next(_SERIAL), parent, title, description, author, tree))
        made = Commit(
            id=hashlib.sha1(text.encode()).hexdigest(),
            parent=parent,
            title=title,
            description=description,
            author=author,
            date=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            files=files,
        )
        self.commits[made.id] = made
        self.references[reference] = made.id
        return made

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag, a full reference, or (the beginning of) a commit's id names."""
        for prefix in ("refs/heads/", "refs/tags/", ""):
            if prefix + revision in self.references:
                return self.commits[self.references[prefix + revision]]
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            return next((made for id_, made in self.commits.items() if id_.startswith(revision)), None)
        return None

    def history(self, revision: str) -> list[Commit]:
        """The commits that lead to a revision, the newest first."""
        made = self.find(revision)
        found = []
        while made is not None:
            found.append(made)
            made = self.commits.get(made.parent or "")
        return found
