"""Undo and redo of edits on the page: a new edit after an undo is the end of what could be done again."""

from __future__ import annotations

from browsing import browser, opened  # noqa: F401 (a fixture)

ROWS = ".experts .row:not(.head)"


def test_a_new_edit_after_an_undo_cannot_be_redone_away(browser, running):  # noqa: F811
    with opened(browser, running.url + "#/expert/0/9") as watched:
        page = watched.page
        page.wait_for_selector(ROWS)
        undo, redo = (page.get_by_role("button", name=name, exact=True) for name in ("Undo", "Redo"))

        def add(text: str) -> None:
            page.get_by_label("As for mumoe edit --do").fill(text)
            page.get_by_role("button", name="Add", exact=True).click()
            watched.still()

        def shown() -> list[str]:
            texts = ("Ablate expert 9", "Swap experts 1 and 2", "Swap experts 3 and 4", "Swap experts 5 and 6")
            return [text for text in texts if page.get_by_text(text).first.is_visible()]

        watched.still()
        page.get_by_text("Write an edit").click()
        assert undo.is_disabled()
        assert redo.is_disabled()
        add("ablate:9")
        add("swap:1=2")
        assert shown() == ["Ablate expert 9", "Swap experts 1 and 2"]
        add("swap:5=6")
        for _ in range(2):
            undo.click()
            watched.still()
        assert shown() == ["Ablate expert 9"]
        assert redo.is_enabled()
        add("swap:3=4")
        assert shown() == ["Ablate expert 9", "Swap experts 3 and 4"]
        assert redo.is_disabled()
        page.locator("h2", has_text="Edits").click()
        page.keyboard.press("Control+Shift+Z")
        watched.still()
        assert shown() == ["Ablate expert 9", "Swap experts 3 and 4"]
        for left in (["Ablate expert 9"], []):
            undo.click()
            watched.still()
            assert shown() == left
        assert undo.is_disabled()
        for back in (["Ablate expert 9"], ["Ablate expert 9", "Swap experts 3 and 4"]):
            redo.click()
            watched.still()
            assert shown() == back
        assert redo.is_disabled()
