"""Checks which recorded values are reported as different."""

from vggexp.compare.differences import distinct


def test_each_part_has_its_differences(make_run, compare_json):
    names = [
        make_run("a0"),
        make_run("a1", 1, dirty=True, host="y"),
        make_run("b0", lr=0.2, versions={"torch": "2.13"}),
    ]
    assert compare_json(*names)["differences"] == {
        "configuration": {"optimizer.lr": {"A": [0.1, 0.1], "B": [0.2]}},
        "code": {
            "torch": {"A": ["2.14.1", "2.14.1"], "B": ["2.13"]},
            "dirty": {"A": [False, True], "B": [False]},
        },
        "machine": {"host": {"A": ["x", "y"], "B": ["x"]}},
        "data": {},
    }


def test_distinct_values_need_not_be_hashable():
    assert distinct([[1], 2, [1], {"a": 1}, 2, {"a": 1}]) == [[1], 2, {"a": 1}]
