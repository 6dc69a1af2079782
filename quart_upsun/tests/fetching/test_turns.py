"""The order of the jobs in a host's waiting line."""

from quart_upsun.fetching import Turns


async def test_waiting_line_orders_by_priority_and_round_robin_by_owner() -> None:
    turns = Turns()
    for job in (1, 2, 3):
        turns.line_up("site.example", job, priority=-10, owner=1)
    turns.line_up("site.example", 4, priority=-10, owner=2)
    turns.line_up("site.example", 5, priority=10, owner=1)
    turns.line_up("site.example", 2, priority=-10, owner=1)  # already in the line
    order = [turns.next_in_line("site.example") for _ in range(6)]
    assert order == [5, 1, 4, 2, 3, None]
