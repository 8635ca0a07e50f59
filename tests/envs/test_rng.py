import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.rng import hash_ints, hash_tensor, to_int64

words = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(words, min_size=1, max_size=4))
def test_the_tensor_form_equals_the_integer_form(values: list[int]) -> None:
    tensors = [torch.tensor([value]) for value in values]
    assert hash_tensor(*tensors).tolist() == [hash_ints(*values)]
    assert hash_tensor(*values).item() == hash_ints(*values)


@given(words, st.lists(words, min_size=2, max_size=9))
def test_broadcasting_hashes_every_element(first: int, row: list[int]) -> None:
    column = torch.tensor([[first], [1]])
    assert hash_tensor(column, torch.tensor(row)).tolist() == [
        [hash_ints(a, b) for b in row] for a in (first, 1)
    ]


@given(st.integers())
def test_integers_count_modulo_two_to_the_64(value: int) -> None:
    assert to_int64(value) % 2**64 == value % 2**64
    assert hash_ints(value) == hash_ints(to_int64(value))
    assert 0 <= hash_ints(value) < 2**63


def test_the_mixing_function_is_that_of_splitmix64() -> None:
    # The first outputs of SplitMix64 seeded with 1234567 (Vigna's reference implementation), without the last bit.
    reference = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    gamma = 0x9E3779B97F4A7C15
    assert [hash_ints(1234567 + k * gamma) for k in range(3)] == [value >> 1 for value in reference]


def test_draws_are_uniform_and_independent_of_neighbouring_coordinates() -> None:
    hashes = hash_tensor(torch.arange(200).unsqueeze(1), torch.arange(1000))
    counts = torch.bincount((hashes % 10).flatten(), minlength=10).double()
    chi_square = ((counts - 20_000) ** 2 / 20_000).sum()
    assert chi_square < 27.9  # the 99.9 % quantile with 9 degrees of freedom
    assert len(hashes.unique()) == hashes.numel()
    bits = (hashes.unsqueeze(-1) >> torch.arange(63)) & 1
    assert (bits.double().mean((0, 1)) - 0.5).abs().max() < 0.006  # 5 standard errors
    uniform = hashes.double() / 2**63
    for neighbour in (uniform.roll(1, 0), uniform.roll(1, 1)):
        assert torch.corrcoef(torch.stack([uniform.flatten(), neighbour.flatten()]))[0, 1].abs() < 0.012


def test_order_and_length_matter() -> None:
    assert len({hash_ints(), hash_ints(0), hash_ints(0, 0), hash_ints(0, 1), hash_ints(1, 0)}) == 5
