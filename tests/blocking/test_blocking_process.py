"""What a blocking store does when its process forks, ends, or is interrupted: programs in processes of their own."""

from __future__ import annotations

import os

import pytest
from blocking_store import opening, program


def contents(path):
    with opening(path) as store:
        return {id: bytes(store.get(id)) for id in list(store.ids())}


def test_a_program_that_ends_without_closing_keeps_what_it_made(tmp_path):
    done = program(
        """
store = dstorage.blocking.open(sys.argv[1], commit_interval=None)
store.create(b"bytes")
store.create(b"scratch", durable=False)
""",
        tmp_path / "store",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert contents(tmp_path / "store") == {1: b"bytes", 2: b"scratch"}


@pytest.mark.parametrize(("end", "code"), [("sys.exit(3)", 3), ("raise LookupError", 1)])
def test_a_program_that_fails_keeps_what_it_made(tmp_path, end, code):
    done = program(
        f"""
store = dstorage.blocking.open(sys.argv[1], commit_interval=None)
store.create(b"bytes")
{end}
""",
        tmp_path / "store",
    )
    assert done.returncode == code
    assert contents(tmp_path / "store") == {1: b"bytes"}


def test_what_cannot_be_committed_at_the_end_is_reported(tmp_path):
    done = program(
        """
controller = MemoryController()
store = dstorage.blocking.open(sys.argv[1], commit_interval=None, controllers=[controller])
store.create(b"bytes")
controller.unavailable = True
""",
        tmp_path / "store",
    )
    assert "TemporarilyUnavailable" in done.stderr


def test_an_interrupt_at_the_end_gives_up_one_store_and_not_the_others(tmp_path):
    done = program(
        """
other = dstorage.blocking.open(sys.argv[1], commit_interval=None)
other.create(b"bytes")
controller = MemoryController()
store = dstorage.blocking.open(sys.argv[1] + "2", commit_interval=None, controllers=[controller])
store.create(b"bytes")
controller.write_gate = Gate()
interrupt_at(controller.write_gate.reached)
""",
        tmp_path / "store",
    )
    assert done.returncode == 0
    assert done.stderr.count("KeyboardInterrupt") == 1
    assert contents(tmp_path / "store") == {1: b"bytes"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_child_is_refused_and_the_parent_is_not_disturbed(tmp_path):
    done = program(
        """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of any fork beside threads
store = dstorage.blocking.open(sys.argv[1], commit_interval=None)
handle = store.create(b"bytes")
child = os.fork()
if not child:
    for call in (handle.get, store.commit, store.stats, lambda: store.create(b"x"), lambda: handle.resolve(print)):
        try:
            call()
        except dstorage.ClosedError as error:
            print(error)
    store.close()
    with dstorage.blocking.open(sys.argv[1] + "2") as own:
        print(bytes(own.create(b"own").get()))
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print(bytes(handle.get()), store.create(b"more").id)
""",
        tmp_path / "store",
    )
    assert (done.returncode, done.stderr) == (0, "")
    *refused, own, parent = done.stdout.splitlines()
    assert len(refused) == 5
    assert all("opened by the parent process" in line and "must open its own" in line for line in refused)
    assert (own, parent) == ("b'own'", "b'bytes' 2")
    assert contents(tmp_path / "store") == {1: b"bytes", 2: b"more"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_child_may_read_the_same_store_and_leaves_nothing_behind_in_it(tmp_path):
    done = program(
        """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
store = dstorage.blocking.open(sys.argv[1], commit_interval=None)
handle = store.create(b"bytes")
store.commit()
child = os.fork()
if not child:
    print(bytes(dstorage.blocking.open(sys.argv[1], read_only=True).get(handle.id)), flush=True)
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
for _ in range(100):
    handle.replace(b"other")
    store.commit()
print(os.path.getsize(os.path.join(sys.argv[1], "catalog", "data.mdb")) < 2**17)
""",
        tmp_path / "store",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["b'bytes'", "True"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_child_is_told_when_it_cannot_read_the_same_store(tmp_path):
    done = program(
        """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
store = dstorage.blocking.open(sys.argv[1])
reading = store.inner._catalog._env.begin()  # As a thread that looks something up.
child = os.fork()
if not child:
    try:
        dstorage.blocking.open(sys.argv[1], read_only=True)
    except dstorage.UsageError as error:
        print(error, flush=True)
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
""",
        tmp_path / "store",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "fork again, or start processes by spawn" in done.stdout


INTERRUPTED = """
controller = MemoryController()
store = dstorage.blocking.open(sys.argv[1], commit_interval=None, controllers=[controller], budget=10_000)
handle = store.create(b"x" * 100)
store.commit()
store.set_budget(1)
store.set_budget(10_000)
controller.gate = Gate()
interrupt_at(controller.gate.reached)
try:
    CALL
except KeyboardInterrupt:
    print("interrupted")
store.call(controller.gate.open)
print(bytes(handle.get())[:1], store.info(1).refs)
store.close()
"""


@pytest.mark.parametrize(
    "call",
    [
        "handle.get()",
        "handle.get(wait=60)",
        "store.resolve_all([1])",
        "handle.edit().__enter__()",
        "list(store.resolve_each([1]))",
        "store.wait([1])",
    ],
)
def test_an_interrupt_breaks_a_wait_and_the_store_goes_on(tmp_path, call):
    done = program(INTERRUPTED.replace("CALL", call), tmp_path / "store")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["interrupted", "b'x' 0"]


def test_an_interrupted_commit_goes_on(tmp_path):
    done = program(
        """
controller = MemoryController()
store = dstorage.blocking.open(sys.argv[1], commit_interval=None, controllers=[controller])
store.create(b"bytes")
controller.write_gate = Gate()
interrupt_at(controller.write_gate.reached)
try:
    store.commit()
except KeyboardInterrupt:
    print("interrupted")
async def release():
    await controller.write_gate.open()
    while not store.inner.stats().commits:
        await asyncio.sleep(0.001)
store.call(release)
print(store.stats().commits)
""",
        tmp_path / "store",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["interrupted", "1"]


def test_a_signals_handler_may_close_what_is_being_closed(tmp_path):
    done = program(
        """
controller = MemoryController()
store = dstorage.blocking.open(sys.argv[1], commit_interval=None, controllers=[controller])
store.create(b"bytes")
controller.write_gate = gate = Gate()
def close(*_):
    store.loop.post(gate.event.set)
    store.close()
    print("by the handler")
signal.signal(signal.SIGINT, close)
interrupt_at(gate.reached)
store.close()
print("closed")
""",
        tmp_path / "store",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["by the handler", "closed"]


def test_an_interrupt_while_opening_leaves_the_store_free(tmp_path):
    done = program(
        """
reached = threading.Event()
class Slow(MemoryController):
    async def open(self, context):
        reached.set()
        await asyncio.sleep(0.2)
        await super().open(context)
interrupt_at(reached)
try:
    dstorage.blocking.open(sys.argv[1], controllers=[Slow()])
except KeyboardInterrupt:
    print("interrupted")
while True:
    try:
        dstorage.blocking.open(sys.argv[1], controllers=[MemoryController()]).close()
    except dstorage.StoreLocked:
        time.sleep(0.01)
    else:
        break
print([thread.name for thread in threading.enumerate() if thread.name.startswith("dstorage")])
""",
        tmp_path / "store",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["interrupted", "[]"]


def test_a_stream_of_interrupts_never_hangs_a_call(tmp_path):
    """Wherever an interrupt strikes, later calls are answered: the loop is always woken."""
    done = program(
        """
store = dstorage.blocking.open(sys.argv[1], controllers=[MemoryController()], commit_interval=None)
ended = threading.Event()
armed = False
def interrupted(*_):
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt
signal.signal(signal.SIGINT, interrupted)
def interrupt():
    for _ in range(300):
        time.sleep(0.0005)
        os.kill(os.getpid(), signal.SIGINT)
    ended.set()
threading.Thread(target=interrupt).start()
count = 0
while not ended.is_set():
    try:
        armed = True
        store.get_name(b"name")
        armed = False
    except KeyboardInterrupt:
        count += 1
worker = threading.Thread(target=store.stats)
worker.start()
worker.join(20)
print(count > 0, worker.is_alive())
""",
        tmp_path / "store",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == "True False"


def test_it_works_without_uvloop(tmp_path):
    done = program(
        """
sys.modules["uvloop"] = None
with dstorage.blocking.open(sys.argv[1]) as store:
    print(type(store.loop.loop).__module__.partition(".")[0], bytes(store.create(b"bytes").get()))
""",
        tmp_path / "store",
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "asyncio b'bytes'\n")
