"""Progress of several parts as progress of the whole."""

from udean.runtime.system.progress import in_turn


def test_parts_count_on_where_those_before_them_ended():
    said = []
    for part in in_turn(lambda done, every: said.append((done, every)), (2, 1, 3)):
        part(1, 99)
    assert said == [(1, 6), (3, 6), (4, 6)]
    assert in_turn(None, (2, 1)) == [None, None]
