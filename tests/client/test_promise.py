"""Coroutines without an event loop: kept, failed, cancelled, in turn, and never deeper than one call."""

from __future__ import annotations

import pytest

from gateway.client.promise import CancelledError, Promise, Turn, drive


def test_a_coroutine_goes_on_within_the_call_that_keeps_its_promise() -> None:
    promise: Promise[int] = Promise()

    async def work() -> int:
        return await promise + 1

    driven = drive(work())
    assert not driven.done
    promise.keep(1)
    promise.keep(5)
    assert driven.result() == 2


def test_what_a_promise_fails_with_is_raised_where_it_is_awaited() -> None:
    promise: Promise[int] = Promise()

    async def work() -> str:
        try:
            await promise
        except KeyError:
            return "caught"
        return "kept"

    driven = drive(work())
    promise.fail(KeyError())
    assert driven.result() == "caught"
    failing = drive(_raise())
    with pytest.raises(ZeroDivisionError):
        failing.result()


async def _raise() -> None:
    raise ZeroDivisionError


def test_a_cancelled_coroutine_tidies_up_and_is_not_called_again() -> None:
    promise: Promise[None] = Promise()
    said: list[str] = []

    async def work() -> None:
        try:
            await promise
        finally:
            said.append("tidied")

    driven = drive(work())
    driven.cancel()
    promise.keep(None)
    assert said == ["tidied"]
    with pytest.raises(CancelledError):
        driven.result()


def test_turns_are_taken_in_order_and_given_on() -> None:
    turn = Turn(2)
    order: list[int] = []
    gates = [Promise[None]() for _ in range(5)]

    async def work(number: int) -> None:
        await turn.take()
        order.append(number)
        try:
            await gates[number]
        finally:
            turn.give()

    driven = [drive(work(number)) for number in range(5)]
    assert order == [0, 1]
    driven[2].cancel()
    gates[1].keep(None)
    assert order == [0, 1, 3]
    driven[3].cancel()
    assert order == [0, 1, 3, 4]
    turn.size = 1
    gates[0].keep(None)
    gates[4].keep(None)
    assert drive(turn.take()).done


def test_thousands_that_give_their_turn_back_at_once_need_no_stack() -> None:
    turn = Turn(1)
    drive(turn.take())
    failed = 0

    async def work() -> None:
        nonlocal failed
        await turn.take()
        failed += 1
        turn.give()

    for _ in range(20_000):
        drive(work())
    turn.give()
    assert failed == 20_000
    assert drive(turn.take()).done
