"""Checks the printed tables and notes, and the JSON object."""

from vggexp.compare.__main__ import main


def test_tables_and_notes(make_run, compare_json, capfd):
    names = [
        make_run("a0"),
        make_run("a1", 1, dirty=True),
        make_run("b0", lr=0.2, versions={"torch": "2.13"}),
    ]
    assert main(names) == 0
    lines = capfd.readouterr().out.splitlines()
    assert "| code          | dirty        | false  | A (1 of 2 runs), B |" in lines
    assert "the same in all runs: machine, data" in lines
    notes = compare_json(*names)["notes"]
    assert [note.split(":")[0] for note in notes] == ["note", "note"]
    assert lines[-2:] == notes


def test_several_pairs_have_holms_p(make_group, capfd):
    names = [name for setting in "abc" for name in make_group(setting, range(4))]
    assert main(names) == 0
    lines = capfd.readouterr().out.splitlines()
    headers = [line for line in lines if line.startswith("| pair ")]
    assert [header.rstrip(" |").endswith("| Holm's p") for header in headers] == [True, True]


def test_one_setting_has_nothing_to_test(make_run, capfd):
    assert main([make_run(f"a{seed}", seed, 150 + seed) for seed in range(2)]) == 0
    assert "One group of 2 runs that differ only in the seed" in capfd.readouterr().out


def test_json_has_no_infinity(make_run, capfd):
    assert main([make_run("a"), make_run("b", lr=float("inf")), "--json"]) == 0
    assert "Infinity" not in capfd.readouterr().out


def test_hashes_have_as_many_digits_as_in_the_name_of_a_run(make_run, capfd):
    names = [make_run("a"), make_run("b", commit="b" * 40)]
    with open("b/config.yaml", "a") as config:
        config.write(f"train: {{init_sha256: {'c' * 64}}}\n")
    assert main(names) == 0
    lines = capfd.readouterr().out.splitlines()
    cells = [line.split("|")[3].strip() for line in lines if line.startswith("| c")]
    assert {"b" * 8, "c" * 8} <= {*cells}
