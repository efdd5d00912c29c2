"""Random bits: a cryptographic generator for releases, a reproducible one for tests and studies.

Noise is only as private as the bits behind it are unpredictable. The default is the ChaCha20
keystream of OpenSSL (through the ``cryptography`` package) under a fresh 256-bit key from the
operating system: additions and rotations alone, fast on every processor and without memory
accesses that depend on the key. Every release draws from a fresh key, and so does a process that
was forked with a generator: it never repeats its parent's noise.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

__all__ = ["BitGenerator", "insecure_test_generator", "secure_generator"]

# The block counter of ChaCha20 has 32 bits: 256 GiB under one key. Well before that comes the next.
_WORDS_PER_KEY: Final = 2**30
# What the keystream is added to, kept for calls of usual size.
_ZEROS: Final = bytes(8 * 2**14)


class BitGenerator:
    """A stream of random 64-bit words.

    Made by :func:`secure_generator` or :func:`insecure_test_generator`, never directly.

    Attributes
    ----------
    secure : bool
        True where the key came from the operating system and is known to nobody.
    name : str
        What certificates call the generator.
    """

    def __init__(self, key: bytes, *, secure: bool, name: str) -> None:
        self.secure: Final = secure
        self.name: Final = name
        self._first_key = key
        self._use_key(key)

    def _use_key(self, key: bytes) -> None:
        self._key = key
        self._keystream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
        self._words_left = _WORDS_PER_KEY
        self._process = os.getpid()

    def words(self, count: int) -> NDArray[np.uint64]:
        """Give the next words of the stream.

        Parameters
        ----------
        count : int
            How many words, 0 to 2**30.

        Returns
        -------
        ndarray of uint64, shape (count,)
        """
        if not 0 <= count <= _WORDS_PER_KEY:
            raise ValueError(f"count is {count}; one call gives 0 to {_WORDS_PER_KEY} words")
        forked = self.secure and self._process != os.getpid()
        if count > self._words_left or forked:
            self._use_key(
                secrets.token_bytes(32) if self.secure else hashlib.sha256(self._key).digest()
            )
        self._words_left -= count
        size = 8 * count
        zeros = memoryview(_ZEROS)[:size] if size <= len(_ZEROS) else bytes(size)
        stream = self._keystream.update(zeros)
        return np.frombuffer(stream, dtype="<u8").astype(np.uint64, copy=False)

    def spawn(self, index: int) -> BitGenerator:
        """Make a generator of its own for one of several draws.

        Parameters
        ----------
        index : int
            Number of the draw. A test generator's child depends on its seed and the index alone,
            so that a run which resumes in the middle repeats the bits of one that did not; a
            secure generator's child has a fresh key and nothing in common with any other.

        Returns
        -------
        BitGenerator
        """
        if self.secure:
            return secure_generator()
        key = hashlib.sha256(self._first_key + f" draw {int(index)}".encode()).digest()
        return BitGenerator(key, secure=False, name=self.name)

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a bit generator cannot be copied or pickled: its words would repeat")


def secure_generator() -> BitGenerator:
    """Make a generator keyed by the operating system, the default for releases.

    Returns
    -------
    BitGenerator
        With ``secure`` true.
    """
    return BitGenerator(secrets.token_bytes(32), secure=True, name="ChaCha20, operating-system key")


def insecure_test_generator(seed: int) -> BitGenerator:
    """Make a reproducible generator. What it helps to release is **not private**.

    Whoever knows or guesses the seed can subtract the noise. Use it for tests and for studies on
    public data; the release records ``generator_is_secure=False``.

    Parameters
    ----------
    seed : int
        Any integer of at least 0. The same seed gives the same words on every platform.

    Returns
    -------
    BitGenerator
        With ``secure`` false.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed is {seed!r}; it needs an integer of at least 0")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it needs an integer of at least 0")
    key = hashlib.sha256(f"qexp insecure test generator {int(seed)}".encode()).digest()
    return BitGenerator(key, secure=False, name=f"ChaCha20, insecure test key of seed {int(seed)}")
