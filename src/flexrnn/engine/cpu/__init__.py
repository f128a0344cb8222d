"""The engine for CPUs: C++ that is generated, compiled at first use and kept on disk."""
