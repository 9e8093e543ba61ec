"""What the RabbitMQ driver does to a call whose connection is gone."""

from __future__ import annotations

import asyncio

import pytest
from aiormq.exceptions import AMQPError, ChannelClosed

from adapters.rabbitmq.errors import within
from bus.errors import ConnectionLost


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
