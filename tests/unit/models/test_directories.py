from __future__ import annotations

from pathlib import Path

import pytest

from codex_state.models import directories
from codex_state.models.columns import path_to_text
from codex_state.models.directories import normalized_cwd_text, spellings_of
from codex_state.rollout import normalize_cwd


class TestNormalizedDirectory:
    def test_links_and_dots_are_resolved(self, tmp_path: Path) -> None:
        real = tmp_path / "real"
        (real / "inner").mkdir(parents=True)
        (tmp_path / "link").symlink_to(real)
        assert normalize_cwd(tmp_path / "link" / "inner" / ".." / "inner") == (real / "inner").resolve()

    @pytest.mark.parametrize("cwd", ["/code-x/gone", "rel/dir", "~/proj", "nul\0", "/code-ünï/目录", "", "/a//b/./c/"])
    def test_what_is_not_there_stays_as_it_is_spelled(self, cwd: str) -> None:
        assert normalized_cwd_text(cwd) == cwd

    def test_two_leading_slashes_are_kept(self, tmp_path: Path) -> None:
        assert path_to_text(normalize_cwd(Path(f"/{tmp_path}"))) == f"/{tmp_path.resolve()}"
        assert path_to_text(normalize_cwd(Path(f"//{tmp_path}"))) == str(tmp_path.resolve())

    def test_windows_drives_have_one_spelling_under_wsl(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(directories, "_is_wsl", lambda: True)
        assert normalize_cwd(Path("/mnt/C/Users/Ä")) == Path("/mnt/c/users/Ä")
        assert normalize_cwd(Path("/home/Me")) == Path("/home/Me")


class TestSpellings:
    def test_a_directory_is_asked_for_as_it_is_given_and_without_its_links(self, tmp_path: Path) -> None:
        real = tmp_path.resolve() / "real"
        real.mkdir()
        link = tmp_path.resolve() / "link"
        link.symlink_to(real)
        assert spellings_of(f"{link}//gone/") == (f"{link}/gone", f"{real}/gone")
        assert spellings_of(str(link)) == (str(link), str(real))
        assert spellings_of(f"{real}/") == (str(real),)

    @pytest.mark.parametrize("directory", ["/code-x/gone", "C:\\code", "code", "~/code", "/nul\0", ""])
    def test_what_is_not_there_or_not_absolute_has_one_spelling(self, directory: str) -> None:
        assert spellings_of(directory) == (directory,)
