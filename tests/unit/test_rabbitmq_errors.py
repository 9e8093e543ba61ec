"""What the RabbitMQ driver does to a call whose connection is gone."""

from __future__ import annotations

import asyncio

import pytest
from aiormq.exceptions import AMQPError, ChannelClosed, ChannelPreconditionFailed

from adapters.rabbitmq.address import Address
from adapters.rabbitmq.errors import refusal, within
from bus.errors import BusError, ConnectionLost, Misconfigured


@pytest.mark.parametrize(
    ("thrown", "told"),
    [
        (Exception, ConnectionLost),
        (StopAsyncIteration, ConnectionLost),
        (asyncio.CancelledError, ConnectionLost),
        (ChannelClosed, AMQPError),
    ],
)
def test_a_call_that_it_gives_up_is_a_lost_connection(thrown: type[BaseException], told: type[BaseException]) -> None:
    async def call() -> None:
        answer = asyncio.get_running_loop().create_future()
        if thrown is asyncio.CancelledError:
            answer.cancel()
        else:
            answer.set_exception(thrown())
        with pytest.raises(told):
            await within(answer)

    asyncio.run(call())


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost '/'", Misconfigured),
        ("PRECONDITION_FAILED - stream queue 'q' does not have a running replica on the local node", ConnectionLost),
    ],
)
def test_only_other_arguments_are_told_as_such(said: str, told: type[BusError]) -> None:
    """A broker that has just started gets over the rest; nobody should delete a queue for it."""
    assert type(refusal(ChannelPreconditionFailed(said), "q", Address.parse("amqp://h/", 60.0))) is told
