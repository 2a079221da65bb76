"""What the kernels of this machine are worth: timings against memory's bandwidth, numpy and other engines."""
