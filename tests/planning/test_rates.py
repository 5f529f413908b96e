import numpy as np

from fedmt_flower.planning.rates import RateTable, states


def test_a_state_is_a_number_whose_digits_are_the_settings() -> None:
    digits = states(3, 2)
    table = RateTable(choices=2, rates=np.zeros((27, 3)))
    assert digits.shape == (27, 3)
    assert len(np.unique(digits, axis=0)) == 27
    for state, row in enumerate(digits):
        assert row @ table.weights == state
    choice = np.array([1, 0, 1])
    assert (digits[table.steps(choice).sum()] == choice + 1).all()


def test_the_fastest_rates_are_the_highest_of_each_set() -> None:
    digits = states(3, 2)
    rates = np.where(digits > 0, np.random.default_rng(0).random(digits.shape), 0.0)
    fastest = RateTable(choices=2, rates=rates).fastest()
    for number in range(8):
        members = number >> np.arange(3) & 1
        same = ((digits > 0) == members).all(axis=1)
        assert (fastest[number] == rates[same].max(axis=0)).all()
