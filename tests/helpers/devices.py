"""Processes that see several devices on a machine that has one processor."""

import os


def with_devices(number):
    """Return the environment of such a process, which compiles as this one does."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={number}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
