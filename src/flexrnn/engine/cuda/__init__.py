"""The CUDA engine: programs run by generated Triton, and by torch's products around it."""
