"""The engine side: programs that run in a worker of vLLM."""
