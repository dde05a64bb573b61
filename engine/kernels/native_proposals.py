"""Scoring on a CPU by this project's own kernels, `proposals.cpp`, compiled for the processor that runs them.

Knows the functions' arguments and what tensors they take. `library` finds or compiles them, `proposals` checks them and
decides when they are called. docs/adr/020 gives their reasons.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

_Pointer, _Integer, _Threads = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int

PARTIAL = 4
"""Floats of a `Partial` of `proposals.cpp`."""

MOST_LANES = 16
"""Floats of the widest vectors."""

MAX_VOCAB = 2**31 - 2**12
"""Token ids are int32 there."""


class Kernel:
    """The functions of a shared library. Raises OSError if that cannot be loaded.

    All tensors are float32 on the CPU, all ids int64; logits [rows, vocab] and hidden [rows, dim] need only be
    contiguous within a row. No result depends on the number of threads or on other rows.
    """

    def __init__(self, path: Path) -> None:
        functions = ctypes.CDLL(str(path))
        logits = (_Pointer, *(_Integer,) * 3)
        self._parts_of, self._room_of = functions.parts_of, functions.room_of
        self._partials_of_product = functions.partials_of_product
        self._best_tokens, self._token_log_odds = functions.best_tokens, functions.token_log_odds
        self._draws, self._product, self._propose = functions.draws, functions.product, functions.propose
        self._parts_of.argtypes, self._room_of.argtypes = (_Integer,), (_Integer,) * 3
        self._partials_of_product.argtypes = (_Integer,) * 2
        self._best_tokens.argtypes = (_Pointer, _Pointer, *logits, _Integer, _Pointer, _Threads)
        self._token_log_odds.argtypes = (_Pointer, _Pointer, *logits, _Pointer, _Threads)
        self._draws.argtypes = (*(_Pointer,) * 3, *logits, _Integer, *(_Pointer,) * 3, _Threads)
        product = (_Pointer, _Integer, _Integer, _Pointer, _Integer, _Integer)
        self._product.argtypes = (_Pointer, *product, _Pointer, _Threads)
        self._propose.argtypes = (_Pointer, _Pointer, *product, _Integer, _Pointer, _Pointer, _Threads)
        for sizes in (self._parts_of, self._room_of, self._partials_of_product):
            sizes.restype = _Integer
        for function in (self._best_tokens, self._token_log_odds, self._draws, self._product, self._propose):
            function.restype = None

    def best_token(self, logits: Tensor, mask_id: int | None) -> tuple[Tensor, Tensor]:
        """logits [rows, vocab] -> tokens and their log-odds, each [rows]."""
        tokens, log_odds = logits.new_empty(len(logits), dtype=torch.int64), logits.new_empty(len(logits))
        room = self._partials(logits)
        self._best_tokens(
            tokens.data_ptr(),
            log_odds.data_ptr(),
            *_rows(logits),
            _id(mask_id),
            room.data_ptr(),
            torch.get_num_threads(),
        )
        return tokens, log_odds

    def log_odds(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Log-odds [rows] of tokens [rows] under logits [rows, vocab]."""
        tokens, log_odds, room = tokens.contiguous(), logits.new_empty(len(logits)), self._partials(logits)
        self._token_log_odds(
            log_odds.data_ptr(), tokens.data_ptr(), *_rows(logits), room.data_ptr(), torch.get_num_threads()
        )
        return log_odds

    def draw(
        self, logits: Tensor, temperature: Tensor, states: Tensor, mask_id: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, their noisy logits and the next largest ones, each [rows].

        states [rows] are hashes of all that the noise depends on but the token.
        """
        tokens, best, second = torch.empty_like(states), torch.empty_like(temperature), torch.empty_like(temperature)
        pointers = (tokens.data_ptr(), best.data_ptr(), second.data_ptr())
        heat, states, room = temperature.contiguous(), states.contiguous(), self._partials(logits)
        of_rows = (heat.data_ptr(), states.data_ptr(), room.data_ptr())
        self._draws(*pointers, *_rows(logits), _id(mask_id), *of_rows, torch.get_num_threads())
        return tokens, best, second

    def product(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """hidden [rows, dim] weight [vocab, dim] -> logits [rows, vocab]."""
        logits, threads = hidden.new_empty(len(hidden), len(weight)), torch.get_num_threads()
        room = hidden.new_empty(self._room_of(*hidden.shape, threads))
        self._product(logits.data_ptr(), *_factors(hidden, weight), room.data_ptr(), threads)
        return logits

    def propose(self, hidden: Tensor, weight: Tensor, mask_id: int | None) -> tuple[Tensor, Tensor]:
        """`best_token` of `product`, whose logits are not written to memory. Sums differ in the last bits."""
        tokens, log_odds = hidden.new_empty(len(hidden), dtype=torch.int64), hidden.new_empty(len(hidden))
        threads, factors = torch.get_num_threads(), _factors(hidden, weight)
        room = hidden.new_empty(self._room_of(*hidden.shape, threads))
        partials = hidden.new_empty(self._partials_of_product(len(hidden), len(weight)), MOST_LANES * PARTIAL)
        pointers = (room.data_ptr(), partials.data_ptr())
        self._propose(tokens.data_ptr(), log_odds.data_ptr(), *factors, _id(mask_id), *pointers, threads)
        return tokens, log_odds

    def _partials(self, logits: Tensor) -> Tensor:
        rows, vocab = logits.shape
        return logits.new_empty(rows, self._parts_of(vocab), PARTIAL)


def _id(mask_id: int | None) -> int:
    """As the kernels take it: one that no token has, where there is no mask."""
    return -1 if mask_id is None else mask_id


def takes(rows: Tensor) -> bool:
    """Whether the kernels take logits or hidden rows: float32 on a CPU, each row contiguous, and no gradient."""
    return (
        rows.device.type == "cpu"
        and rows.dtype == torch.float32
        and not torch.is_grad_enabled()
        and rows.stride(1) == 1
        and rows.shape[1] < MAX_VOCAB
    )


def _rows(logits: Tensor) -> tuple[int, int, int, int]:
    """The arguments of functions that read logits."""
    return logits.data_ptr(), logits.stride(0), *logits.shape


def _factors(hidden: Tensor, weight: Tensor) -> tuple[int, int, int, int, int, int]:
    """The arguments of functions that multiply."""
    return hidden.data_ptr(), hidden.stride(0), len(hidden), weight.data_ptr(), weight.shape[1], len(weight)
