"""Each error passes between processes unchanged: ranks send it by pickle."""

import pickle

import pytest

from vggexp import errors

CLASSES = [value for value in vars(errors).values() if isinstance(value, type)]
ARGUMENTS = {
    errors.ConfigError: ["a: wrong", "b: wrong"],
    errors.StoppedError: [15, "at epoch 1", "go on"],
    errors.WaitStoppedError: [15, "at epoch 1", "go on"],
}


@pytest.mark.parametrize("error_type", [x for x in CLASSES if issubclass(x, errors.VggexpError)])
def test_an_error_survives_pickle(error_type):
    error = error_type(*ARGUMENTS.get(error_type, ["a: wrong"]))
    error.signal = 2
    loaded = pickle.loads(pickle.dumps(error))
    assert type(loaded) is error_type
    assert str(loaded) == str(error)
    assert vars(loaded) == vars(error)
    assert loaded.exit_code == error.exit_code
