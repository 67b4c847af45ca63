"""The update rule in C++, for CPUs: sources, build, one caller per backend."""
