"""GPU memory that other processes can open, through the CUDA driver and without Python packages of NVIDIA's.

As a program it allocates BYTES on GPU 0, prints the handle in base64, and holds the memory until its stdin ends.

    cuda_memory.py BYTES
"""

import base64
import ctypes
import sys

import numpy as np


class IpcHandle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_byte * 64)]


class Driver:
    """libcuda, with the primary context of GPU 0 as the thread's current one. RuntimeError says why there is none."""

    def __init__(self):
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise RuntimeError(f"no CUDA driver: {error}") from error
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)

    def call(self, name, *arguments):
        result = getattr(self._library, name)(*arguments)
        if result != 0:
            raise RuntimeError(f"{name} returned CUDA error {result}")


class CudaMemory:
    """One allocation. `handle` is what register_cuda_shared_memory takes."""

    def __init__(self, driver, byte_size):
        self._driver = driver
        self.byte_size = byte_size
        self._address = ctypes.c_uint64()
        driver.call("cuMemAlloc_v2", ctypes.byref(self._address), ctypes.c_size_t(byte_size))
        handle = IpcHandle()
        driver.call("cuIpcGetMemHandle", ctypes.byref(handle), self._address)
        self.handle = base64.b64encode(bytes(handle))

    def put(self, array, offset=0):
        array = np.ascontiguousarray(array)
        self._driver.call("cuMemcpyHtoD_v2", ctypes.c_uint64(self._address.value + offset),
                          ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes))

    def get(self, dtype, shape, offset=0):
        array = np.empty(shape, dtype)
        self._driver.call("cuMemcpyDtoH_v2", ctypes.c_void_p(array.ctypes.data),
                          ctypes.c_uint64(self._address.value + offset), ctypes.c_size_t(array.nbytes))
        return array

    def free(self):
        self._driver.call("cuMemFree_v2", self._address)


def main():
    memory = CudaMemory(Driver(), int(sys.argv[1]))
    print(memory.handle.decode(), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
