"""Requests decoded by vLLM: the client of the worker that `backends/vllm/` brings.

In: `Request`s, a family, a view of the checkpoint's language half. Out: tokens. vLLM lives in an
environment of its own, in a worker process that reads feature files itself; ids, positions, keys
and retries stay here.
"""
