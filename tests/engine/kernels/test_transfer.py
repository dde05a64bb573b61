"""Arrays of a step are packed into one copy, and come out as they were."""

import numpy as np
import torch

from engine.kernels.transfer import Upload, pack, starts_of, unpack

ARRAYS = [
    np.arange(7),
    np.array([[0.5, -np.inf], [1.0, np.nan]], np.float32),
    np.array([True, False, True]),
    np.empty((0, 3), np.int32),
    np.arange(24, dtype=np.int32).reshape(2, 3, 4)[:, ::2],
]


def check(tensors):
    for tensor, array in zip(tensors, ARRAYS, strict=True):
        assert tensor.numpy().dtype == array.dtype
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_arrays_of_any_dtype_and_order_survive_packing():
    starts = starts_of(ARRAYS)
    packed = torch.full((starts[-1],), 255, dtype=torch.uint8)
    pack(ARRAYS, starts, packed.numpy())
    assert all(start % 16 == 0 for start in starts)
    check(unpack(packed, starts, ARRAYS))


def test_an_upload_to_a_cpu_copies_nothing():
    upload = Upload(torch.device("cpu"))
    uploaded = [upload.add(array) for array in ARRAYS]
    upload.send()
    check([each.tensor for each in uploaded])
    assert uploaded[0].tensor.data_ptr() == ARRAYS[0].ctypes.data
