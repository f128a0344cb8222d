"""The CUDA engine: programs run by generated Triton."""
