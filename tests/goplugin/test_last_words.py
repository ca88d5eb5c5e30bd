"""What an error quotes of a plugin's standard error."""

from hybridload.goplugin.last_words import LINES, LastWords


def after(*lines: str) -> tuple[str, ...]:
    words = LastWords()
    for line in lines:
        words.add(line)
    return words.lines()


def test_the_last_lines_are_kept() -> None:
    assert after() == ()
    assert after("one", "two") == ("one", "two")
    assert after(*(str(n) for n in range(100))) == tuple(str(n) for n in range(100 - LINES, 100))


def test_a_long_line_is_cut() -> None:
    [line] = after("x" * 1_000_000)
    assert len(line) < 2000


def test_a_panic_is_not_driven_out_by_the_goroutines_that_follow_it() -> None:
    said = after("before", "panic: boom", *(f"goroutine {n}" for n in range(500)))
    assert said[:2] == ("panic: boom", "goroutine 0")
    assert said[-1] == "goroutine 499"
    assert len(said) <= LINES + 6


def test_a_short_panic_is_quoted_with_what_came_before_it() -> None:
    assert after("before", "fatal error: all goroutines are asleep", "x") == (
        "before",
        "fatal error: all goroutines are asleep",
        "x",
    )


def test_nothing_is_quoted_twice() -> None:
    for total in range(LINES - 2, LINES + 12):
        said = after("panic: boom", *(str(n) for n in range(total)))
        quoted = [line for line in said if line != "..."]
        assert len(quoted) == len(set(quoted))
