"""The order in which jobs that wait for a host are called."""

from quart_upsun.fetching import Turns


async def test_a_line_serves_priorities_first_and_owners_in_turn() -> None:
    turns = Turns()
    for job in (1, 2, 3):
        turns.line_up("site.example", job, priority=-10, owner=1)
    turns.line_up("site.example", 4, priority=-10, owner=2)
    turns.line_up("site.example", 5, priority=10, owner=1)
    turns.line_up("site.example", 2, priority=-10, owner=1)  # waits already
    order = [turns.next_in_line("site.example") for _ in range(6)]
    assert order == [5, 1, 4, 2, 3, None]
