"""The queue as a pure state machine: no I/O, no clock, no chance, no logging, no asyncio.

`apply(state, batch, now)` is the whole of it; the same batch on the same state gives the same bytes.
"""
