"""Everything that depends on the hardware: devices, determinism, timing, memory and faster layers."""
