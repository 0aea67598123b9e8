"""The contract of a storage backend, as checks that any backend can be put through.

    import asyncio
    from osqueue_storage.contract import verify_backend

    report = asyncio.run(verify_backend(lambda: MyBackend("a-store-for-tests")))
    print(report)

A check takes a factory. It is called several times and must give instances that share one store, as the
brokers and workers of one queue do; each check closes what it opened. No test runner is needed; with pytest,
parametrize over `CONTRACT`. The checks write, overwrite and delete keys below `contract/`, about 40 MB in all,
and may be run again on the same store. Writes of one object are `min_write_interval` apart, save in the races, where
a write may also end as unknown.

`PROCESS_CONTRACT` has writers in several processes, one of which is killed; its factory must be one that pickle
can send there, such as `functools.partial(open_storage, url)`. `FAULT_CONTRACT` needs a store that fails on
command. From the command line, `python -m osqueue_storage.contract URL` runs all but the latter.
"""

from .checks import CONTRACT
from .faults import FAULT_CONTRACT, FaultCheck, FaultInjector, WriteFault, verify_faults
from .processes import PROCESS_CONTRACT
from .report import ContractReport, verify_backend
from .steps import Check, ContractViolation, Factory, Races

__all__ = [
    "CONTRACT",
    "FAULT_CONTRACT",
    "PROCESS_CONTRACT",
    "Check",
    "ContractReport",
    "ContractViolation",
    "Factory",
    "FaultCheck",
    "FaultInjector",
    "Races",
    "WriteFault",
    "verify_backend",
    "verify_faults",
]
