"""Updates reach event loops with few wake-ups, in order, and tell when nobody is there."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest

from radixbackend.engine.channel import AtOnce, Deadline, Mailboxes
from radixbackend.engine.request import ConsumerGone, Update
from radixbackend.errors import RequestTimeoutError

NEVER = Deadline(None)


def update(number: int, *, last: bool = False) -> Update:
    """The request is not looked at, so a number does."""
    return Update(number, last=last)  # type: ignore[arg-type]


@pytest.mark.asyncio
async def test_a_step_for_many_tasks_is_one_wake_up(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    boxes = Mailboxes()
    channels = [boxes.channel() for _ in range(20)]
    calls: list[Any] = []
    plain = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: (calls.append(args), plain(*args)))

    def step() -> None:
        for number, channel in enumerate(channels):
            channel.put(update(number))

    for _ in range(3):
        calls.clear()
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()  # the event loop cannot run meanwhile
        assert len(calls) == 1
        got = [(await channel.get(NEVER)).request for channel in channels]
        assert got == list(range(20))
        await asyncio.sleep(0)  # the wake-up, for nothing now


@pytest.mark.asyncio
async def test_order_is_kept_under_a_race() -> None:
    channel = Mailboxes().channel()
    thread = threading.Thread(target=lambda: [channel.put(update(i)) for i in range(5000)])
    thread.start()
    got = [(await channel.get(Deadline(10))).request for _ in range(5000)]
    thread.join()
    assert got == list(range(5000))


def test_each_event_loop_gets_its_own() -> None:
    boxes = Mailboxes()

    async def run(number: int) -> Any:
        channel = boxes.channel()
        threading.Thread(target=channel.put, args=(update(number),)).start()
        return (await channel.get(Deadline(10))).request

    assert [asyncio.run(run(number)) for number in (1, 2)] == [1, 2]


def test_a_closed_event_loop_is_told_and_let_go() -> None:
    boxes = Mailboxes()

    async def make() -> Any:
        return boxes.channel(), weakref.ref(asyncio.get_running_loop())

    channel, loop = asyncio.run(make())
    with pytest.raises(ConsumerGone):
        channel.put(update(1))
    gc.collect()
    assert loop() is None
    with pytest.raises(ConsumerGone):
        channel.put(update(2))


def test_updates_posted_but_never_read_do_not_hide_a_closed_loop() -> None:
    boxes = Mailboxes()

    async def make() -> Any:
        channel = boxes.channel()
        channel.put(update(0))
        return channel

    channel = asyncio.run(make())
    with pytest.raises(ConsumerGone):
        channel.put(update(1))


def test_what_is_kept_back_comes_in_order_with_the_last() -> None:
    got: list[Any] = []
    kept = AtOnce(got.append)
    for number in range(3):
        kept.put(update(number))
        assert got == []
    kept.put(update(3, last=True))
    assert [[u.request for u in updates] for updates in got] == [[0, 1, 2, 3]]


@pytest.mark.asyncio
async def test_what_is_there_already_is_got_without_a_turn_of_the_loop() -> None:
    channel = Mailboxes().channel()
    turns: list[int] = []
    channel.put(update(1))
    channel.put(update(2))
    asyncio.get_running_loop().call_soon(turns.append, 1)
    assert [(await channel.get(NEVER)).request for _ in range(2)] == [1, 2]
    assert turns == []


@pytest.mark.asyncio
async def test_a_late_wake_up_does_not_end_the_next_wait() -> None:
    channel = Mailboxes().channel()
    channel.put(update(1))
    await channel.get(NEVER)  # its wake-up is still to come
    waiting = asyncio.create_task(channel.get(NEVER))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    channel.put(update(2))
    assert (await waiting).request == 2


@pytest.mark.asyncio
async def test_a_deadline_ends_a_wait_and_not_what_is_there() -> None:
    channel = Mailboxes().channel()
    with pytest.raises(RequestTimeoutError):
        await channel.get(Deadline(0.01))
    channel.put(update(1))
    assert (await channel.get(Deadline(0))).request == 1
    waiting = asyncio.create_task(channel.get(Deadline(10)))
    await asyncio.sleep(0)
    channel.put(update(2))
    assert (await waiting).request == 2


@pytest.mark.asyncio
async def test_a_cancelled_wait_loses_nothing() -> None:
    channel = Mailboxes().channel()
    waiting = asyncio.create_task(channel.get(NEVER))
    await asyncio.sleep(0)
    channel.put(update(1))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await channel.get(NEVER)).request == 1
