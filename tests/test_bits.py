import copy
import os
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from qexp import bits


def test_words_are_the_chacha20_keystream():
    # RFC 8439, appendix A.1, test vector 1: key, nonce and counter zero.
    generator = bits.BitGenerator(bytes(32), secure=False, name="test")
    assert generator.words(1).astype("<u8").tobytes() == bytes.fromhex("76b8e0ada0f13d90")
    whole = Cipher(algorithms.ChaCha20(bytes(32), bytes(16)), mode=None).encryptor()
    stream = np.frombuffer(whole.update(bytes(8 * 1001)), dtype="<u8")
    assert np.array_equal(generator.words(1000), stream[1:])


def test_a_seed_gives_the_same_words_on_every_platform():
    words = bits.insecure_test_generator(7).words(3)
    assert words.tolist() == [0x93605908D42E77A7, 0x4690ACE4369E646B, 0xBCCBF8D3C3821EC8]
    assert words.dtype == np.uint64
    assert not np.array_equal(words, bits.insecure_test_generator(8).words(3))


def test_secure_generators_never_repeat_each_other():
    assert not np.array_equal(bits.secure_generator().words(4), bits.secure_generator().words(4))


def test_a_new_key_comes_before_the_block_counter_ends(monkeypatch):
    monkeypatch.setattr(bits, "_WORDS_PER_KEY", 10)
    for make in (bits.secure_generator, lambda: bits.insecure_test_generator(1)):
        generator = make()
        words = np.concatenate([generator.words(6) for _ in range(5)])
        assert len(set(words.tolist())) == 30
    with pytest.raises(ValueError, match="one call gives 0 to 10 words"):
        generator.words(11)


def test_generators_say_whether_they_are_secure():
    assert bits.secure_generator().secure
    generator = bits.insecure_test_generator(3)
    assert not generator.secure
    assert "insecure" in generator.name


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_generators_cannot_be_copied(duplicate):
    with pytest.raises(TypeError, match="would repeat"):
        duplicate(bits.insecure_test_generator(1))


@pytest.mark.parametrize(
    ("seed", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError), (None, TypeError)]
)
def test_bad_seeds(seed, error):
    with pytest.raises(error, match="integer of at least 0"):
        bits.insecure_test_generator(seed)


def test_children_of_a_test_generator_depend_on_seed_and_index_alone():
    parent = bits.insecure_test_generator(5)
    first = parent.spawn(0).words(4)
    parent.words(100)
    assert np.array_equal(parent.spawn(0).words(4), first)
    assert not np.array_equal(parent.spawn(1).words(4), first)
    assert not parent.spawn(1).secure


def test_children_of_a_secure_generator_share_nothing():
    parent = bits.secure_generator()
    assert parent.spawn(0).secure
    assert not np.array_equal(parent.spawn(0).words(4), parent.spawn(0).words(4))


def in_a_fork(function):
    """Give what a forked process gets, as bytes."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.write(writing, function())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        got = pipe.read()
    os.waitpid(process, 0)
    return got


def test_a_forked_process_never_repeats_its_parents_words():
    generator = bits.secure_generator()
    generator.words(3)
    one, other = (in_a_fork(lambda: generator.words(4).tobytes()) for _ in range(2))
    assert len({one, other, generator.words(4).tobytes()}) == 3


def test_a_forked_test_generator_goes_on():
    generator = bits.insecure_test_generator(1)
    generator.words(3)
    assert in_a_fork(lambda: generator.words(4).tobytes()) == generator.words(4).tobytes()
