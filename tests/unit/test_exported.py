"""The public names of macluster."""

import macluster


def test_all_is_sorted_and_has_no_name_twice() -> None:
    assert list(macluster.__all__) == sorted(set(macluster.__all__))


def test_every_public_name_resolves() -> None:
    missing = [name for name in macluster.__all__ if not hasattr(macluster, name)]
    assert missing == []


def test_dir_shows_the_public_names() -> None:
    # Names that are loaded late would be missing from tab completion.
    assert set(macluster.__all__) <= set(dir(macluster))
