"""What the product asks of PyCUDA."""

#: Names of `pycuda.driver` 2026.1, and of its classes' members, that the product uses.
PYCUDA = {
    "Device": {"retain_primary_context"},
    "Context": {"push", "pop", "detach", "synchronize", "handle"},
    "Stream": {"wait_for_event", "synchronize", "handle"},
    "Event": {"record", "synchronize", "time_since"},
    "Module": {"get_function"},
    "Function": {"_launch_kernel"},
    "PagelockedHostAllocation": {"get_device_pointer"},
    "event_flags": {"DEFAULT", "DISABLE_TIMING"},
    "host_alloc_flags": {"PORTABLE", "DEVICEMAP"},
    "Error": set(),
    "init": set(),
    "mem_alloc": set(),
    "memcpy_dtod_async": set(),
    "memcpy_dtoh_async": set(),
    "memcpy_htod_async": set(),
    "memset_d8_async": set(),
    "module_from_buffer": set(),
    "pagelocked_empty": set(),
}
